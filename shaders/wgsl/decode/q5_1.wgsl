// Q5_1: w = d q + m. Planes: nibbles, fifth bits, (d, m).

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let b = words[row + p.planes.x + g];
    let dm = unpack2x16float(words[row + p.planes.y + g]);
    let low = low_nibbles(n) | (low_bits(b) << vec4(4u));
    let high = high_nibbles(n) | (high_bits(b) << vec4(4u));
    return Group(low, high, vec2(dm.x), vec2(dm.y));
}
