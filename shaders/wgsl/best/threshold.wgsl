// The `k`-th largest of the slices' maxima; see `common.wgsl`.
//
// Dispatch: one workgroup.

#include "best/common.wgsl"

@group(0) @binding(0) var<storage, read> maxima: array<u32>;
// The threshold, and the number of logits collected.
@group(0) @binding(1) var<storage, read_write> state: array<u32, 2>;

var<workgroup> all: array<u32, MAX_SLICES>;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < p.n_slices; i += THREADS) {
        all[i] = maxima[i];
    }
    workgroupBarrier();
    if lane == 0u {
        state[1] = 0u;
        if p.k > p.n_slices {
            state[0] = 0u;
        }
    }
    for (var i = lane; i < p.n_slices; i += THREADS) {
        let own = all[i];
        var before = 0u;
        for (var j = 0u; j < p.n_slices; j++) {
            before += select(0u, 1u, all[j] > own || (all[j] == own && j < i));
        }
        if before + 1u == p.k {
            state[0] = own;
        }
    }
}
