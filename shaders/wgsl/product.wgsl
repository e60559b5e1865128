// y = W x + b: what the kernels of a matrix product share: parameters, bindings, and what becomes of a sum.
//
// A row of W is packed in planes (see `formats.rs`); its groups are 32 weights each. The same buffer is bound three
// times, so that a snippet reads one, two or four words at a time.

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
    // ADD, BIAS.
    flags: u32,
    // Index in `bias` of the first row's.
    bias_first: u32,
    // y = cap tanh(y / cap), where it is above 0.
    cap: f32,
}

const ADD = 1u;
const BIAS = 2u;

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> quads: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

// Writes one result: row `row` of this buffer, token `token` of the batch.
fn finish(row: u32, token: u32, sum: f32) {
    var value = sum;
    if (p.flags & BIAS) != 0u {
        value += bias[p.bias_first + row];
    }
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
