// Q5_K: w = d sc q - dmin m, sc and m 6 bits per group. Planes: nibbles, fifth bits, packed (sc, m) and (d, dmin) of 8
// groups.

#include "decode/common.wgsl"
#include "decode/k_scales.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let b = words[row + p.planes.x + g];
    let sm = scale_min(row + p.planes.y + 3u * (g >> 3u), g);
    let d = unpack2x16float(words[row + p.planes.z + (g >> 3u)]);
    let low = low_nibbles(n) | (low_bits(b) << vec4(4u));
    let high = high_nibbles(n) | (high_bits(b) << vec4(4u));
    return Group(low, high, vec2(d.x * sm.x), vec2(-d.y * sm.y));
}
