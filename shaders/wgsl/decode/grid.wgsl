// Points of a grid: the magnitudes of 8 or 4 weights, one per byte, in a table before the first row; and their signs.

// Four bytes, none of them 0, negated where the bit of `signs` is 1.
fn negate(bytes: u32, signs: u32) -> u32 {
    let ones = ((signs & 15u) * 0x00204081u) & 0x01010101u;
    return (bytes ^ (255u * ones)) + ones;
}

// Point `index` of a grid of 8 weights.
fn eight(index: u32, signs: u32) -> vec2<u32> {
    let point = pairs[index];
    return vec2(negate(point.x, signs), negate(point.y, signs >> 4u));
}

// Two points of a grid of 4 weights.
fn two_fours(first: u32, second: u32, signs: u32) -> vec2<u32> {
    return vec2(negate(words[first], signs), negate(words[second], signs >> 4u));
}

// 8 signs from the low 7 bits: the number of minus signs is even, which gives the eighth.
fn eighth_sign(bits: u32) -> u32 {
    let seven = bits & 127u;
    return seven | ((countOneBits(seven) & 1u) << 7u);
}
