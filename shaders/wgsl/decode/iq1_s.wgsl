// IQ1_S: w = d (2 sc + 1) (g - 1 +- 1/8), sc 3 bits per group. Planes, of each group: 4 indices; 4 times 3 high bits of the
// indices, sc, and a bit that is 1 where the shift is down; and d of 8 groups.

#include "decode/common.wgsl"
#include "decode/iq1.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let low = unpack4xU8(words[row + g]);
    let high = words[row + p.planes.x + (g >> 1u)] >> (16u * (g & 1u));
    let index = low | (((vec4(high) >> vec4(0u, 3u, 6u, 9u)) & vec4(7u)) << vec4(8u));
    let down = (high >> 15u) & 1u;
    let scale = half_at(row + p.planes.y, g >> 3u) * f32(2u * ((high >> 12u) & 7u) + 1u) * 0.125;
    return Group(
        vec4(shifted(index.x, down), shifted(index.y, down)),
        vec4(shifted(index.z, down), shifted(index.w, down)),
        vec2(scale),
        vec2(-9.0 * scale),
    );
}
