// y = s W x + b: what the kernels of a matrix product share: parameters, bindings, and what becomes of a sum.
//
// A buffer of weights begins with the TABLE words that its type looks things up in. A row of W is packed in planes (see
// `formats.rs`); its groups are 32 weights each. The same buffer is bound three times, so that a snippet reads one, two or
// four words at a time.

struct Params {
    // Words from a row's start to its planes 1, 2, 3 and 4.
    planes: vec4<u32>,
    // Words from one row to the next.
    row_words: u32,
    // Groups of a row.
    groups: u32,
    // Rows in this buffer.
    n_rows: u32,
    // Column of `y` that the first row's result goes to.
    column: u32,
    // Row of `acts` that the first token's activations are in.
    first: u32,
    n_tokens: u32,
    // Vectors from one row of `acts` to the next.
    act_stride: u32,
    // Floats from one row of `y` to the next.
    out_stride: u32,
    // Row of `y` that the first token's results go to.
    out_first: u32,
    // ADD, BIAS, SCALE. The upper half: `weight_exponent`.
    flags: u32,
    // Index in `bias` of the first row's.
    bias_first: u32,
    // y = cap tanh(y / cap), where it is above 0.
    cap: f32,
    // Of experts: the first one in this buffer, and how many there are; each has `n_rows` rows. `y` has a row for each
    // (token, expert) pair, and `acts` one for each `pairs_per_row` of them.
    first_expert: u32,
    n_experts: u32,
    pairs_per_row: u32,
    // Index in `bias` of the first row's scale.
    scale_first: u32,
}

const ADD = 1u;
const BIAS = 2u;
const SCALE = 4u;

var<immediate> p: Params;

// The power of two that makes the weights fit f16.
fn weight_exponent() -> i32 {
    return bitcast<i32>(p.flags) >> 16u;
}

@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> quads: array<vec4<u32>>;
#if EXPERTS
#else
// Biases of the rows, and scales of the rows where files have one for a whole matrix.
@group(0) @binding(4) var<storage, read> bias: array<f32>;
#endif
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

#if EXPERTS
// Of each pair: its expert, and the expert's weight.
@group(0) @binding(6) var<storage, read> chosen: array<vec2<u32>>;
// Pairs sorted by expert, and their tiles: see `group.wgsl`.
@group(0) @binding(7) var<storage, read> order: array<u32>;
@group(0) @binding(8) var<storage, read> tiles: array<vec4<u32>>;
#endif

// Writes one result: row `row` of the matrix, token (or pair) `token` of the batch.
fn finish(row: u32, token: u32, sum: f32) {
    var value = sum;
#if EXPERTS
#else
    if (p.flags & SCALE) != 0u {
        value *= bias[p.scale_first + row];
    }
    if (p.flags & BIAS) != 0u {
        value += bias[p.bias_first + row];
    }
#endif
    if p.cap > 0.0 {
        // Beyond 15, tanh is 1 in f32, and some drivers' overflows.
        value = p.cap * tanh(clamp(value / p.cap, -15.0, 15.0));
    }
    let at = (p.out_first + token) * p.out_stride + p.column + row;
    if (p.flags & ADD) != 0u {
        value += y[at];
    }
    y[at] = value;
}
