// y = sum of weight * (what an expert made of it), over the experts of each token in ascending order; or added to y.
//
// Dispatch: x numbers THREADS columns, y the tokens.

struct Params {
    n_used: u32,
    width: u32,
    // Floats from one row of `made` to the next; rows are (token, expert) pairs.
    in_stride: u32,
    // Floats from one row of `y` to the next, and its first column.
    out_stride: u32,
    out_column: u32,
    // 1: add to `y`.
    add: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> chosen: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> made: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = id.x * THREADS + lane;
    if column >= p.width {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < p.n_used; i++) {
        let pair = id.y * p.n_used + i;
        sum += bitcast<f32>(chosen[pair].y) * made[pair * p.in_stride + column];
    }
    let at = id.y * p.out_stride + p.out_column + column;
    if p.add != 0u {
        sum += y[at];
    }
    y[at] = sum;
}
