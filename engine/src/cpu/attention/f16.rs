//! The products of attention in f16: twice the rate of f32 where the CPU has the arithmetic.
//!
//! The cache's own precision is f16, and queries and weights lose little by it; what has to be watched is the sums. They
//! are short, [`SCORE_RUN`] or [`VALUE_RUN`] products each, and added up in f32. A sum's rounding grows with its size, so queries whose scores
//! could be large are not computed here: see [`chunk_mixed`](super::chunk_mixed).

use std::marker::PhantomData;
use std::ops::Range;

use super::super::isa::{F16, LANES};
use super::super::kv_format::{KvFormat, PREFETCH, prefetch};
use super::{AttentionWork, CHUNK, HeadCache, MAX_QUERIES, MAX_ROWS, QueryRow, Reduced, Scheme};

/// Numbers in a vector, positions in a tile of keys.
const WIDE: usize = 2 * LANES;
/// Products in a sum that makes part of a score.
const SCORE_RUN: usize = 32;
/// Products in a sum of weighted values, whose errors are smaller: weights are at most 1.
const VALUE_RUN: usize = 64;
/// Largest number in f16.
const LARGEST: f32 = 65504.0;
/// Largest element of a value whose weighted sums cannot leave f16's range.
const LARGEST_VALUE: f32 = LARGEST / VALUE_RUN as f32;
/// 1 in f16, twice.
const ONE: [u16; 2] = [0x3c00; 2];
/// Tiles of keys, or values, that are converted together: independent sums hide the latency of additions.
const AT_ONCE: usize = 4;
/// Most queries that read an f16 cache in place.
const FEW: usize = MAX_ROWS;

/// See the module.
pub(crate) struct InF16;

/// A chunk as f16, by position inside the chunk.
pub(super) struct Halves {
    /// Keys, `[CHUNK / 32][head_dim][32]`.
    keys: Vec<u16>,
    /// Values, `[CHUNK][head_dim, rounded up to whole vectors]`.
    values: Vec<u16>,
    /// Whether the present queries read the cache instead.
    in_place: bool,
    /// Queries times the scale, each number twice, `[MAX_QUERIES][head_dim][2]`.
    queries: Vec<u16>,
    /// Weights, each twice, `[MAX_ROWS][CHUNK][2]`.
    weights: Vec<u16>,
}

impl Halves {
    pub(super) fn new(head_dim: usize) -> Halves {
        Halves {
            keys: vec![0; CHUNK * head_dim],
            values: vec![0; CHUNK * head_dim.next_multiple_of(WIDE)],
            in_place: false,
            // Whole vectors are stored.
            queries: vec![0; 2 * (MAX_QUERIES * head_dim + LANES)],
            weights: vec![0; 2 * MAX_ROWS * CHUNK],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        2 * (self.keys.len() + self.values.len() + self.queries.len() + self.weights.len())
    }
}

/// Where keys and values in f16 come from.
trait Source<S: F16> {
    /// Bytes of 32 positions' keys of `n` elements.
    fn tile_bytes(n: usize) -> usize;
    /// Bytes of a value of `n` elements.
    fn value_bytes(n: usize) -> usize;
    /// Element `d` of 32 keys.
    unsafe fn keys(tile: *const u8, n: usize, d: usize) -> S::B;
    /// Elements `d..d + 32` of a value; any numbers after its end.
    unsafe fn value(row: *const u8, n: usize, d: usize) -> S::B;
}

/// From a cache in format `K`.
struct FromCache<K>(PhantomData<K>);
/// From what was converted.
struct Converted;

impl<S: F16, K: KvFormat> Source<S> for FromCache<K> {
    #[inline(always)]
    fn tile_bytes(n: usize) -> usize {
        2 * K::key_tile_bytes(n)
    }
    #[inline(always)]
    fn value_bytes(n: usize) -> usize {
        K::value_bytes(n)
    }
    #[inline(always)]
    unsafe fn keys(tile: *const u8, n: usize, d: usize) -> S::B {
        // SAFETY: inside the tile that the caller points to.
        unsafe { K::half_keys::<S>(tile, n, d) }
    }
    #[inline(always)]
    unsafe fn value(row: *const u8, n: usize, d: usize) -> S::B {
        // SAFETY: inside the value that the caller points to.
        unsafe { K::half_value::<S>(row, n, d) }
    }
}

impl<S: F16> Source<S> for Converted {
    #[inline(always)]
    fn tile_bytes(n: usize) -> usize {
        2 * n * WIDE
    }
    #[inline(always)]
    fn value_bytes(n: usize) -> usize {
        2 * n.next_multiple_of(WIDE)
    }
    #[inline(always)]
    unsafe fn keys(tile: *const u8, _: usize, d: usize) -> S::B {
        // SAFETY: inside the tile that the caller points to.
        unsafe { S::b_load(tile.add(2 * d * WIDE)) }
    }
    #[inline(always)]
    unsafe fn value(row: *const u8, _: usize, d: usize) -> S::B {
        // SAFETY: inside the value that the caller points to.
        unsafe { S::b_load(row.add(2 * d)) }
    }
}

impl<S: F16, K: KvFormat> Reduced<S, K> for InF16 {}

impl<S: F16, K: KvFormat> Scheme<S, K> for InF16 {
    const GRAIN: usize = VALUE_RUN;

