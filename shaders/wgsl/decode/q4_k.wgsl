// Q4_K: w = d sc q - dmin m, sc and m 6 bits per group. Planes: nibbles, packed (sc, m) and (d, dmin) of 8 groups.

#include "decode/common.wgsl"
#include "decode/k_scales.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let sm = scale_min(row + p.planes.x + 3u * (g >> 3u), g);
    let d = unpack2x16float(words[row + p.planes.y + (g >> 3u)]);
    return Group(low_nibbles(n), high_nibbles(n), vec2(d.x * sm.x), vec2(-d.y * sm.y));
}
