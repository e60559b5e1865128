//! The products of attention in f32: for few queries straight from the cache, for many from a chunk that was converted once.
//! The numbers are the same, and so are the results.

use std::ops::Range;

use super::super::isa::{Isa, LANES};
use super::super::kv_format::{KvF32, KvFormat, PREFETCH, prefetch};
use super::{AttentionWork, CHUNK, HeadCache, MAX_ROWS, QueryRow, Scheme};

/// Fewest queries that a chunk is converted for: two passes over it.
const WIDEN_FROM: usize = 2 * MAX_ROWS;

/// A chunk in f32, by position inside the chunk, in the layout of [`KvF32`].
pub(super) struct Widened {
    /// Keys, `[CHUNK / 16][head_dim][16]`.
    keys: Vec<f32>,
    /// Values, `[CHUNK][value_stride]`.
    values: Vec<f32>,
    /// Whether the present queries use it.
    used: bool,
}

impl Widened {
    pub(super) fn new(head_dim: usize) -> Widened {
        let padded = head_dim.next_multiple_of(LANES);
        Widened { keys: vec![0.0; CHUNK * head_dim], values: vec![0.0; CHUNK * padded], used: false }
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.keys.len() + self.values.len())
    }

    /// Keys from position `p` on, which begins a tile.
    #[inline(always)]
    fn keys(&self, p: usize, head_dim: usize) -> *const u8 {
        self.keys.as_ptr().wrapping_add(p % CHUNK * head_dim).cast()
    }

    /// Values from position `p` on.
    #[inline(always)]
    fn values(&self, p: usize, stride: usize) -> *const u8 {
        self.values.as_ptr().wrapping_add(p % CHUNK * stride).cast()
    }
}

/// See the module.
pub(crate) struct InF32;

