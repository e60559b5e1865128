// The logits that are not below the threshold; see `common.wgsl`. In which order they come does not matter.
//
// Dispatch: x numbers THREADS tokens.

#include "best/common.wgsl"

struct State {
    threshold: u32,
    n_collected: atomic<u32>,
}

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: State;
// Order and token.
@group(0) @binding(2) var<storage, read_write> collected: array<vec2<u32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.n_vocab {
        return;
    }
    let order = order_of(logits[id.x]);
    if order > IMPOSSIBLE && order >= state.threshold {
        let at = atomicAdd(&state.n_collected, 1u);
        if at < MAX_COLLECTED {
            collected[at] = vec2(order, id.x);
        }
    }
}
