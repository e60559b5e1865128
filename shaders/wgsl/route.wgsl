// Routing: the N_USED experts with the largest logits (of equal ones the first) get their softmax as weight, the others 0.
//
// Dispatch: x numbers the tokens.

struct Params {
    n_used: u32,
    // 1: the weights of the chosen sum to 1.
    normalize: u32,
}

var<immediate> p: Params;

// Logits, then weights, [token][EXPERTS].
@group(0) @binding(0) var<storage, read_write> routing: array<f32>;
// Of each token the chosen, ascending: expert, and weight as bits.
@group(0) @binding(1) var<storage, read_write> chosen: array<vec2<u32>>;

var<workgroup> logits: array<f32, EXPERTS>;
// 1 for those chosen.
var<workgroup> taken: array<u32, EXPERTS>;
// Of each thread's experts the best one, and its logit.
var<workgroup> best: array<u32, THREADS>;
var<workgroup> peaks: array<f32, THREADS>;
var<workgroup> highest: f32;

#include "sum.wgsl"

const NONE = 0xffffffffu;

// What is no number comes first, so that it shows in the result.
fn order_of(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    return select(x, 3.4028234e38, (bits & 0x7fffffffu) > 0x7f800000u);
}

// Finds the best expert that is not taken, and takes it. All threads together.
fn take_best(lane: u32, is_first: bool) {
    var own = NONE;
    var peak = 0.0;
    for (var e = lane; e < EXPERTS; e += THREADS) {
        let x = order_of(logits[e]);
        if taken[e] == 0u && (own == NONE || x > peak) {
            own = e;
            peak = x;
        }
    }
    best[lane] = own;
    peaks[lane] = peak;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            let other = best[lane + half];
            let mine = best[lane];
            let is_higher = peaks[lane + half] > peaks[lane];
            let is_equal = peaks[lane + half] == peaks[lane];
            if other != NONE && (mine == NONE || is_higher || (is_equal && other < mine)) {
                best[lane] = other;
                peaks[lane] = peaks[lane + half];
            }
        }
    }
    workgroupBarrier();
    if lane == 0u {
        taken[best[0]] = 1u;
        if is_first {
            highest = peaks[0];
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = id.x * EXPERTS;
    for (var e = lane; e < EXPERTS; e += THREADS) {
        logits[e] = routing[row + e];
        taken[e] = 0u;
    }
    workgroupBarrier();
    for (var i = 0u; i < p.n_used; i++) {
        take_best(lane, i == 0u);
    }
    var share = 0.0;
    for (var e = lane; e < EXPERTS; e += THREADS) {
        let weight = exp(logits[e] - highest);
        logits[e] = weight;
        if p.normalize == 0u || taken[e] == 1u {
            share += weight;
        }
    }
    let total = sum_all(share, lane);
    for (var e = lane; e < EXPERTS; e += THREADS) {
        var weight = 0.0;
        if taken[e] == 1u {
            weight = logits[e] / total;
            var place = 0u;
            for (var i = 0u; i < e; i++) {
                place += taken[i];
            }
            chosen[id.x * p.n_used + place] = vec2(e, bitcast<u32>(weight));
        }
        routing[row + e] = weight;
    }
}
