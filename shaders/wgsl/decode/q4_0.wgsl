// Q4_0: w = d (q - 8). Planes: nibbles, d.

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let d = half_at(row + p.planes.x, g);
    return Group(low_nibbles(n), high_nibbles(n), vec2(d), vec2(-8.0 * d));
}
