// What IQ1_S and IQ1_M share: points of -1, 0, 1, shifted up or down by an eighth. In eighths, w = 8 g - 8 +- 1 with g in
// 0, 1, 2. The table holds 8 g; 2 more is a shift up, and 9 less is in the minimum.

// Point `index`, shifted down where `down` is 1.
fn shifted(index: u32, down: u32) -> vec2<u32> {
    return pairs[index] + vec2(select(0x02020202u, 0u, down == 1u));
}
