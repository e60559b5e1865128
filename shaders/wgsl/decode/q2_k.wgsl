// Q2_K: w = d sc q - dmin m, sc and m 4 bits per half. Planes: crumbs, (sc, m) bytes, (d, dmin) of 8 groups.

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let c = crumbs(row, g);
    let s = words[row + p.planes.x + (g >> 1u)] >> (16u * (g & 1u));
    let d = unpack2x16float(words[row + p.planes.y + (g >> 3u)]);
    let scale = vec2<f32>(vec2(s & 15u, (s >> 8u) & 15u));
    let mins = vec2<f32>(vec2((s >> 4u) & 15u, (s >> 12u) & 15u));
    return Group(low_crumbs(c), high_crumbs(c), d.x * scale, -d.y * mins);
}
