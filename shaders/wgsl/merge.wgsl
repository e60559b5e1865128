// Puts together what the workgroups of `attend.wgsl` made of their shares of the positions. With QUANTIZE results are also
// written as int8.
//
// Dispatch: x numbers the queries of a KV head, y the KV heads.

struct Params {
    n_queries: u32,
    n_shares: u32,
    // Floats from one row of A to the next.
    a_stride: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> partial: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> attended: array<f32>;
#if QUANTIZE
#include "quantize_quad.wgsl"
#endif

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let share = QUADS + 1u;
    let first = (id.y * p.n_queries + id.x) * p.n_shares * share;
    var highest = partial[first + QUADS].x;
    for (var s = 1u; s < p.n_shares; s++) {
        highest = max(highest, partial[first + s * share + QUADS].x);
    }
    let head = id.y * GROUP + id.x % GROUP;
    let at = id.x / GROUP * p.a_stride + head * HEAD_DIM;
    // All threads go the same number of times: those beyond the last quad take part in quantizing.
    for (var from_quad = 0u; from_quad < QUADS; from_quad += THREADS) {
        let quad = from_quad + lane;
        let exists = quad < QUADS;
        var mix = vec4(0.0);
        var total = 0.0;
        for (var s = 0u; s < p.n_shares; s++) {
            let state = partial[first + s * share + QUADS];
            let weight = exp(state.x - highest);
            mix += weight * partial[first + s * share + min(quad, QUADS - 1u)];
            total += weight * state.y;
        }
        let done = mix / total;
        for (var e = 0u; e < 4u; e++) {
            if 4u * quad + e < HEAD_DIM {
                attended[at + 4u * quad + e] = done[e];
            }
        }
#if QUANTIZE
        quantize_quad(done, (at + 4u * quad) / 32u, lane, exists);
#endif
    }
}
