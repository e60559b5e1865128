// What the snippets of quantized types share. A snippet's `decode(row, g)` takes the word at which a row begins and the
// number of a group of 32 weights in it, and gives w = scale * q + min, with a scale and a minimum for each half.

struct Group {
    // Weights 0..16 as signed bytes, in order.
    low: vec4<u32>,
    // Weights 16..32.
    high: vec4<u32>,
    scale: vec2<f32>,
    min: vec2<f32>,
}

// The `i`-th half float after `word`.
fn half_at(word: u32, i: u32) -> f32 {
    let both = unpack2x16float(words[word + (i >> 1u)]);
    return select(both.x, both.y, (i & 1u) == 1u);
}

// The 4-bit plane of group `g` in a plane that begins at `word`.
fn nibbles(word: u32, g: u32) -> vec4<u32> {
    return quads[(word >> 2u) + g];
}

fn low_nibbles(n: vec4<u32>) -> vec4<u32> {
    return n & vec4(0x0f0f0f0fu);
}

fn high_nibbles(n: vec4<u32>) -> vec4<u32> {
    return (n >> vec4(4u)) & vec4(0x0f0f0f0fu);
}

// The 2-bit plane of group `g`.
fn crumbs(word: u32, g: u32) -> vec2<u32> {
    return pairs[(word >> 1u) + g];
}

fn low_crumbs(c: vec2<u32>) -> vec4<u32> {
    return (c.xyxy >> vec4(0u, 0u, 2u, 2u)) & vec4(0x03030303u);
}

fn high_crumbs(c: vec2<u32>) -> vec4<u32> {
    return (c.xyxy >> vec4(4u, 4u, 6u, 6u)) & vec4(0x03030303u);
}

// Of a 1-bit plane's word.
fn low_bits(b: u32) -> vec4<u32> {
    return (vec4(b) >> vec4(0u, 1u, 2u, 3u)) & vec4(0x01010101u);
}

fn high_bits(b: u32) -> vec4<u32> {
    return (vec4(b) >> vec4(4u, 5u, 6u, 7u)) & vec4(0x01010101u);
}
