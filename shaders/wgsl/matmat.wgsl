// Y = W X for many tokens: one workgroup computes a tile of 64 rows and 16 (WIDE: 64) tokens. Step by step along k, 256 threads
// decode weights and fetch activations into workgroup memory, then each multiplies 4 rows with 1 (4) tokens.
//
// Threads form a square: x picks rows x, x + 16, x + 32, x + 48, y picks token y (and y + 16, y + 32, y + 48 in WIDE
// tiles): neighbours read neighbouring vectors of workgroup memory.
//
// Dispatch: x numbers the tiles of rows, y those of tokens.

#include "product.wgsl"
#include "decode.wgsl"
#include "unit.wgsl"

const ROWS = 64u;
#if WIDE
const TOKENS = 64u;
#else
const TOKENS = 16u;
#endif

#if INT8
// Groups per step, and units of the inner loop in them.
const STEP = 2u;
const UNITS = 2u;
// Of each group and row: quants 0..16, quants 16..32; and scales and minimums of the halves.
var<workgroup> w_quants: array<vec4<u32>, 2 * STEP * ROWS>;
var<workgroup> w_scales: array<vec4<f32>, STEP * ROWS>;
// Of each group and token: as in `acts`.
var<workgroup> x_quants: array<vec4<u32>, 2 * STEP * TOKENS>;
var<workgroup> x_scales: array<vec4<f32>, STEP * TOKENS>;

fn fetch(lane: u32, first_row: u32, first_token: u32, group: u32) {
    // Half of the threads decode a group of weights each, the other half fetches activations.
    if lane < STEP * ROWS {
        let row = lane / STEP;
        let g = group + lane % STEP;
        let to = lane % STEP * ROWS + row;
        var w: Group;
        if g < p.groups {
            w = decode(min(first_row + row, p.n_rows - 1u) * p.row_words, g);
        }
        w_quants[to] = w.low;
        w_quants[STEP * ROWS + to] = w.high;
        w_scales[to] = vec4(w.scale, w.min);
        return;
    }
    for (var i = lane - STEP * ROWS; i < STEP * TOKENS; i += STEP * ROWS) {
        let token = i / STEP;
        let g = group + i % STEP;
        let to = i % STEP * TOKENS + token;
        var a: Acts;
        if g < p.groups {
            a = load_acts(min(first_token + token, p.n_tokens - 1u), g);
        }
        x_quants[to] = a.low;
        x_quants[STEP * TOKENS + to] = a.high;
        x_scales[to] = a.scale;
    }
}

fn weights_at(s: u32, row: u32) -> Group {
    let at = s * ROWS + row;
    let scales = w_scales[at];
    return Group(w_quants[at], w_quants[STEP * ROWS + at], scales.xy, scales.zw);
}

fn acts_at(s: u32, token: u32) -> Acts {
    let at = s * TOKENS + token;
    return Acts(x_quants[at], x_quants[STEP * TOKENS + at], x_scales[at]);
}
#else
// Groups per step, and units of the inner loop in them.
const STEP = 1u;
const UNITS = 8u;
// Weights as f32, in fours: [8][ROWS]; activations: [8][TOKENS].
var<workgroup> w_tile: array<vec4<f32>, 8 * ROWS>;
var<workgroup> x_tile: array<vec4<f32>, 8 * TOKENS>;

fn fetch(lane: u32, first_row: u32, first_token: u32, group: u32) {
#if FLOATS
    for (var i = lane; i < 8u * ROWS; i += THREADS) {
        let row = min(first_row + i / 8u, p.n_rows - 1u) * p.row_words;
        w_tile[i % 8u * ROWS + i / 8u] = float4(row, 8u * group + i % 8u);
    }
#else
    if lane < ROWS {
        let w = decode(min(first_row + lane, p.n_rows - 1u) * p.row_words, group);
        for (var t = 0u; t < 4u; t++) {
            w_tile[t * ROWS + lane] = w.scale.x * vec4<f32>(unpack4xI8(w.low[t])) + w.min.x;
            w_tile[(4u + t) * ROWS + lane] = w.scale.y * vec4<f32>(unpack4xI8(w.high[t])) + w.min.y;
        }
    }
#endif
    for (var i = lane; i < 8u * TOKENS; i += THREADS) {
        let token = p.first + min(first_token + i / 8u, p.n_tokens - 1u);
        x_tile[i % 8u * TOKENS + i / 8u] = acts[token * p.act_stride + 8u * group + i % 8u];
    }
}

fn weights_at(s: u32, row: u32) -> vec4<f32> {
    return w_tile[s * ROWS + row];
}

fn acts_at(s: u32, token: u32) -> vec4<f32> {
    return x_tile[s * TOKENS + token];
}
#endif

#if INT8
alias W = Group;
alias X = Acts;

fn dot_tile(w: W, a: X) -> f32 {
    return dot_unit(w, a);
}
#else
alias W = vec4<f32>;
alias X = vec4<f32>;

fn dot_tile(w: W, a: X) -> f32 {
    return dot(w, a);
}
#endif

fn rows_dot(w0: W, w1: W, w2: W, w3: W, a: X) -> vec4<f32> {
    return vec4(dot_tile(w0, a), dot_tile(w1, a), dot_tile(w2, a), dot_tile(w3, a));
}

fn finish_rows(row: u32, token: u32, sums: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if token < p.n_tokens && row + 16u * i < p.n_rows {
            finish(row + 16u * i, token, sums[i]);
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = id.x * ROWS;
    let first_token = id.y * TOKENS;
    let x = lane % 16u;
    let y = lane / 16u;
    // Of each token its four rows. Written out, for a compiler that leaves loops as they are would keep an array of them
    // in memory.
    var sums0: vec4<f32>;
#if WIDE
    var sums1: vec4<f32>;
    var sums2: vec4<f32>;
    var sums3: vec4<f32>;
#endif
    for (var group = 0u; group < p.groups; group += STEP) {
        fetch(lane, first_row, first_token, group);
        workgroupBarrier();
        for (var s = 0u; s < UNITS; s++) {
            let w0 = weights_at(s, x);
            let w1 = weights_at(s, x + 16u);
            let w2 = weights_at(s, x + 32u);
            let w3 = weights_at(s, x + 48u);
            sums0 += rows_dot(w0, w1, w2, w3, acts_at(s, y));
#if WIDE
            sums1 += rows_dot(w0, w1, w2, w3, acts_at(s, y + 16u));
            sums2 += rows_dot(w0, w1, w2, w3, acts_at(s, y + 32u));
            sums3 += rows_dot(w0, w1, w2, w3, acts_at(s, y + 48u));
#endif
        }
        workgroupBarrier();
    }
    finish_rows(first_row + x, first_token + y, sums0);
#if WIDE
    finish_rows(first_row + x, first_token + y + 16u, sums1);
    finish_rows(first_row + x, first_token + y + 32u, sums2);
    finish_rows(first_row + x, first_token + y + 48u, sums3);
#endif
}
