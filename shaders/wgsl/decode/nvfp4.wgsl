// NVFP4: w = d / 2 v[q], d an unsigned float of 4 bits of exponent (bias 7) and 3 of mantissa per half; 0x7f counts as 0.
// Planes: nibbles, d.

#include "decode/common.wgsl"
#include "decode/values.wgsl"
#include "decode/e2m1.wgsl"

// Half of its value.
fn ue4m3_half(d: u32) -> f32 {
    let exponent = (d >> 3u) & 15u;
    let mantissa = d & 7u;
    // (8 + m) 2^(e - 11), or m 2^-10 where e is 0.
    let power = bitcast<f32>((max(exponent, 1u) + 116u) << 23u);
    let value = f32(mantissa + select(0u, 8u, exponent > 0u)) * power;
    return select(value, 0.0, (d & 127u) == 127u);
}

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let d = words[row + p.planes.x + (g >> 1u)] >> (16u * (g & 1u));
    let scale = vec2(ue4m3_half(d & 255u), ue4m3_half((d >> 8u) & 255u));
    return Group(all_values_of(low_nibbles(n), E2M1), all_values_of(high_nibbles(n), E2M1), scale, vec2(0.0));
}
