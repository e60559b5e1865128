// IQ3_S: w = d (2 sc + 1) (+- point), sc 4 bits per group. Planes, of each group: 8 indices of 4 weights, their ninth bits,
// 32 signs; sc and d of 8 groups.

#include "decode/common.wgsl"
#include "decode/grid.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let q = pairs[(row >> 1u) + g];
    let ninth = byte_at(row + p.planes.x, g);
    let signs = words[row + p.planes.y + g];
    let sc = words[row + p.planes.z + (g >> 3u)] >> (4u * (g & 7u));
    let low = unpack4xU8(q.x) | (((vec4(ninth) >> vec4(0u, 1u, 2u, 3u)) & vec4(1u)) << vec4(8u));
    let high = unpack4xU8(q.y) | (((vec4(ninth) >> vec4(4u, 5u, 6u, 7u)) & vec4(1u)) << vec4(8u));
    let scale = half_at(row + p.planes.w, g >> 3u) * f32(2u * (sc & 15u) + 1u);
    return Group(
        vec4(two_fours(low.x, low.y, signs), two_fours(low.z, low.w, signs >> 8u)),
        vec4(two_fours(high.x, high.y, signs >> 16u), two_fours(high.z, high.w, signs >> 24u)),
        vec2(scale),
        vec2(0.0),
    );
}
