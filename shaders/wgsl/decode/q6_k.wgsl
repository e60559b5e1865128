// Q6_K: w = d sc (q - 32), sc a signed byte per half. Planes: nibbles, crumbs, sc, d of 8 groups.

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let c = crumbs(row + p.planes.x, g);
    let s = bitcast<i32>(words[row + p.planes.y + (g >> 1u)]);
    let sc = vec2(extractBits(s, 16u * (g & 1u), 8u), extractBits(s, 16u * (g & 1u) + 8u, 8u));
    let scale = half_at(row + p.planes.z, g >> 3u) * vec2<f32>(sc);
    return Group(
        low_nibbles(n) | (low_crumbs(c) << vec4(4u)),
        high_nibbles(n) | (high_crumbs(c) << vec4(4u)),
        scale,
        -32.0 * scale,
    );
}
