// Y = W X for many tokens: one workgroup computes a tile of 64 rows and 16 (WIDE: 64) tokens. Step by step along k, 256 threads
// decode weights and fetch activations into workgroup memory, then each multiplies 4 rows with 1 (4) tokens.
//
// Threads form a square: x picks rows x, x + 16, x + 32, x + 48, y picks token y (and y + 16, y + 32, y + 48 in WIDE
// tiles): neighbours read neighbouring vectors of workgroup memory.
//
// Dispatch: as `tile.wgsl` says.

#include "product.wgsl"
#include "decode.wgsl"
#include "unit.wgsl"
#include "tile.wgsl"

#if INT8
// Groups per step, and units of the inner loop in them.
#if TWICE
// Fewer, for activations take twice the workgroup memory.
const STEP = 1u;
const PARTS = 2u;
#else
const STEP = 2u;
const PARTS = 1u;
#endif
const UNITS = STEP;
// Of each group and row: quants 0..16, quants 16..32; and scales and minimums of the halves.
var<workgroup> w_quants: array<vec4<u32>, 2 * STEP * ROWS>;
var<workgroup> w_scales: array<vec4<f32>, STEP * ROWS>;
// Of each group and token: as in `acts`; TWICE: those of what is left over behind them.
var<workgroup> x_quants: array<vec4<u32>, 2 * PARTS * STEP * TOKENS>;
var<workgroup> x_scales: array<vec4<f32>, PARTS * STEP * TOKENS>;

fn fetch(lane: u32, tile: Tile, group: u32) {
    // A thread for each row and group decodes weights, the others fetch activations.
    if lane < STEP * ROWS {
        let row = lane / STEP;
        let g = group + lane % STEP;
        let to = lane % STEP * ROWS + row;
        var w: Group;
        if g < p.groups {
            w = decode(weight_row(tile, row), g);
        }
        w_quants[to] = w.low;
        w_quants[STEP * ROWS + to] = w.high;
        w_scales[to] = vec4(w.scale, w.min);
        return;
    }
    for (var i = lane - STEP * ROWS; i < STEP * TOKENS; i += THREADS - STEP * ROWS) {
        let token = i / STEP;
        let g = group + i % STEP;
        let to = i % STEP * TOKENS + token;
        var a: Acts;
        if g < p.groups {
            a = load_acts(act_row(tile, token), g);
        }
        x_quants[to] = a.low;
        x_quants[STEP * TOKENS + to] = a.high;
        x_scales[to] = a.scale;
#if TWICE
        x_quants[2u * STEP * TOKENS + to] = a.rest_low;
        x_quants[3u * STEP * TOKENS + to] = a.rest_high;
        x_scales[STEP * TOKENS + to] = a.rest_scale;
#endif
    }
}

fn weights_at(s: u32, row: u32) -> Group {
    let at = s * ROWS + row;
    let scales = w_scales[at];
    return Group(w_quants[at], w_quants[STEP * ROWS + at], scales.xy, scales.zw);
}

fn acts_at(s: u32, token: u32) -> Acts {
    let at = s * TOKENS + token;
#if TWICE
    let rest = at + STEP * TOKENS;
    let rest_high = x_quants[2u * STEP * TOKENS + rest];
    return Acts(
        x_quants[at], x_quants[rest], x_scales[at], x_quants[STEP * TOKENS + rest], rest_high, x_scales[rest],
    );
#else
    return Acts(x_quants[at], x_quants[STEP * TOKENS + at], x_scales[at]);
#endif
}
#else
// Groups per step, and units of the inner loop in them.
const STEP = 1u;
const UNITS = 8u;
// Weights as f32, in fours: [8][ROWS]; activations: [8][TOKENS].
var<workgroup> w_tile: array<vec4<f32>, 8 * ROWS>;
var<workgroup> x_tile: array<vec4<f32>, 8 * TOKENS>;

fn fetch(lane: u32, tile: Tile, group: u32) {
#if FLOATS
    for (var i = lane; i < 8u * ROWS; i += THREADS) {
        let row = weight_row(tile, i / 8u);
        w_tile[i % 8u * ROWS + i / 8u] = float4(row, 8u * group + i % 8u);
    }
#else
    if lane < ROWS {
        let w = decode(weight_row(tile, lane), group);
        for (var t = 0u; t < 4u; t++) {
            w_tile[t * ROWS + lane] = w.scale.x * vec4<f32>(unpack4xI8(w.low[t])) + w.min.x;
            w_tile[(4u + t) * ROWS + lane] = w.scale.y * vec4<f32>(unpack4xI8(w.high[t])) + w.min.y;
        }
    }
#endif
    for (var i = lane; i < 8u * TOKENS; i += THREADS) {
        let token = p.first + act_row(tile, i / 8u);
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

fn finish_rows(tile: Tile, x: u32, token: u32, sums: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        finish_at(tile, x + 16u * i, token, sums[i]);
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
#if EXPERTS
    // Here and not in a function: a kernel must be seen to return by whole workgroups.
    if id.y >= tiles[0].x {
        return;
    }
    if tiles[id.y + 1u].x - p.first_expert >= p.n_experts {
        return;
    }
#endif
    let tile = tile_at(id.x, id.y);
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
        fetch(lane, tile, group);
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
    finish_rows(tile, x, y, sums0);
#if WIDE
    finish_rows(tile, x, y + 16u, sums1);
    finish_rows(tile, x, y + 32u, sums2);
    finish_rows(tile, x, y + 48u, sums3);
#endif
}
