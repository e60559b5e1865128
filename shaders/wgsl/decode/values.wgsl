// 4-bit quants that stand for one of 16 values each.

// Four nibbles, one per byte, to the values they stand for; `values` holds all 16 as bytes.
fn values_of(n: u32, values: vec4<u32>) -> u32 {
    let q = (vec4(n) >> vec4(0u, 8u, 16u, 24u)) & vec4(15u);
    let is_odd = (q & vec4(4u)) != vec4(0u);
    let low = select(values.xxxx, values.yyyy, is_odd);
    let high = select(values.zzzz, values.wwww, is_odd);
    let word = select(low, high, (q & vec4(8u)) != vec4(0u));
    let bytes = (word >> (8u * (q & vec4(3u)))) & vec4(255u);
    return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}

fn all_values_of(n: vec4<u32>, values: vec4<u32>) -> vec4<u32> {
    return vec4(values_of(n.x, values), values_of(n.y, values), values_of(n.z, values), values_of(n.w, values));
}
