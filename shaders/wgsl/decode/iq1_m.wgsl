// IQ1_M: w = d (2 sc + 1) (g - 1 +- 1/8), sc 3 bits per half. Planes, of each group: 4 indices; of each 8 weights 3 high
// bits of the index and a bit that is 1 where the shift is down; of 8 groups two words, each of two times 4 sc and 4 bits
// of d.

#include "decode/common.wgsl"
#include "decode/iq1.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let low = unpack4xU8(words[row + g]);
    let high = (vec4(words[row + p.planes.x + (g >> 1u)] >> (16u * (g & 1u))) >> vec4(0u, 4u, 8u, 12u)) & vec4(15u);
    let index = low | ((high & vec4(7u)) << vec4(8u));
    let down = high >> vec4(3u);
    let both = vec2(words[row + p.planes.y + 2u * (g >> 3u)], words[row + p.planes.y + 2u * (g >> 3u) + 1u]);
    let tops = (both.xxyy >> vec4(12u, 28u, 12u, 28u)) & vec4(15u);
    let d = unpack2x16float(tops.x | (tops.y << 4u) | (tops.z << 8u) | (tops.w << 12u)).x;
    // 16 bits serve two groups: 4 halves.
    let sc = select(both.x, both.y, (g & 4u) != 0u) >> (8u * (g & 2u) + 6u * (g & 1u));
    let scale = 0.125 * d * vec2<f32>(vec2(2u * (sc & 7u) + 1u, 2u * ((sc >> 3u) & 7u) + 1u));
    return Group(
        vec4(shifted(index.x, down.x), shifted(index.y, down.y)),
        vec4(shifted(index.z, down.z), shifted(index.w, down.w)),
        scale,
        -9.0 * scale,
    );
}
