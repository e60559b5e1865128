// KV cache of 8-bit integers: word `w` of a group holds its elements 4 w .. 4 w + 4.

const WORDS = 8u;
const LARGEST = 127.0;
#include "kv/quantized.wgsl"

fn unpack(word: u32, j: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(word));
}

#if STORE
fn pack_word(g: u32, w: u32, inverse: f32) -> u32 {
    return pack4xI8(quants(32u * g + 4u * w, inverse));
}
#endif
