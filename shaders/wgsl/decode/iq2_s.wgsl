// IQ2_S: w = d (sc + 1/2) / 4 (+- point), sc 4 bits per half. Planes, of each group: 4 indices, 4 times 8 signs, the high 2
// bits of the indices, sc; and d of 8 groups.

#include "decode/common.wgsl"
#include "decode/grid.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let low = unpack4xU8(words[row + g]);
    let signs = words[row + p.planes.x + g];
    let high = byte_at(row + p.planes.y, g);
    let sc = byte_at(row + p.planes.z, g);
    let index = low | (((vec4(high) >> vec4(0u, 2u, 4u, 6u)) & vec4(3u)) << vec4(8u));
    let scale = half_at(row + p.planes.w, g >> 3u) * (0.5 + vec2<f32>(vec2(sc & 15u, sc >> 4u))) * 0.25;
    return Group(
        vec4(eight(index.x, signs), eight(index.y, signs >> 8u)),
        vec4(eight(index.z, signs >> 16u), eight(index.w, signs >> 24u)),
        scale,
        vec2(0.0),
    );
}
