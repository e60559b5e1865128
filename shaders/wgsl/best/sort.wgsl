// The collected logits in order, and the first `k` of them; see `common.wgsl`. A bitonic sort.
//
// Dispatch: one workgroup.

#include "best/common.wgsl"

@group(0) @binding(0) var<storage, read> state: array<u32, 2>;
@group(0) @binding(1) var<storage, read> collected: array<vec2<u32>>;
// How many were collected, and 0; then `k` times logit (its bits) and token.
@group(0) @binding(2) var<storage, read_write> best: array<vec2<u32>>;

var<workgroup> list: array<vec2<u32>, MAX_COLLECTED>;

// Whether `a` comes after `b`.
fn is_after(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x < b.x || (a.x == b.x && a.y > b.y);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) lane: u32) {
    let n = min(state[1], MAX_COLLECTED);
    for (var i = lane; i < MAX_COLLECTED; i += THREADS) {
        if i < n {
            list[i] = collected[i];
        } else {
            // After everything else.
            list[i] = vec2(0u, 0xffffffffu);
        }
    }
    for (var size = 2u; size <= MAX_COLLECTED; size *= 2u) {
        for (var step = size / 2u; step > 0u; step /= 2u) {
            workgroupBarrier();
            for (var i = lane; i < MAX_COLLECTED; i += THREADS) {
                let other = i ^ step;
                if other > i {
                    let a = list[i];
                    let b = list[other];
                    // Runs alternate between the wanted order and its opposite.
                    if is_after(a, b) == ((i & size) == 0u) {
                        list[i] = b;
                        list[other] = a;
                    }
                }
            }
        }
    }
    workgroupBarrier();
    for (var i = lane; i < p.k; i += THREADS) {
        best[i + 1u] = vec2(logit_of(list[i].x), list[i].y);
    }
    if lane == 0u {
        best[0] = vec2(state[1], 0u);
    }
}
