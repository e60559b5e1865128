// Q4_1: w = d q + m. Planes: nibbles, (d, m).

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let dm = unpack2x16float(words[row + p.planes.x + g]);
    return Group(low_nibbles(n), high_nibbles(n), vec2(dm.x), vec2(dm.y));
}
