// Q1_0: w = d where the bit is 1, -d where it is 0. Planes: bits, d of 4 groups.

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let b = words[row + g];
    let d = half_at(row + p.planes.x, g >> 2u);
    return Group(low_bits(b), high_bits(b), vec2(2.0 * d), vec2(-d));
}
