// A = softmax(scale Q K^T) V over the cache, for ROWS queries of one KV head at a time, with a running maximum and sum
// (online softmax): scores are never kept for more than THREADS positions.
//
// Per step, each thread scores one position against all queries; then each takes 4 elements of the mix, for some of the
// queries, and runs through the positions.
//
// The queries of a KV head are its GROUP heads of each token, token by token. With SHARES a workgroup sees only a share of
// the positions, and leaves its running state for `merge.wgsl`. With QUANTIZE results are also written as int8.
//
// Dispatch: x numbers the tiles of ROWS queries, y the KV heads, z the shares.

struct Params {
    // Position of the first token; tokens.
    start: u32,
    n_tokens: u32,
    // Floats from one row of Q to the next, and of A.
    q_stride: u32,
    a_stride: u32,
    // KV heads whose cache is bound begin with this one.
    kv_first: u32,
    // Tiles of 32 positions in the cache.
    tiles: u32,
    // Most positions that a query sees, its own included; 0: all.
    window: u32,
    // First position of the first share, and positions of a share: multiples of THREADS.
    origin: u32,
    share: u32,
    n_shares: u32,
    scale: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
#if SHARES
// Of each query and share: the mix, not yet divided by the sum; then a vector of maximum and sum.
@group(0) @binding(4) var<storage, read_write> partial: array<vec4<f32>>;
#else
@group(0) @binding(4) var<storage, read_write> attended: array<f32>;
#endif
#if QUANTIZE
#include "quantize_quad.wgsl"
#endif

#include "kv.wgsl"

// Threads that find a query's maximum together.
const PER_ROW = THREADS / ROWS;
// Queries that are mixed side by side, and how many of them a thread does one after the other.
const SIDE = THREADS / QUADS;
const MINE = (ROWS + SIDE - 1u) / SIDE;
// Lower than any score.
const LOWEST = -3.0e38;

var<workgroup> queries: array<vec4<f32>, ROWS * QUADS>;
// Scores, then weights.
var<workgroup> scores: array<f32, ROWS * THREADS>;
var<workgroup> highest_of: array<f32, THREADS>;
var<workgroup> maxima: array<f32, ROWS>;
// What earlier weights are multiplied with after a new maximum.
var<workgroup> corrections: array<f32, ROWS>;

// The first position that a query at `position` sees.
fn first_seen(position: u32) -> u32 {
    return select(0u, position + 1u - min(position + 1u, p.window), p.window > 0u);
}

fn load_queries(first: u32, n_queries: u32, kv_head: u32, lane: u32) {
    for (var i = lane; i < ROWS * QUADS; i += THREADS) {
        let query = min(first + i / QUADS, n_queries - 1u);
        let head = kv_head * GROUP + query % GROUP;
        let at = query / GROUP * p.q_stride + head * HEAD_DIM;
        var quad = vec4(0.0);
        for (var e = 0u; e < 4u; e++) {
            let d = 4u * (i % QUADS) + e;
            if d < HEAD_DIM {
                quad[e] = p.scale * qkv[at + d];
            }
        }
        queries[i] = quad;
    }
    for (var r = lane; r < ROWS; r += THREADS) {
        maxima[r] = LOWEST;
    }
}

// Scores of one position, for all queries.
fn score(head: u32, position: u32, lane: u32, exists: bool) {
    var sums: array<f32, ROWS>;
    if exists {
        for (var j = 0u; j < QUADS; j++) {
            let k = key(head, position, j);
            for (var r = 0u; r < ROWS; r++) {
                sums[r] += dot(k, queries[r * QUADS + j]);
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        scores[r * THREADS + lane] = sums[r];
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n_queries = p.n_tokens * GROUP;
    let first = id.x * ROWS;
    let last = min(first + ROWS, n_queries) - 1u;
    let kv_head = p.kv_first + id.y;
    load_queries(first, n_queries, kv_head, lane);
    // Positions that any of these queries sees, and of them the share.
    let origin = p.origin + id.z * p.share;
    let begin = max(first_seen(p.start + first / GROUP), origin);
    let end = min(p.start + last / GROUP + 1u, origin + p.share);

    let quad = lane % QUADS;
    let side = lane / QUADS;
    var mix: array<vec4<f32>, MINE>;
    var total: array<f32, MINE>;
    workgroupBarrier();
    for (var tile = begin / THREADS * THREADS; tile < end; tile += THREADS) {
        let position = tile + lane;
        score(id.y, position, lane, position < end);
        // Which queries see it.
        var sees: array<bool, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let own = p.start + min(first + r, last) / GROUP;
            sees[r] = position >= max(first_seen(own), begin) && position <= own && position < end;
            if !sees[r] {
                scores[r * THREADS + lane] = LOWEST;
            }
        }
        workgroupBarrier();
        var peak = LOWEST;
        for (var i = lane % PER_ROW; i < THREADS; i += PER_ROW) {
            peak = max(peak, scores[lane / PER_ROW * THREADS + i]);
        }
        highest_of[lane] = peak;
        workgroupBarrier();
        if lane < ROWS {
            var highest = maxima[lane];
            for (var i = 0u; i < PER_ROW; i++) {
                highest = max(highest, highest_of[lane * PER_ROW + i]);
            }
            corrections[lane] = exp(maxima[lane] - highest);
            maxima[lane] = highest;
        }
        workgroupBarrier();
        for (var r = 0u; r < ROWS; r++) {
            var weight = 0.0;
            if sees[r] {
                weight = exp(scores[r * THREADS + lane] - maxima[r]);
            }
            scores[r * THREADS + lane] = weight;
        }
        workgroupBarrier();
        if side < SIDE {
            for (var i = 0u; i < MINE; i++) {
                let correction = corrections[min(side + i * SIDE, ROWS - 1u)];
                mix[i] *= correction;
                total[i] *= correction;
            }
            let skip = max(begin, tile) - tile;
            let to = min(end - tile, THREADS);
            for (var at = skip; at < to; at++) {
                let v = value(id.y, tile + at, quad);
                for (var i = 0u; i < MINE; i++) {
                    let weight = scores[min(side + i * SIDE, ROWS - 1u) * THREADS + at];
                    mix[i] += weight * v;
                    total[i] += weight;
                }
            }
        }
        workgroupBarrier();
    }

    for (var i = 0u; i < MINE; i++) {
        let r = side + i * SIDE;
        let query = first + r;
        let exists = side < SIDE && r < ROWS && query <= last;
#if SHARES
        if exists {
            let at = ((kv_head * n_queries + query) * p.n_shares + id.z) * (QUADS + 1u);
            partial[at + quad] = mix[i];
            if quad == 0u {
                partial[at + QUADS] = vec4(maxima[r], total[i], 0.0, 0.0);
            }
        }
#else
        let done = mix[i] / total[i];
        let row = query / GROUP;
        let column = (kv_head * GROUP + query % GROUP) * HEAD_DIM + 4u * quad;
        for (var e = 0u; e < 4u; e++) {
            if exists && 4u * quad + e < HEAD_DIM {
                attended[row * p.a_stride + column + e] = done[e];
            }
        }
#if QUANTIZE
        quantize_quad(done, (row * p.a_stride + column) / 32u, lane, exists);
#endif
#endif
    }
}
