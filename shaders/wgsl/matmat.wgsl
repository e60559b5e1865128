// Y = W X for many tokens: one workgroup computes a tile of 64 rows and TOKENS tokens. Step by step along k, 256 threads
// decode weights and fetch activations into workgroup memory, then each multiplies 4 rows with TOKENS / 16 tokens.
//
// Threads form a square: x picks rows x, x + 16, x + 32, x + 48, y picks tokens y, y + 16, ...: neighbours read
// neighbouring vectors of workgroup memory.
//
// Dispatch: x numbers the tiles of rows, y those of tokens.

#include "product.wgsl"
#include "decode.wgsl"
#include "unit.wgsl"

const ROWS = 64u;
const PER_THREAD = TOKENS / 16u;

#if INT8
// Groups per step.
const STEP = 2u;
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

fn multiply(sums: ptr<function, array<vec4<f32>, PER_THREAD>>, x: u32, y: u32) {
    for (var s = 0u; s < STEP; s++) {
        let w0 = weights_at(s, x);
        let w1 = weights_at(s, x + 16u);
        let w2 = weights_at(s, x + 32u);
        let w3 = weights_at(s, x + 48u);
        for (var j = 0u; j < PER_THREAD; j++) {
            let at = s * TOKENS + y + 16u * j;
            let a = Acts(x_quants[at], x_quants[STEP * TOKENS + at], x_scales[at]);
            (*sums)[j] += vec4(dot_unit(w0, a), dot_unit(w1, a), dot_unit(w2, a), dot_unit(w3, a));
        }
    }
}
#else
// Groups per step.
const STEP = 1u;
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

fn multiply(sums: ptr<function, array<vec4<f32>, PER_THREAD>>, x: u32, y: u32) {
    for (var t = 0u; t < 8u; t++) {
        let w0 = w_tile[t * ROWS + x];
        let w1 = w_tile[t * ROWS + x + 16u];
        let w2 = w_tile[t * ROWS + x + 32u];
        let w3 = w_tile[t * ROWS + x + 48u];
        for (var j = 0u; j < PER_THREAD; j++) {
            let a = x_tile[t * TOKENS + y + 16u * j];
            (*sums)[j] += vec4(dot(w0, a), dot(w1, a), dot(w2, a), dot(w3, a));
        }
    }
}
#endif

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = id.x * ROWS;
    let first_token = id.y * TOKENS;
    let x = lane % 16u;
    let y = lane / 16u;
    var sums: array<vec4<f32>, PER_THREAD>;
    for (var group = 0u; group < p.groups; group += STEP) {
        fetch(lane, first_row, first_token, group);
        workgroupBarrier();
        multiply(&sums, x, y);
        workgroupBarrier();
    }
    for (var j = 0u; j < PER_THREAD; j++) {
        let token = first_token + y + 16u * j;
        for (var i = 0u; i < 4u; i++) {
            let row = first_row + x + 16u * i;
            if token < p.n_tokens && row < p.n_rows {
                finish(row, token, sums[j][i]);
            }
        }
    }
}
