//! Attention over the cache, with the softmax taken chunk by chunk.
//!
//! The cache of a layer and KV head is cut at fixed multiples of [`CHUNK`] positions. A chunk's share (maximum, sum of
//! exponentials, weighted values) is computed by itself, and shares are merged in order. Who computes them, alone or
//! with other queries, does not change a bit of the result.
//!
//! The two products (queries with keys, weights with values) come in two [`Scheme`]s: in f32, and in pairs of bf16 where
//! the CPU has that instruction.

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod bf16;
mod f32;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::isa::{Bf16, Isa, LANES};
use super::kv_format::KvFormat;

#[cfg_attr(not(target_arch = "x86_64"), allow(unused_imports))]
pub(crate) use bf16::InBf16;
pub(crate) use f32::InF32;

/// Positions whose scores are computed together.
pub(crate) const CHUNK: usize = 256;
/// Queries that share one pass over keys and values in registers.
pub(crate) const MAX_ROWS: usize = 8;
/// Most queries given to [`chunk`] together, which share what the scheme prepares of a chunk.
pub(crate) const MAX_QUERIES: usize = 128;

/// How the products are computed. `R` queries go through together, with `T` tiles of 16 keys, or `W` times 32 elements of
/// the values: enough independent sums to hide the latency of the additions. None of it changes their order.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Scheme<S: Isa, K: KvFormat> {
    /// Prepares the positions `span` (a multiple of 16 long and at one, inside a chunk) for these queries.
    unsafe fn prepare(cache: &HeadCache, rows: &[QueryRow], span: Range<usize>, work: &mut AttentionWork);
    /// Writes the scores of the queries `first..first + R` against the positions to `work.scores`, `[R][CHUNK]`.
    unsafe fn scores<const R: usize, const T: usize>(
        cache: &HeadCache,
        rows: &[QueryRow],
        first: usize,
        scale: f32,
        span: Range<usize>,
        work: &mut AttentionWork,
    );
    /// Sums values weighted by `work.scores` into `work.partial`, `[R][value_stride]`.
    unsafe fn weigh<const R: usize, const W: usize>(cache: &HeadCache, span: Range<usize>, work: &mut AttentionWork);
    /// `e^x` of numbers up to 0, as exact as the weights have to be.
    unsafe fn exp(x: S::F) -> S::F;
}

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
    /// The tile of keys that a position is in.
    #[inline(always)]
    fn keys<K: KvFormat>(&self, position: usize) -> *mut u8 {
        self.k.wrapping_add(position / LANES * K::key_tile_bytes(self.head_dim))
    }

    /// A position's value.
    #[inline(always)]
    fn values<K: KvFormat>(&self, position: usize) -> *mut u8 {
        self.v.wrapping_add(position * K::value_bytes(self.value_stride))
    }

    /// Stores one position's key and value.
    ///
    /// # Safety
    /// The position is inside the cache, which has format `K`; nobody else uses the position.
    #[inline(always)]
    pub(crate) unsafe fn store<K: KvFormat>(&self, position: usize, key: &[f32], value: &[f32]) {
        // SAFETY: inside the cache as the caller promises.
        unsafe {
            K::store_key(self.keys::<K>(position), position % LANES, key);
            K::store_value(self.values::<K>(position), self.value_stride, value);
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

impl QueryRow {
    /// A place for a query.
    pub(crate) const EMPTY: QueryRow =
        QueryRow { q: std::ptr::null(), sees: (0, 0), out: std::ptr::null_mut(), max: f32::NEG_INFINITY, sum: 0.0 };
}

/// Work memory of one thread.
pub(crate) struct AttentionWork {
    /// Scores, then weights, `[MAX_ROWS][CHUNK]`.
    scores: Vec<f32>,
    /// One chunk's weighted values, `[MAX_ROWS][value_stride]`.
    partial: Vec<f32>,
    /// What the f32 scheme prepares.
    widened: f32::Widened,
    /// What the bf16 scheme prepares.
    converted: bf16::Converted,
}

impl AttentionWork {
    pub(crate) fn new(head_dim: usize) -> AttentionWork {
        let value_stride = head_dim.next_multiple_of(LANES);
        AttentionWork {
            scores: vec![0.0; MAX_ROWS * CHUNK],
            partial: vec![0.0; MAX_ROWS * value_stride],
            widened: f32::Widened::new(head_dim),
            converted: bf16::Converted::new(head_dim),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.scores.len() + self.partial.len()) + self.widened.bytes() + self.converted.bytes()
    }
}

/// Adds the share of chunk `chunk` (positions `chunk * CHUNK..`) to up to [`MAX_QUERIES`] queries.
///
/// # Safety
/// The cache has format `K` and holds all positions seen; the rows' pointers are valid; the CPU has the
/// instruction set.
#[inline(always)]
pub(crate) unsafe fn chunk<S: Isa, K: KvFormat, A: Scheme<S, K>>(
    cache: &HeadCache,
    rows: &mut [QueryRow],
    scale: f32,
    chunk: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as the caller promises; the first constant is the number of rows.
    unsafe {
        let all = seen(rows, chunk);
        if all.is_empty() {
            return;
        }
        A::prepare(cache, rows, all, work);
        let mut first = 0;
        while first < rows.len() {
            let n = match rows.len() - first {
                8.. => rows_of::<S, K, A, 8, 2, 1>(cache, rows, first, scale, chunk, work),
                4..8 => rows_of::<S, K, A, 4, 4, 2>(cache, rows, first, scale, chunk, work),
                3 => rows_of::<S, K, A, 3, 4, 2>(cache, rows, first, scale, chunk, work),
                2 => rows_of::<S, K, A, 2, 4, 4>(cache, rows, first, scale, chunk, work),
                1 => rows_of::<S, K, A, 1, 4, 4>(cache, rows, first, scale, chunk, work),
                0 => return,
            };
            first += n;
        }
    }
}

/// Queries further into a text than this may be computed in bf16: there the time goes into attention. Before it, f32
/// costs little, and short texts keep all of the cache's precision.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const LONG: usize = 1024;

/// As [`chunk`], with queries from [`LONG`] on in bf16: a matter of the query alone, not of its company.
///
/// # Safety
/// As for [`chunk`]; rows are in the order of their positions.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) unsafe fn chunk_mixed<S: Bf16, K: KvFormat>(
    cache: &HeadCache,
    rows: &mut [QueryRow],
    scale: f32,
    chunk: usize,
    work: &mut AttentionWork,
) {
    let (short, long) = rows.split_at_mut(rows.partition_point(|row| row.sees.1 <= LONG));
    // SAFETY: as the caller promises.
    unsafe {
        self::chunk::<S, K, InF32>(cache, short, scale, chunk, work);
        self::chunk::<S, K, InBf16>(cache, long, scale, chunk, work);
    }
}

/// The positions of a chunk that some of the queries see, widened to whole tiles.
fn seen(rows: &[QueryRow], chunk: usize) -> Range<usize> {
    let base = chunk * CHUNK;
    let first = rows.iter().map(|r| r.sees.0).min().unwrap_or(0).max(base) / LANES * LANES;
    let last = rows.iter().map(|r| r.sees.1).max().unwrap_or(0).min(base + CHUNK);
    if first < last { first..first + (last - first).next_multiple_of(LANES) } else { first..first }
}

/// [`chunk`] for the `R` rows from `first` on; returns `R`.
#[inline(always)]
unsafe fn rows_of<S: Isa, K: KvFormat, A: Scheme<S, K>, const R: usize, const T: usize, const W: usize>(
    cache: &HeadCache,
    rows: &mut [QueryRow],
    first: usize,
    scale: f32,
    chunk: usize,
    work: &mut AttentionWork,
) -> usize {
    // SAFETY: as for [`chunk`].
    unsafe {
        let span = seen(&rows[first..first + R], chunk);
        if span.is_empty() {
            return R;
        }
        A::scores::<R, T>(cache, rows, first, scale, span.clone(), work);
        let mut share = [(f32::NEG_INFINITY, 0.0f32); R];
        for r in 0..R {
            let inside = |p: usize| p.saturating_sub(span.start).min(span.len());
            let sees = rows[first + r].sees;
            let scores = &mut work.scores[r * CHUNK..][..span.len()];
            share[r] = soften::<S, K, A>(scores, (inside(sees.0), inside(sees.1)));
        }
        A::weigh::<R, W>(cache, span, work);
        for r in 0..R {
            if share[r].1 != 0.0 {
                let partial = work.partial.as_ptr().add(r * cache.value_stride);
                merge::<S>(&mut rows[first + r], share[r], partial, cache.value_stride);
            }
        }
        R
    }
}

/// Replaces scores by `exp(score - max)` inside `sees` and 0 outside; returns maximum and sum.
#[inline(always)]
unsafe fn soften<S: Isa, K: KvFormat, A: Scheme<S, K>>(scores: &mut [f32], sees: (usize, usize)) -> (f32, f32) {
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
            let e = A::exp(S::f_add(S::f_load(p.add(i)), minus_max));
            S::f_store(p.add(i), e);
            sum = S::f_add(sum, e);
        }
        (max, S::f_sum(sum))
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
