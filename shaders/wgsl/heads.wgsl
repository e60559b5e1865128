// What is done to each head of Q, K and V between their projections and attention: RMS norm, rotation, and storing keys
// and values in the cache. Any of the three may be left out.
//
// Dispatch: x numbers the tokens, y the heads: `q_heads` of Q, then `kv_heads` of K, then as many of V.

struct Params {
    // Floats from one row of `qkv` to the next.
    stride: u32,
    // Heads of Q in all, and of K (and of V).
    n_head: u32,
    n_head_kv: u32,
    // Heads of Q done here: all or none.
    q_heads: u32,
    // Heads of K and of V done here: those whose cache is bound.
    kv_first: u32,
    kv_heads: u32,
    // Position of the first token.
    start: u32,
    // Tiles of 32 positions in the cache.
    tiles: u32,
    // Pairs of a head that are rotated; index in `angles` of the first token's.
    n_pairs: u32,
    angle: u32,
    // Epsilons of the norms of Q and K.
    q_eps: f32,
    k_eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
#if NORM
@group(0) @binding(1) var<storage, read> q_weight: array<f32>;
@group(0) @binding(2) var<storage, read> k_weight: array<f32>;
#endif
#if ROPE
// Cosine and sine of each token and pair.
@group(0) @binding(3) var<storage, read> angles: array<vec2<f32>>;
#endif

// The head at hand, up to a whole group of 32; zeros beyond its end.
var<workgroup> elements: array<f32, (QUADS + 7) / 8 * 32>;

#include "sum.wgsl"
#if STORE
#include "kv.wgsl"
#endif

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let is_q = id.y < p.q_heads;
    let is_k = !is_q && id.y < p.q_heads + p.kv_heads;
    // Head within Q, K or V, and within the row.
    var head = id.y;
    var place = head;
    if is_k {
        head = p.kv_first + id.y - p.q_heads;
        place = p.n_head + head;
    } else if !is_q {
        head = p.kv_first + id.y - p.q_heads - p.kv_heads;
        place = p.n_head + p.n_head_kv + head;
    }
    let at = id.x * p.stride + place * HEAD_DIM;
    for (var i = lane; i < (QUADS + 7u) / 8u * 32u; i += THREADS) {
        if i < HEAD_DIM {
            elements[i] = qkv[at + i];
        } else {
            elements[i] = 0.0;
        }
    }
    workgroupBarrier();
    // V is only stored. The branches are the same for all threads of a workgroup.
    if is_q || is_k {
#if NORM
        normalize_head(is_q, lane);
#endif
#if ROPE
        rotate_head(id.x, lane);
#endif
        for (var i = lane; i < HEAD_DIM; i += THREADS) {
            qkv[at + i] = elements[i];
        }
    }
#if STORE
    if !is_q {
        store(head - p.kv_first, p.start + id.x, is_k, lane);
    }
#endif
}

#if NORM
fn normalize_head(is_q: bool, lane: u32) {
    var squares = 0.0;
    for (var i = lane; i < HEAD_DIM; i += THREADS) {
        squares += elements[i] * elements[i];
    }
    let mean = sum_all(squares, lane) / f32(HEAD_DIM);
    let scale = 1.0 / sqrt(mean + select(p.k_eps, p.q_eps, is_q));
    for (var i = lane; i < HEAD_DIM; i += THREADS) {
        var weight = 0.0;
        if is_q {
            weight = q_weight[i];
        } else {
            weight = k_weight[i];
        }
        elements[i] *= scale * weight;
    }
    workgroupBarrier();
}
#endif

#if ROPE
fn rotate_head(token: u32, lane: u32) {
    for (var i = lane; i < p.n_pairs; i += THREADS) {
#if NEOX
        let a = i;
        let b = i + p.n_pairs;
#else
        let a = 2u * i;
        let b = a + 1u;
#endif
        let turn = angles[p.angle + token * p.n_pairs + i];
        let x = elements[a];
        let y = elements[b];
        elements[a] = x * turn.x - y * turn.y;
        elements[b] = x * turn.y + y * turn.x;
    }
    workgroupBarrier();
}
#endif
