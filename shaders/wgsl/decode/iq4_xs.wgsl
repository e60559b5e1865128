// IQ4_XS: w = d (sc - 32) v[q], sc 6 bits per group. Planes: nibbles; of 8 groups the high 2 bits of sc, the low nibbles of
// sc, d.

#include "decode/common.wgsl"
#include "decode/values.wgsl"
#include "decode/iq4_values.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let block = g >> 3u;
    let high = words[row + p.planes.x + (block >> 1u)] >> (16u * (block & 1u) + 2u * (g & 7u));
    let low = words[row + p.planes.y + block] >> (4u * (g & 7u));
    let sc = (low & 15u) | ((high & 3u) << 4u);
    let scale = half_at(row + p.planes.z, block) * (f32(sc) - 32.0);
    return Group(all_values_of(low_nibbles(n), IQ4), all_values_of(high_nibbles(n), IQ4), vec2(scale), vec2(0.0));
}
