// The 8 scales and 8 minimums (6 bits each) that Q4_K and Q5_K pack in 12 bytes: of groups 0..4 the low 6 bits of bytes
// 0..4 and 4..8; of groups 4..8 the nibbles of bytes 8..12, with their high 2 bits on top of bytes 0..4 and 4..8.

fn scale_min(packed: u32, g: u32) -> vec2<f32> {
    let shift = 8u * (g & 3u);
    let first = vec2(words[packed], words[packed + 1u]) >> vec2(shift);
    let third = words[packed + 2u] >> shift;
    let early = first & vec2(63u);
    let late = vec2(third & 15u, (third >> 4u) & 15u) | (((first >> vec2(6u)) & vec2(3u)) << vec2(4u));
    return vec2<f32>(select(early, late, (g & 4u) != 0u));
}
