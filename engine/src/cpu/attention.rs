//! Attention over the cache, with the softmax taken chunk by chunk.
//!
//! The cache of a layer and KV head is cut at fixed multiples of [`CHUNK`] positions. A chunk's share (maximum, sum of
//! exponentials, weighted values) is computed by itself, and shares are merged in order. Who computes them, alone or
//! with other queries, does not change a bit of the result.

use super::isa::{Isa, LANES};
use super::kv_format::KvFormat;

/// Positions whose scores are computed together.
pub(crate) const CHUNK: usize = 256;
/// Queries that share one pass over keys and values.
pub(crate) const MAX_ROWS: usize = 8;

/// Where one KV head of one layer lies in the cache.
#[derive(Clone, Copy)]
pub(crate) struct HeadCache {
    /// Keys, `[n_ctx / 16]` tiles; see [`KvFormat`].
    pub(crate) k: *mut u8,
    /// Values, `[n_ctx]` rows of `value_stride` elements, zeros from `head_dim` on.
    pub(crate) v: *mut u8,
    /// Elements of a head.
    pub(crate) head_dim: usize,
    /// Elements of a value's row: `head_dim` rounded up to 16.
    pub(crate) value_stride: usize,
}

impl HeadCache {
    /// Stores one position's key and value.
    ///
    /// # Safety
    /// The position is inside the cache, which has format `K`; nobody else uses the position.
    #[inline(always)]
    pub(crate) unsafe fn store<K: KvFormat>(&self, position: usize, key: &[f32], value: &[f32]) {
        // SAFETY: inside the cache as the caller promises.
        unsafe {
            let tile = self.k.add(position / LANES * K::key_tile_bytes(self.head_dim));
            K::store_key(tile, position % LANES, key);
            K::store_value(self.v.add(position * K::value_bytes(self.value_stride)), self.value_stride, value);
        }
    }
}

/// One query and its running result.
#[derive(Clone, Copy)]
pub(crate) struct QueryRow {
    /// The query, `[head_dim]`.
    pub(crate) q: *const f32,
    /// First and one past the last position it sees.
    pub(crate) sees: (usize, usize),
    /// Weighted values so far, `[value_stride]`, not yet divided by the sum.
    pub(crate) out: *mut f32,
    /// Largest score so far.
    pub(crate) max: f32,
    /// Sum of `exp(score - max)` so far.
    pub(crate) sum: f32,
}

/// Work memory of one thread: scores and one chunk's weighted values.
pub(crate) struct AttentionWork {
    scores: Vec<f32>,
    partial: Vec<f32>,
}

impl AttentionWork {
    pub(crate) fn new(value_stride: usize) -> AttentionWork {
        AttentionWork { scores: vec![0.0; MAX_ROWS * CHUNK], partial: vec![0.0; MAX_ROWS * value_stride] }
    }

    /// Floats of it.
    pub(crate) fn len(value_stride: usize) -> usize {
        MAX_ROWS * (CHUNK + value_stride)
    }
}

/// Adds the share of chunk `chunk` (positions `chunk * CHUNK..`) to up to [`MAX_ROWS`] queries.
///
/// # Safety
/// The cache has format `K` and holds all positions seen; the rows' pointers are valid; the CPU has the
/// instruction set.
#[inline(always)]
pub(crate) unsafe fn chunk<S: Isa, K: KvFormat>(
    cache: &HeadCache,
    rows: &mut [QueryRow],
    scale: f32,
    chunk: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as the caller promises; the constant is the number of rows.
    unsafe {
        match rows.len() {
            8.. => chunk_rows::<S, K, 8>(cache, &mut rows[..8], scale, chunk, work),
            4..8 => {
                let (four, rest) = rows.split_at_mut(4);
                chunk_rows::<S, K, 4>(cache, four, scale, chunk, work);
                if !rest.is_empty() {
                    self::chunk::<S, K>(cache, rest, scale, chunk, work);
                }
            }
            3 => chunk_rows::<S, K, 3>(cache, rows, scale, chunk, work),
            2 => chunk_rows::<S, K, 2>(cache, rows, scale, chunk, work),
            1 => chunk_rows::<S, K, 1>(cache, rows, scale, chunk, work),
            0 => {}
        }
    }
}

