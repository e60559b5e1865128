// y = W x for few tokens: one workgroup computes 4 rows for COLS tokens, its THREADS threads sharing out the units of
// each row. Weights are read once, neighbouring threads reading neighbouring words.
//
// Dispatch: (x, y) number the groups of 4 rows, z the groups of COLS tokens.

#include "product.wgsl"
#include "decode.wgsl"
#include "unit.wgsl"

#if SUBGROUPS
// Sums of the subgroups; none has fewer than 4 threads.
var<workgroup> shares: array<vec4<f32>, THREADS / 4 * COLS>;
#else
var<workgroup> shares: array<vec4<f32>, THREADS * COLS>;
#endif

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
#if SUBGROUPS
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) n_subgroups: u32,
#endif
) {
    let first_row = 4u * (id.x + id.y * count.x);
    if first_row >= p.n_rows {
        return;
    }
    let first_token = COLS * id.z;
    // Rows and tokens beyond the end repeat the last one; their results are not written.
    let rows = min(vec4(first_row) + vec4(0u, 1u, 2u, 3u), vec4(p.n_rows - 1u)) * p.row_words;
    var sums: array<vec4<f32>, COLS>;
    for (var u = lane; u < units(); u += THREADS) {
        let w0 = load_weights(rows.x, u);
        let w1 = load_weights(rows.y, u);
        let w2 = load_weights(rows.z, u);
        let w3 = load_weights(rows.w, u);
        for (var c = 0u; c < COLS; c++) {
            let a = load_acts(min(first_token + c, p.n_tokens - 1u), u);
            sums[c] += vec4(dot_unit(w0, a), dot_unit(w1, a), dot_unit(w2, a), dot_unit(w3, a));
        }
    }

#if SUBGROUPS
    for (var c = 0u; c < COLS; c++) {
        sums[c] = subgroupAdd(sums[c]);
    }
    if n_subgroups > 1u {
        if subgroup_lane == 0u {
            for (var c = 0u; c < COLS; c++) {
                shares[subgroup * COLS + c] = sums[c];
            }
        }
        workgroupBarrier();
        for (var c = 0u; c < COLS; c++) {
            var sum = shares[c];
            for (var s = 1u; s < n_subgroups; s++) {
                sum += shares[s * COLS + c];
            }
            sums[c] = sum;
        }
    }
#else
    for (var c = 0u; c < COLS; c++) {
        shares[lane * COLS + c] = sums[c];
    }
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            for (var c = 0u; c < COLS; c++) {
                shares[lane * COLS + c] += shares[(lane + half) * COLS + c];
            }
        }
    }
    workgroupBarrier();
    for (var c = 0u; c < COLS; c++) {
        sums[c] = shares[c];
    }
#endif

    if lane < 4u && first_row + lane < p.n_rows {
        for (var c = 0u; c < COLS; c++) {
            if first_token + c < p.n_tokens {
                finish(first_row + lane, first_token + c, sums[c][lane]);
            }
        }
    }
}