    #[inline(always)]
    unsafe fn prepare(cache: &HeadCache, rows: &[QueryRow], scale: f32, span: Range<usize>, work: &mut AttentionWork) {
        let n = cache.head_dim;
        let halves = &mut work.halves;
        assert!(rows.len() <= MAX_QUERIES && n == work.head_dim && span.len() == CHUNK);
        halves.in_place = K::WIDENS && rows.len() <= FEW;
        // SAFETY: the cache holds the span, which is one chunk; the buffers have room for that and for all queries.
        unsafe {
            let (norm, value) = (keys::<S, K>(cache, span.clone(), halves), values::<S, K>(cache, span, halves));
            work.largest_key = if value <= LARGEST_VALUE { norm.sqrt() } else { f32::INFINITY };
            for (i, row) in rows.iter().enumerate() {
                work.norms[i] = query::<S>(row, n, scale, halves.queries.as_mut_ptr().add(2 * i * n));
            }
        }
    }

    #[inline(always)]
    unsafe fn soften(at: Range<usize>, max: f32, work: &mut AttentionWork) -> S::F {
        // SAFETY: whole vectors inside the scores; there is room for a chunk's weights of `MAX_ROWS` rows.
        unsafe {
            let minus_max = S::f_splat(-max);
            let one = S::h_splat(ONE.as_ptr());
            let mut sum = S::h_zero();
            for i in at.step_by(WIDE) {
                let scores = work.scores.as_ptr().add(i);
                let low = S::f_add(S::f_load(scores), minus_max);
                let high = S::f_add(S::f_load(scores.add(LANES)), minus_max);
                let weights = S::h_exp(low, high);
                S::h_store_exp(work.halves.weights.as_mut_ptr().add(2 * i), weights);
                sum = S::h_fma(weights, one, sum);
            }
            let (low, high) = S::h_widen(sum);
            S::f_add(low, high)
        }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize, const T: usize>(
        cache: &HeadCache,
        _: &[QueryRow],
        first: usize,
        _: f32,
        span: Range<usize>,
        work: &mut AttentionWork,
    ) {
        // SAFETY: `prepare` converted the rows, and the span if it is not read in place.
        unsafe {
            let n = cache.head_dim;
            if K::WIDENS && work.halves.in_place {
                all_tiles::<S, FromCache<K>, R, T>(cache.keys::<K>(span.start), n, first, span.len(), work);
            } else {
                let keys = work.halves.keys.as_ptr().add(span.start % CHUNK * n);
                all_tiles::<S, Converted, R, T>(keys.cast(), n, first, span.len(), work);
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<const R: usize, const W: usize>(cache: &HeadCache, span: Range<usize>, work: &mut AttentionWork) {
        // SAFETY: as for the scores; weights have been stored.
        unsafe {
            let n = cache.value_stride;
            if K::WIDENS && work.halves.in_place {
                all_columns::<S, FromCache<K>, R, W>(cache.values::<K>(span.start), n, span.len(), work);
            } else {
                let values = work.halves.values.as_ptr().add(span.start % CHUNK * n.next_multiple_of(WIDE));
                all_columns::<S, Converted, R, W>(values.cast(), n, span.len(), work);
            }
        }
    }
}

/// Converts a chunk's keys; returns the largest square of a norm, summed in f16: infinite from 256^2 on.
#[inline(always)]
unsafe fn keys<S: F16, K: KvFormat>(cache: &HeadCache, span: Range<usize>, halves: &mut Halves) -> f32 {
    // SAFETY: as for [`Scheme::prepare`].
    unsafe {
        let (n, bytes) = (cache.head_dim, 2 * K::key_tile_bytes(cache.head_dim));
        let mut largest = S::h_zero();
        for p in span.step_by(AT_ONCE * WIDE) {
            let keys = cache.keys::<K>(p);
            prefetch::<S>(keys.wrapping_add(PREFETCH), AT_ONCE * bytes);
            let out = halves.keys.as_mut_ptr().add(p % CHUNK * n);
            let mut squares = [S::h_zero(); AT_ONCE];
            for d in 0..n {
                for t in 0..AT_ONCE {
                    let k = K::half_keys::<S>(keys.add(t * bytes), n, d);
                    if !halves.in_place {
                        S::b_store(out.add((t * n + d) * WIDE).cast(), k);
                    }
                    squares[t] = S::h_fma(k, k, squares[t]);
                }
            }
            for t in 0..AT_ONCE {
                largest = S::h_max_abs(largest, squares[t]);
            }
        }
        largest_lane::<S>(largest)
    }
}

/// Converts a chunk's values; returns the largest magnitude.
#[inline(always)]
unsafe fn values<S: F16, K: KvFormat>(cache: &HeadCache, span: Range<usize>, halves: &mut Halves) -> f32 {
    // SAFETY: as for [`Scheme::prepare`].
    unsafe {
        let (n, stride) = (cache.value_stride, cache.value_stride.next_multiple_of(WIDE));
        let bytes = K::value_bytes(n);
        let mut largest = [S::h_zero(); AT_ONCE];
        for p in span.step_by(AT_ONCE) {
            let row = cache.values::<K>(p);
            prefetch::<S>(row.wrapping_add(PREFETCH), AT_ONCE * bytes);
            let out = halves.values.as_mut_ptr().add(p % CHUNK * stride);
            for d in (0..n).step_by(WIDE) {
                for i in 0..AT_ONCE {
                    let v = K::half_value::<S>(row.add(i * bytes), n, d);
                    if !halves.in_place {
                        S::b_store(out.add(i * stride + d).cast(), v);
                    }
                    largest[i] = S::h_max_abs(largest[i], v);
                }
            }
        }
        for i in 1..AT_ONCE {
            largest[0] = S::h_max_abs(largest[0], largest[i]);
        }
        largest_lane::<S>(largest[0])
    }
}

#[inline(always)]
unsafe fn largest_lane<S: F16>(v: S::B) -> f32 {
    // SAFETY: register operations.
    unsafe {
        let (low, high) = S::h_widen(v);
        S::f_max_lane(S::f_max(low, high))
    }
}

/// Converts a query of `n` elements; returns its norm, times the scale: not a number where elements could be too large.
#[inline(always)]
unsafe fn query<S: F16>(row: &QueryRow, n: usize, scale: f32, out: *mut u16) -> f32 {
    // SAFETY: the query has `n` elements, and `out` room for whole vectors of them, each twice.
    unsafe {
        let mut squares = S::f_splat(0.0);
        for d in (0..n).step_by(LANES) {
            let q = S::f_mul(row.elements::<S>(d, n), S::f_splat(scale));
            squares = S::f_fma(q, q, squares);
            S::h_store_twice(out.add(2 * d), q);
        }
        let norm = S::f_sum(squares).sqrt();
        if norm <= LARGEST { norm } else { f32::NAN }
    }
}

/// Scores of the queries `first..first + R` against `span` keys of `n` elements.
#[inline(always)]
unsafe fn all_tiles<S: F16, From: Source<S>, const R: usize, const T: usize>(
    keys: *const u8,
    n: usize,
    first: usize,
    span: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`Scheme::scores`].
    unsafe {
        let mut queries = [std::ptr::null(); R];
        for r in 0..R {
            queries[r] = work.halves.queries.as_ptr().add(2 * (first + r) * n);
        }
        let mut at = 0;
        while at < span {
            let keys = keys.add(at / WIDE * From::tile_bytes(n));
            let out = work.scores.as_mut_ptr().add(at);
            if at + T * WIDE <= span {
                tiles::<S, From, R, T>(keys, n, &queries, out);
                at += T * WIDE;
            } else {
                tiles::<S, From, R, 1>(keys, n, &queries, out);
                at += WIDE;
            }
        }
    }
}

/// Scores of `R` queries against `T` tiles of keys of `n` elements; `out` is `[R][CHUNK]`.
#[inline(always)]
unsafe fn tiles<S: F16, From: Source<S>, const R: usize, const T: usize>(
    keys: *const u8,
    n: usize,
    queries: &[*const u16; R],
    out: *mut f32,
) {
    // SAFETY: as for [`Scheme::scores`].
    unsafe {
        for from in (0..n).step_by(SCORE_RUN) {
            let mut sum = [[S::h_zero(); R]; T];
            for d in from..n.min(from + SCORE_RUN) {
                let mut k = [S::h_zero(); T];
                for t in 0..T {
                    k[t] = From::keys(keys.add(t * From::tile_bytes(n)), n, d);
                }
                for r in 0..R {
                    let q = S::h_splat(queries[r].add(2 * d));
                    for t in 0..T {
                        sum[t][r] = S::h_fma(k[t], q, sum[t][r]);
                    }
                }
            }
            for t in 0..T {
                for r in 0..R {
                    add::<S>(sum[t][r], from == 0, true, out.add(r * CHUNK + t * WIDE));
                }
            }
        }
    }
}

/// Weighted sums of all elements of `span` values of `n` elements.
#[inline(always)]
unsafe fn all_columns<S: F16, From: Source<S>, const R: usize, const W: usize>(
    values: *const u8,
    n: usize,
    span: usize,
    work: &mut AttentionWork,
) {
    for from in (0..span).step_by(VALUE_RUN) {
        let mut d = 0;
        while d < n {
            // SAFETY: as for [`Scheme::weigh`].
            unsafe {
                if d + 2 * W * WIDE <= n {
                    columns::<S, From, R, W, 2>(values, n, d, from, work);
                    d += 2 * W * WIDE;
                } else {
                    columns::<S, From, R, 1, 1>(values, n, d, from, work);
                    d += WIDE;
                }
            }
        }
    }
}

/// Weighted sums of `W * V` vectors of elements from `d` on, of a run of values from `from` on.
#[inline(always)]
unsafe fn columns<S: F16, From: Source<S>, const R: usize, const W: usize, const V: usize>(
    values: *const u8,
    n: usize,
    d: usize,
    from: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`Scheme::weigh`].
    unsafe {
        let weights = work.halves.weights.as_ptr();
        let mut sum = [[[S::h_zero(); V]; W]; R];
        for p in from..from + VALUE_RUN {
            let row = values.add(p * From::value_bytes(n));
            let mut v = [[S::h_zero(); V]; W];
            for w in 0..W {
                for i in 0..V {
                    v[w][i] = From::value(row, n, d + (w * V + i) * WIDE);
                }
            }
            for r in 0..R {
                let weight = S::h_splat(weights.add(2 * (r * CHUNK + p)));
                for w in 0..W {
                    for i in 0..V {
                        sum[r][w][i] = S::h_fma(v[w][i], weight, sum[r][w][i]);
                    }
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                for i in 0..V {
                    let at = d + (w * V + i) * WIDE;
                    let out = work.partial.as_mut_ptr().add(r * n + at);
                    add::<S>(sum[r][w][i], from == 0, at + WIDE <= n, out);
                }
            }
        }
    }
}

/// Writes, or adds, a vector's 32 numbers to `out`, or its first 16 where only those are `whole`.
#[inline(always)]
unsafe fn add<S: F16>(sum: S::B, is_first: bool, whole: bool, out: *mut f32) {
    // SAFETY: `out` has room for 32 numbers, or 16.
    unsafe {
        let (mut low, mut high) = S::h_widen(sum);
        if !is_first {
            low = S::f_add(S::f_load(out), low);
        }
        S::f_store(out, low);
        if whole {
            if !is_first {
                high = S::f_add(S::f_load(out.add(LANES)), high);
            }
            S::f_store(out.add(LANES), high);
        }
    }
}
