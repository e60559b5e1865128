// What the quantized caches share: groups of 32 elements with an f16 scale, x = d q. The including file says how many
// words a group's quants take (WORDS) and how they are packed.
//
// Of each head, first all quants, then all scales. Keys: [position / 32][groups * WORDS][32 positions] words of quants,
// [position / 32][SCALES][32 positions] words of two scales each. Values: [position][groups * WORDS], [position][SCALES].

#if STORE
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
#else
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> values: array<u32>;
#endif

const GROUPS = (QUADS + 7u) / 8u;
const SCALES = (GROUPS + 1u) / 2u;

// Word `w` of `n` that a position has in tiles that begin at `start`.
fn tiled(start: u32, position: u32, n: u32, w: u32) -> u32 {
    return start + ((position / 32u) * n + w) * 32u + position % 32u;
}

// Where a head begins, and its scales.
fn head_start(head: u32) -> u32 {
    return head * p.tiles * 32u * (GROUPS * WORDS + SCALES);
}

fn scales_start(head: u32) -> u32 {
    return head_start(head) + p.tiles * 32u * GROUPS * WORDS;
}

fn scale_of(both: u32, g: u32) -> f32 {
    let d = unpack2x16float(both);
    return select(d.x, d.y, (g & 1u) == 1u);
}

fn key(head: u32, position: u32, j: u32) -> vec4<f32> {
    let g = j / 8u;
    let both = keys[tiled(scales_start(head), position, SCALES, g / 2u)];
    let word = keys[tiled(head_start(head), position, GROUPS * WORDS, g * WORDS + j % WORDS)];
    return scale_of(both, g) * unpack(word, j);
}

fn value(head: u32, position: u32, j: u32) -> vec4<f32> {
    let g = j / 8u;
    let both = values[scales_start(head) + position * SCALES + g / 2u];
    let word = values[head_start(head) + position * GROUPS * WORDS + g * WORDS + j % WORDS];
    return scale_of(both, g) * unpack(word, j);
}

#if STORE
const NOT_FINITE = 0x7f800000u;
const F16_NAN = 0x7e00u;

// The bits of the scale of group `g`, an f16. Bits order as magnitudes do, with infinity and then NaN above them: broken
// numbers must reach the logits and be seen there.
fn group_scale(g: u32) -> u32 {
    var peak = 0u;
    for (var i = 0u; i < 32u; i++) {
        peak = max(peak, bitcast<u32>(elements[32u * g + i]) & 0x7fffffffu);
    }
    let d = pack2x16float(vec2(bitcast<f32>(peak) / LARGEST, 0.0));
    return select(d, F16_NAN, peak >= NOT_FINITE);
}

// Four quants of group `g`, as signed numbers.
fn quants(at: u32, inverse: f32) -> vec4<i32> {
    let x = vec4(elements[at], elements[at + 1u], elements[at + 2u], elements[at + 3u]);
    return vec4<i32>(clamp(round(x * inverse), vec4(-LARGEST), vec4(LARGEST)));
}

// Stores the head's elements in `elements` (zeros beyond its end), all threads together: each takes pairs of groups, which
// share a word of scales.
fn store(head: u32, position: u32, is_key: bool, lane: u32) {
    for (var s = lane; s < SCALES; s += THREADS) {
        var both = 0u;
        for (var half = 0u; half < 2u; half++) {
            let g = 2u * s + half;
            if g >= GROUPS {
                break;
            }
            let bits = group_scale(g);
            both |= bits << (16u * half);
            let d = unpack2x16float(bits).x;
            let inverse = select(0.0, 1.0 / d, d > 0.0);
            for (var w = 0u; w < WORDS; w++) {
                let word = pack_word(g, w, inverse);
                if is_key {
                    keys[tiled(head_start(head), position, GROUPS * WORDS, g * WORDS + w)] = word;
                } else {
                    values[head_start(head) + position * GROUPS * WORDS + g * WORDS + w] = word;
                }
            }
        }
        if is_key {
            keys[tiled(scales_start(head), position, SCALES, s)] = both;
        } else {
            values[scales_start(head) + position * SCALES + s] = both;
        }
    }
}
#endif
