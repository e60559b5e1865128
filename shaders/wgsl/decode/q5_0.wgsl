// Q5_0: w = d (q - 16). Planes: nibbles, fifth bits, d.

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let b = words[row + p.planes.x + g];
    let d = half_at(row + p.planes.y, g);
    let low = low_nibbles(n) | (low_bits(b) << vec4(4u));
    let high = high_nibbles(n) | (high_bits(b) << vec4(4u));
    return Group(low, high, vec2(d), vec2(-16.0 * d));
}
