// BF16: the upper half of an f32.

fn float4(row: u32, i: u32) -> vec4<f32> {
    let w = pairs[(row >> 1u) + i];
    return bitcast<vec4<f32>>(vec4(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}
