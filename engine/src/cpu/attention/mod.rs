//! Attention over the cache, with the softmax taken chunk by chunk.
//!
//! The cache of a layer and KV head is cut at fixed multiples of [`CHUNK`] positions. A chunk's share (maximum, sum of
//! exponentials, weighted values) is computed by itself, and shares are merged in order. Who computes them, alone or
//! with other queries, does not change a bit of the result.
//!
//! The two products (queries with keys, weights with values) come in three [`Scheme`]s: in f32, and in pairs of bf16 or in
//! f16 where the CPU has such instructions and the numbers allow it ([`chunk_mixed`]).

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod bf16;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod f16;
mod f32;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::isa::{Isa, LANES};
use super::kv_format::KvFormat;

#[cfg_attr(not(target_arch = "x86_64"), allow(unused_imports))]
pub(crate) use bf16::InBf16;
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_imports))]
pub(crate) use f16::InF16;
pub(crate) use f32::InF32;

/// Positions whose scores are computed together.
pub(crate) const CHUNK: usize = 256;
/// Queries that share one pass over keys and values in registers.
pub(crate) const MAX_ROWS: usize = 8;
/// Most queries given to [`chunk`] together, which share what the scheme prepares of a chunk.
pub(crate) const MAX_QUERIES: usize = 256;

/// How the products are computed. `R` queries go through together, with `T` tiles of keys, or `W` pairs of vectors of the
/// values: enough independent sums to hide the latency of the additions. None of it changes their order.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Scheme<S: Isa, K: KvFormat> {
    /// Spans of positions are inside a chunk, and begin and end at multiples of this.
    const GRAIN: usize = LANES;
    /// Prepares the positions `span` for these queries.
    unsafe fn prepare(cache: &HeadCache, rows: &[QueryRow], scale: f32, span: Range<usize>, work: &mut AttentionWork);
    /// Writes the scores of the queries `first..first + R` against the positions to `work.scores`, `[R][CHUNK]`.
    unsafe fn scores<const R: usize, const T: usize>(
        cache: &HeadCache,
        rows: &[QueryRow],
        first: usize,
        scale: f32,
        span: Range<usize>,
        work: &mut AttentionWork,
    );
    /// Makes the scores `at` of `[R][CHUNK]`, a whole number of grains, the weights `exp(score - max)`, as exact as they have to be,
    /// and stores them; returns sums of some of them, which together are the sum of all.
    unsafe fn soften(at: Range<usize>, max: f32, work: &mut AttentionWork) -> S::F;
    /// Sums values times the weights stored into `work.partial`, `[R][value_stride]`.
    unsafe fn weigh<const R: usize, const W: usize>(cache: &HeadCache, span: Range<usize>, work: &mut AttentionWork);
}

/// A scheme with less than f32's precision. Its spans are whole chunks to begin with; what it prepares includes the norms
/// in [`AttentionWork`].
pub(crate) trait Reduced<S: Isa, K: KvFormat>: Scheme<S, K> {}

/// Largest product of the norms of a query (times the scale) and a key for which scores have less than f32's precision.
///
/// A score's rounding grows with the product, and falls with the square root of the number of elements `n` where no few of
/// them dominate, since theirs are independent. In f16 and bf16 it is then at worst, where query and key are alike,
/// `product / (250 sqrt(n))` (root mean square), and a third to a fifth of that where they are not: with this limit 0.05,
/// and usually below 0.01.
fn largest_product(n: usize) -> f32 {
    12.0 * (n as f32).sqrt()
}

/// Where one KV head of one layer lies in the cache.
#[derive(Clone, Copy)]
pub(crate) struct HeadCache {
    /// Keys, `[n_ctx / 16, rounded up]` tiles; see [`KvFormat`].
    pub(crate) k: *mut u8,
    /// Values, `[n_ctx, rounded up to 16]` rows of `value_stride` elements, zeros from `head_dim` on.
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

    /// Elements `d..d + 16` of the query, which has `n`; zeros after its end.
    ///
    /// # Safety
    /// The query is valid; the CPU has the instruction set.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    unsafe fn elements<S: Isa>(&self, d: usize, n: usize) -> S::F {
        // SAFETY: inside the query, as the caller promises.
        unsafe {
            if d + LANES <= n {
                return S::f_load(self.q.add(d));
            }
            let mut last = [0.0; LANES];
            std::ptr::copy_nonoverlapping(self.q.add(d), last.as_mut_ptr(), n - d);
            S::f_load(last.as_ptr())
        }
    }
}

