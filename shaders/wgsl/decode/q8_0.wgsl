// Q8_0: w = d q, q signed. Planes: bytes, d.

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let at = (row >> 2u) + 2u * g;
    let d = half_at(row + p.planes.x, g);
    return Group(quads[at], quads[at + 1u], vec2(d), vec2(0.0));
}
