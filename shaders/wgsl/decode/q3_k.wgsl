// Q3_K: w = d (sc - 32) (q - 4), sc 6 bits per half. Planes: crumbs, third bits, packed sc of 8 groups, d of 8 groups.
//
// The 16 sc of 8 groups are 12 bytes: low nibbles in bytes 0..8 (of sc 0..8 in their low, of 8..16 in their high half),
// high 2 bits in bytes 8..12.

#include "decode/common.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let c = crumbs(row, g);
    let b = words[row + p.planes.x + g];
    let packed = row + p.planes.y + 3u * (g >> 3u);
    // The two of this group: 2 j and 2 j + 1.
    let j = g & 7u;
    let low = words[packed + ((j >> 1u) & 1u)] >> (16u * (j & 1u) + 4u * (j >> 2u));
    let high = words[packed + 2u] >> (16u * (j & 1u) + 2u * (j >> 1u));
    let sc = vec2(low & 15u, (low >> 8u) & 15u) | (vec2(high & 3u, (high >> 8u) & 3u) << vec2(4u));
    let scale = half_at(row + p.planes.z, g >> 3u) * (vec2<f32>(sc) - 32.0);
    return Group(
        low_crumbs(c) | (low_bits(b) << vec4(2u)),
        high_crumbs(c) | (high_bits(b) << vec4(2u)),
        scale,
        -4.0 * scale,
    );
}
