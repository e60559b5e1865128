// The largest logit of each slice; see `common.wgsl`.
//
// Dispatch: x numbers THREADS slices.

#include "best/common.wgsl"

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> maxima: array<u32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.n_slices {
        return;
    }
    var highest = 0u;
    for (var t = id.x; t < p.n_vocab; t += p.n_slices) {
        highest = max(highest, order_of(logits[t]));
    }
    maxima[id.x] = highest;
}