/// [`chunk`] for exactly `R` rows.
#[inline(always)]
unsafe fn chunk_rows<S: Isa, K: KvFormat, const R: usize>(
    cache: &HeadCache,
    rows: &mut [QueryRow],
    scale: f32,
    chunk: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`chunk`].
    unsafe {
        let base = chunk * CHUNK;
        let first = rows.iter().map(|r| r.sees.0).min().unwrap_or(0).max(base) / LANES * LANES;
        let last = rows.iter().map(|r| r.sees.1).max().unwrap_or(0).min(base + CHUNK);
        if first >= last {
            return;
        }
        let n = (last - first).next_multiple_of(LANES);
        scores::<S, K, R>(cache, rows, scale, first, n, work);
        let mut share = [(f32::NEG_INFINITY, 0.0f32); R];
        for r in 0..R {
            let sees = (rows[r].sees.0.saturating_sub(first).min(n), rows[r].sees.1.saturating_sub(first).min(n));
            share[r] = soften::<S>(&mut work.scores[r * CHUNK..][..n], sees);
        }
        weigh::<S, K, R>(cache, first, n, work);
        for r in 0..R {
            if share[r].1 != 0.0 {
                let partial = work.partial.as_ptr().add(r * cache.value_stride);
                merge::<S>(&mut rows[r], share[r], partial, cache.value_stride);
            }
        }
    }
}

/// Scores of `R` queries against `n` positions from `first` (a multiple of 16).
#[inline(always)]
unsafe fn scores<S: Isa, K: KvFormat, const R: usize>(
    cache: &HeadCache,
    rows: &[QueryRow],
    scale: f32,
    first: usize,
    n: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`chunk`].
    unsafe {
        let queries: [*const f32; R] = std::array::from_fn(|r| rows[r].q);
        for tile in (0..n).step_by(LANES) {
            let keys = cache.k.add((first + tile) / LANES * K::key_tile_bytes(cache.head_dim));
            let sum = K::dot::<S, R>(keys, cache.head_dim, &queries);
            for r in 0..R {
                S::f_store(work.scores.as_mut_ptr().add(r * CHUNK + tile), S::f_mul(sum[r], S::f_splat(scale)));
            }
        }
    }
}

/// Replaces scores by `exp(score - max)` inside `sees` and 0 outside; returns maximum and sum.
#[inline(always)]
unsafe fn soften<S: Isa>(scores: &mut [f32], sees: (usize, usize)) -> (f32, f32) {
    // SAFETY: whole vectors inside `scores`, whose length is a multiple of 16.
    unsafe {
        scores[..sees.0].fill(f32::NEG_INFINITY);
        scores[sees.1..].fill(f32::NEG_INFINITY);
        let p = scores.as_mut_ptr();
        let mut max = S::f_splat(f32::NEG_INFINITY);
        for i in (0..scores.len()).step_by(LANES) {
            max = S::f_max(max, S::f_load(p.add(i)));
        }
        let max = S::f_max_lane(max);
        if max == f32::NEG_INFINITY {
            scores.fill(0.0);
            return (max, 0.0);
        }
        let minus_max = S::f_splat(-max);
        let mut sum = S::f_splat(0.0);
        for i in (0..scores.len()).step_by(LANES) {
            let e = S::f_exp(S::f_add(S::f_load(p.add(i)), minus_max));
            S::f_store(p.add(i), e);
            sum = S::f_add(sum, e);
        }
        (max, S::f_sum(sum))
    }
}

/// Sums of values weighted by the softened scores, into `work.partial`.
#[inline(always)]
unsafe fn weigh<S: Isa, K: KvFormat, const R: usize>(
    cache: &HeadCache,
    first: usize,
    n: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`chunk`].
    unsafe {
        let stride = cache.value_stride;
        let values = cache.v.add(first * K::value_bytes(stride));
        let mut d = 0;
        while d < stride {
            let two = d + 2 * LANES <= stride;
            let mut sum = [[S::f_splat(0.0); 2]; R];
            for p in 0..n {
                let (v0, v1) = K::value::<S>(values.add(p * K::value_bytes(stride)), stride, d);
                for r in 0..R {
                    let w = S::f_splat(work.scores[r * CHUNK + p]);
                    sum[r][0] = S::f_fma(v0, w, sum[r][0]);
                    sum[r][1] = S::f_fma(v1, w, sum[r][1]);
                }
            }
            for r in 0..R {
                let out = work.partial.as_mut_ptr().add(r * stride + d);
                S::f_store(out, sum[r][0]);
                if two {
                    S::f_store(out.add(LANES), sum[r][1]);
                }
            }
            d += 2 * LANES;
        }
    }
}

/// Merges one chunk's share into a query's running result.
#[inline(always)]
pub(crate) unsafe fn merge<S: Isa>(row: &mut QueryRow, share: (f32, f32), partial: *const f32, stride: usize) {
    // SAFETY: `row.out` and `partial` have `stride` floats, a multiple of 16.
    unsafe {
        let max = row.max.max(share.0);
        let old = S::f_splat((row.max - max).exp());
        let new = S::f_splat((share.0 - max).exp());
        for d in (0..stride).step_by(LANES) {
            let scaled = S::f_mul(S::f_load(row.out.add(d)), old);
            S::f_store(row.out.add(d), S::f_fma(S::f_load(partial.add(d)), new, scaled));
        }
        row.sum = row.sum * (row.max - max).exp() + share.1 * (share.0 - max).exp();
        row.max = max;
    }
}
