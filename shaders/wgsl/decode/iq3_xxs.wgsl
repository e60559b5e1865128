// IQ3_XXS: w = d (sc + 1/2) / 2 (+- point), sc 4 bits per group. Planes: of each group 8 indices of 4 weights; 4 times 7
// signs and sc; d of 8 groups.

#include "decode/common.wgsl"
#include "decode/grid.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let q = pairs[(row >> 1u) + g];
    let low = unpack4xU8(q.x);
    let high = unpack4xU8(q.y);
    let signs = words[row + p.planes.x + g];
    let a = two_fours(low.x, low.y, eighth_sign(signs));
    let b = two_fours(low.z, low.w, eighth_sign(signs >> 7u));
    let c = two_fours(high.x, high.y, eighth_sign(signs >> 14u));
    let d = two_fours(high.z, high.w, eighth_sign(signs >> 21u));
    let scale = half_at(row + p.planes.y, g >> 3u) * (0.5 + f32(signs >> 28u)) * 0.5;
    return Group(vec4(a, b), vec4(c, d), vec2(scale), vec2(0.0));
}
