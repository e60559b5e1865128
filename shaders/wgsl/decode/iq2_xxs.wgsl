// IQ2_XXS: w = d (sc + 1/2) / 4 (+- point), sc 4 bits per group. Planes: of each group a word of 4 indices and one of 4
// times 7 signs and sc; d of 8 groups.

#include "decode/common.wgsl"
#include "decode/grid.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let both = pairs[(row >> 1u) + g];
    let index = unpack4xU8(both.x);
    let a = eight(index.x, eighth_sign(both.y));
    let b = eight(index.y, eighth_sign(both.y >> 7u));
    let c = eight(index.z, eighth_sign(both.y >> 14u));
    let d = eight(index.w, eighth_sign(both.y >> 21u));
    let scale = half_at(row + p.planes.x, g >> 3u) * (0.5 + f32(both.y >> 28u)) * 0.25;
    return Group(vec4(a, b), vec4(c, d), vec2(scale), vec2(0.0));
}
