// Q2_0: w = d (q - 1). Planes: crumbs, d of 2 groups.

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let c = crumbs(row, g);
    let d = half_at(row + p.planes.x, g >> 1u);
    return Group(low_crumbs(c), high_crumbs(c), vec2(d), vec2(-d));
}
