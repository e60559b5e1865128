// IQ2_XS: w = d (sc + 1/2) / 4 (+- point), sc 4 bits per half. Planes: of each 8 weights 9 bits of index and 7 signs; sc of
// each group; d of 8 groups.

#include "decode/common.wgsl"
#include "decode/grid.wgsl"

fn point(bits: u32) -> vec2<u32> {
    return eight(bits & 511u, eighth_sign((bits >> 9u) & 127u));
}

fn decode(row: u32, g: u32) -> Group {
    let q = pairs[(row >> 1u) + g];
    let sc = byte_at(row + p.planes.x, g);
    let scale = half_at(row + p.planes.y, g >> 3u) * (0.5 + vec2<f32>(vec2(sc & 15u, sc >> 4u))) * 0.25;
    return Group(vec4(point(q.x), point(q.x >> 16u)), vec4(point(q.y), point(q.y >> 16u)), scale, vec2(0.0));
}