impl<S: Isa, K: KvFormat> Scheme<S, K> for InF32 {
    #[inline(always)]
    unsafe fn prepare(cache: &HeadCache, rows: &[QueryRow], _: f32, span: Range<usize>, work: &mut AttentionWork) {
        let (n, stride) = (cache.head_dim, cache.value_stride);
        let widened = &mut work.widened;
        widened.used = K::WIDENS && rows.len() >= WIDEN_FROM;
        if !widened.used {
            return;
        }
        assert!(widened.keys.len() >= CHUNK * n && widened.values.len() >= CHUNK * stride);
        // SAFETY: the cache holds the span, which is inside one chunk; the buffers have room for a chunk.
        unsafe {
            for p in span.clone().step_by(LANES) {
                let (keys, out) = (cache.keys::<K>(p), widened.keys.as_mut_ptr().add(p % CHUNK * n));
                for d in 0..n {
                    S::f_store(out.add(LANES * d), K::key::<S>(keys, n, d));
                }
            }
            for p in span {
                let (row, out) = (cache.values::<K>(p), widened.values.as_mut_ptr().add(p % CHUNK * stride));
                for d in (0..stride).step_by(2 * LANES) {
                    let (first, second) = K::value::<S>(row, stride, d);
                    S::f_store(out.add(d), first);
                    if d + LANES < stride {
                        S::f_store(out.add(d + LANES), second);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn soften(at: Range<usize>, max: f32, work: &mut AttentionWork) -> S::F {
        // SAFETY: whole vectors inside the scores, whose place the weights take.
        unsafe {
            let minus_max = S::f_splat(-max);
            let mut sum = S::f_splat(0.0);
            for i in at.step_by(LANES) {
                let place = work.scores.as_mut_ptr().add(i);
                let weights = S::f_exp(S::f_add(S::f_load(place), minus_max));
                S::f_store(place, weights);
                sum = S::f_add(sum, weights);
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize, const T: usize>(
        cache: &HeadCache,
        rows: &[QueryRow],
        first: usize,
        scale: f32,
        span: Range<usize>,
        work: &mut AttentionWork,
    ) {
        // SAFETY: rows and cache as [`super::chunk`]'s caller promises; `R` rows from `first` on, scores for a chunk each.
        unsafe {
            let mut queries = [std::ptr::null(); R];
            for r in 0..R {
                queries[r] = rows[first + r].q;
            }
            let bytes = K::key_tile_bytes(cache.head_dim);
            let (mut tile, end) = (0, span.len() / LANES);
            while tile < end {
                let out = work.scores.as_mut_ptr().add(tile * LANES);
                if K::WIDENS && work.widened.used {
                    let keys = work.widened.keys(span.start + tile * LANES, cache.head_dim);
                    tile += some_tiles::<S, KvF32, R, T>(keys, cache.head_dim, &queries, scale, end - tile, out);
                    continue;
                }
                let keys = cache.keys::<K>(span.start).add(tile * bytes);
                // Decoding one query at a time waits for memory; many queries find the keys in the cache.
                if R < MAX_ROWS {
                    prefetch::<S>(keys.wrapping_add(PREFETCH), T * bytes);
                }
                tile += some_tiles::<S, K, R, T>(keys, cache.head_dim, &queries, scale, end - tile, out);
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<const R: usize, const W: usize>(cache: &HeadCache, span: Range<usize>, work: &mut AttentionWork) {
        // SAFETY: the cache holds the span, and `scores` a weight of each of its positions for `R` rows.
        unsafe {
            let stride = cache.value_stride;
            if K::WIDENS && work.widened.used {
                return all_columns::<S, KvF32, R, W>(
                    work.widened.values(span.start, stride),
                    stride,
                    span.len(),
                    work,
                );
            }
            let values = cache.values::<K>(span.start);
            if R < MAX_ROWS {
                prefetch::<S>(values, PREFETCH);
            }
            all_columns::<S, K, R, W>(values, stride, span.len(), work);
        }
    }
}

/// Scores against `T` tiles where that many are `left`, else one; returns how many.
#[inline(always)]
unsafe fn some_tiles<S: Isa, K: KvFormat, const R: usize, const T: usize>(
    keys: *const u8,
    head_dim: usize,
    queries: &[*const f32; R],
    scale: f32,
    left: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: as for [`Scheme::scores`].
    unsafe {
        if left >= T {
            tiles::<S, K, R, T>(keys, head_dim, queries, scale, out);
            return T;
        }
        tiles::<S, K, R, 1>(keys, head_dim, queries, scale, out);
        1
    }
}

/// Scores of `R` queries against `T` tiles of 16 keys; `out` is `[R][CHUNK]`.
#[inline(always)]
unsafe fn tiles<S: Isa, K: KvFormat, const R: usize, const T: usize>(
    keys: *const u8,
    head_dim: usize,
    queries: &[*const f32; R],
    scale: f32,
    out: *mut f32,
) {
    // SAFETY: as for [`Scheme::scores`].
    unsafe {
        let mut tiles = [keys; T];
        for t in 1..T {
            tiles[t] = keys.add(t * K::key_tile_bytes(head_dim));
        }
        let sum = K::dot::<S, R, T>(&tiles, head_dim, queries);
        for t in 0..T {
            for r in 0..R {
                S::f_store(out.add(r * CHUNK + t * LANES), S::f_mul(sum[t][r], S::f_splat(scale)));
            }
        }
    }
}

/// Weighted sums of all elements of `n` values.
#[inline(always)]
unsafe fn all_columns<S: Isa, K: KvFormat, const R: usize, const W: usize>(
    values: *const u8,
    stride: usize,
    n: usize,
    work: &mut AttentionWork,
) {
    let mut d = 0;
    while d < stride {
        // SAFETY: as for [`Scheme::weigh`].
        unsafe {
            if d + 2 * W * LANES <= stride {
                columns::<S, K, R, W>(values, stride, d, n, work);
                d += 2 * W * LANES;
            } else {
                columns::<S, K, R, 1>(values, stride, d, n, work);
                d += 2 * LANES;
            }
        }
    }
}

/// Weighted sums of elements `d..d + 32 W` of `n` values.
#[inline(always)]
unsafe fn columns<S: Isa, K: KvFormat, const R: usize, const W: usize>(
    values: *const u8,
    stride: usize,
    d: usize,
    n: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`Scheme::weigh`].
    unsafe {
        let mut sum = [[[S::f_splat(0.0); 2]; W]; R];
        for p in 0..n {
            let row = values.add(p * K::value_bytes(stride));
            for w in 0..W {
                let (v0, v1) = K::value::<S>(row, stride, d + 2 * w * LANES);
                for r in 0..R {
                    let weight = S::f_splat(*work.scores.as_ptr().add(r * CHUNK + p));
                    sum[r][w][0] = S::f_fma(v0, weight, sum[r][w][0]);
                    sum[r][w][1] = S::f_fma(v1, weight, sum[r][w][1]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                let at = d + 2 * w * LANES;
                let out = work.partial.as_mut_ptr().add(r * stride + at);
                S::f_store(out, sum[r][w][0]);
                if at + 2 * LANES <= stride {
                    S::f_store(out.add(LANES), sum[r][w][1]);
                }
            }
        }
    }
}
