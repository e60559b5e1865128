// KV cache of 4-bit integers, offset by 8: word `w` of a group holds its elements 4 w .. 4 w + 4 in the low nibbles and
// 16 + 4 w .. in the high ones.

const WORDS = 4u;
const LARGEST = 7.0;
#include "kv/quantized.wgsl"

fn unpack(word: u32, j: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((word >> (j & 4u)) & 0x0f0f0f0fu)) - 8.0;
}

#if STORE
fn pack_word(g: u32, w: u32, inverse: f32) -> u32 {
    let low = vec4<u32>(quants(32u * g + 4u * w, inverse) + 8);
    let high = vec4<u32>(quants(32u * g + 16u + 4u * w, inverse) + 8);
    return pack4xU8(low | (high << vec4(4u)));
}
#endif
