// F32.

fn float4(row: u32, i: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(quads[(row >> 2u) + i]);
}
