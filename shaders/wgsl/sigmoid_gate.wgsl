// F = sigmoid(w . H) F: how much of a shared expert each token takes.
//
// Dispatch: x numbers the tokens.

struct Params {
    // Elements of H, and floats from one row to the next.
    width: u32,
    in_stride: u32,
    // Elements of F, and floats from one row to the next.
    n_ff: u32,
    out_stride: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> h: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> f: array<f32>;

#include "sum.wgsl"

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var share = 0.0;
    for (var i = lane; i < p.width; i += THREADS) {
        share += weight[i] * h[id.x * p.in_stride + i];
    }
    let gate = 1.0 / (1.0 + exp(-sum_all(share, lane)));
    for (var i = lane; i < p.n_ff; i += THREADS) {
        f[id.x * p.out_stride + i] *= gate;
    }
}
