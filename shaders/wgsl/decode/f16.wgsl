// F16.

fn float4(row: u32, i: u32) -> vec4<f32> {
    let w = pairs[(row >> 1u) + i];
    return vec4(unpack2x16float(w.x), unpack2x16float(w.y));
}