/// Work memory of one thread.
pub(crate) struct AttentionWork {
    /// Elements of a head.
    head_dim: usize,
    /// Scores, and in f32 then weights, `[MAX_ROWS][CHUNK]`.
    scores: Vec<f32>,
    /// One chunk's weighted values, `[MAX_ROWS][value_stride]`.
    partial: Vec<f32>,
    /// Of a reduced scheme: the queries' norms, times the scale, `[MAX_QUERIES]`.
    norms: Vec<f32>,
    /// Of a reduced scheme: the largest norm of a chunk's keys, about; infinite where numbers are too large for it.
    largest_key: f32,
    /// What the f32 scheme prepares.
    widened: f32::Widened,
    /// What the bf16 scheme prepares.
    converted: bf16::Converted,
    /// What the f16 scheme prepares.
    halves: f16::Halves,
}

impl AttentionWork {
    pub(crate) fn new(head_dim: usize) -> AttentionWork {
        let value_stride = head_dim.next_multiple_of(LANES);
        AttentionWork {
            head_dim,
            scores: vec![0.0; MAX_ROWS * CHUNK],
            partial: vec![0.0; MAX_ROWS * value_stride],
            norms: vec![0.0; MAX_QUERIES],
            largest_key: 0.0,
            widened: f32::Widened::new(head_dim),
            converted: bf16::Converted::new(head_dim),
            halves: f16::Halves::new(head_dim),
        }
    }

    /// Whether query `i` of those prepared is precise enough in a reduced scheme.
    fn fits(&self, i: usize) -> bool {
        self.norms[i] * self.largest_key <= largest_product(self.head_dim)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.scores.len() + self.partial.len() + self.norms.len())
            + self.widened.bytes()
            + self.converted.bytes()
            + self.halves.bytes()
    }
}

/// Adds the share of chunk `chunk` (positions `chunk * CHUNK..`) to up to [`MAX_QUERIES`] queries.
///
/// # Safety
/// The cache has format `K` and holds all positions of the chunk that are seen, widened to multiples of the scheme's
/// [`GRAIN`](Scheme::GRAIN); it has the elements of `work`, and the rows' pointers are valid; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn chunk<S: Isa, K: KvFormat, A: Scheme<S, K>>(
    cache: &HeadCache,
    rows: &mut [QueryRow],
    scale: f32,
    chunk: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let all = seen(rows, chunk, A::GRAIN);
        if !all.is_empty() {
            A::prepare(cache, rows, scale, all, work);
            prepared::<S, K, A>(cache, rows, scale, chunk, work);
        }
    }
}

/// [`chunk`] for rows that were prepared.
#[inline(always)]
unsafe fn prepared<S: Isa, K: KvFormat, A: Scheme<S, K>>(
    cache: &HeadCache,
    rows: &mut [QueryRow],
    scale: f32,
    chunk: usize,
    work: &mut AttentionWork,
) {
    let mut first = 0;
    while first < rows.len() {
        // SAFETY: as for [`chunk`]; the first constant is the number of rows.
        first += unsafe {
            match rows.len() - first {
                8.. => rows_of::<S, K, A, 8, 2, 1>(cache, rows, first, scale, chunk, work),
                4..8 => rows_of::<S, K, A, 4, 4, 2>(cache, rows, first, scale, chunk, work),
                3 => rows_of::<S, K, A, 3, 4, 2>(cache, rows, first, scale, chunk, work),
                2 => rows_of::<S, K, A, 2, 4, 4>(cache, rows, first, scale, chunk, work),
                1 => rows_of::<S, K, A, 1, 4, 4>(cache, rows, first, scale, chunk, work),
                0 => return,
            }
        };
    }
}

/// Queries further into a text than this may be computed with less than f32's precision: there the time goes into
/// attention. Before it, f32 costs little, and short texts keep all of the cache's precision.
pub(crate) const LONG: usize = 1024;

/// As [`chunk`], in `A` for queries from [`LONG`] on that see to the chunk's end and whose scores cannot be [too
/// large](largest_product), and in f32 for the others. That is a matter of the query and of a chunk that does not change
/// any more, and not of the queries that come with it.
///
/// # Safety
/// As for [`chunk`], with f32's grain; rows are in the order of their positions.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) unsafe fn chunk_mixed<S: Isa, K: KvFormat, A: Reduced<S, K>>(
    cache: &HeadCache,
    rows: &mut [QueryRow],
    scale: f32,
    chunk: usize,
    work: &mut AttentionWork,
) {
    debug_assert!(rows.is_sorted_by_key(|row| row.sees.1));
    let whole = chunk * CHUNK..(chunk + 1) * CHUNK;
    let (exact, reduced) = rows.split_at_mut(rows.partition_point(|row| row.sees.1 <= LONG || row.sees.1 < whole.end));
    // SAFETY: as the caller promises; what `reduced` see to its end is in the cache as a whole.
    unsafe {
        self::chunk::<S, K, InF32>(cache, exact, scale, chunk, work);
        if seen(reduced, chunk, A::GRAIN).is_empty() {
            return;
        }
        A::prepare(cache, reduced, scale, whole.clone(), work);
        let mut fits = [false; MAX_QUERIES];
        for i in 0..reduced.len() {
            fits[i] = work.fits(i);
        }
        let fits = &fits[..reduced.len()];
        if fits.iter().all(|fits| *fits) {
            return prepared::<S, K, A>(cache, reduced, scale, chunk, work);
        }
        // Those of a kind together: heads take turns in the rows, and one head may have the large queries.
        let (mut fitting, mut others) = ([QueryRow::EMPTY; MAX_QUERIES], [QueryRow::EMPTY; MAX_QUERIES]);
        let (fitting, others) = (gather(reduced, fits, true, &mut fitting), gather(reduced, fits, false, &mut others));
        if !fitting.is_empty() {
            A::prepare(cache, fitting, scale, whole, work);
            prepared::<S, K, A>(cache, fitting, scale, chunk, work);
        }
        self::chunk::<S, K, InF32>(cache, others, scale, chunk, work);
        let (mut fitting, mut others) = (fitting.iter(), others.iter());
        for (row, fits) in reduced.iter_mut().zip(fits) {
            if let Some(done) = if *fits { fitting.next() } else { others.next() } {
                *row = *done;
            }
        }
    }
}

/// Copies the rows whose mark is `wanted` to the front of `out`, in their order.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
fn gather<'a>(rows: &[QueryRow], marks: &[bool], wanted: bool, out: &'a mut [QueryRow]) -> &'a mut [QueryRow] {
    let found = rows.iter().zip(marks).filter(|(_, mark)| **mark == wanted);
    let n = out.iter_mut().zip(found).map(|(out, (row, _))| *out = *row).count();
    &mut out[..n]
}

/// The positions of a chunk that some of the queries see, widened to multiples of `grain`.
fn seen(rows: &[QueryRow], chunk: usize, grain: usize) -> Range<usize> {
    let base = chunk * CHUNK;
    let first = rows.iter().map(|r| r.sees.0).min().unwrap_or(0).max(base) / grain * grain;
    let last = rows.iter().map(|r| r.sees.1).max().unwrap_or(0).min(base + CHUNK);
    if first < last { first..first + (last - first).next_multiple_of(grain) } else { first..first }
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
        let span = seen(&rows[first..first + R], chunk, A::GRAIN);
        if span.is_empty() {
            return R;
        }
        A::scores::<R, T>(cache, rows, first, scale, span.clone(), work);
        let mut share = [(f32::NEG_INFINITY, 0.0f32); R];
        for r in 0..R {
            let inside = |p: usize| p.saturating_sub(span.start).min(span.len());
            let sees = rows[first + r].sees;
            share[r] = soften::<S, K, A>(r * CHUNK..r * CHUNK + span.len(), (inside(sees.0), inside(sees.1)), work);
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

/// Makes the scores `at` the weights `exp(score - max)` inside `sees`, counted from the first, and 0 outside; returns
/// maximum and sum.
#[inline(always)]
unsafe fn soften<S: Isa, K: KvFormat, A: Scheme<S, K>>(
    at: Range<usize>,
    sees: (usize, usize),
    work: &mut AttentionWork,
) -> (f32, f32) {
    // SAFETY: whole vectors inside the scores, whose number is a multiple of 16.
    unsafe {
        let scores = &mut work.scores[at.clone()];
        scores[..sees.0].fill(f32::NEG_INFINITY);
        scores[sees.1..].fill(f32::NEG_INFINITY);
        let scores = work.scores.as_ptr().add(at.start);
        let mut max = S::f_splat(f32::NEG_INFINITY);
        for i in (0..at.len()).step_by(LANES) {
            max = S::f_max(max, S::f_load(scores.add(i)));
        }
        let max = S::f_max_lane(max);
        if max == f32::NEG_INFINITY {
            // Nothing is seen: what the weights come to is not used.
            return (max, 0.0);
        }
        (max, S::f_sum(A::soften(at, max, work)))
    }
}

/// `e^(x - max)`; `max` itself, which one of two numbers is, takes no exponential.
fn below(x: f32, max: f32) -> f32 {
    if x == max { 1.0 } else { (x - max).exp() }
}

/// Merges one chunk's share into a query's running result.
#[inline(always)]
pub(crate) unsafe fn merge<S: Isa>(row: &mut QueryRow, share: (f32, f32), partial: *const f32, stride: usize) {
    // SAFETY: `row.out` and `partial` have `stride` floats, a multiple of 16.
    unsafe {
        let max = row.max.max(share.0);
        let (before, now) = (below(row.max, max), below(share.0, max));
        let (old, new) = (S::f_splat(before), S::f_splat(now));
        for d in (0..stride).step_by(LANES) {
            let scaled = S::f_mul(S::f_load(row.out.add(d)), old);
            S::f_store(row.out.add(d), S::f_fma(S::f_load(partial.add(d)), new, scaled));
        }
        row.sum = row.sum * before + share.1 * now;
        row.max = max;
    }
}
