//! The products of attention in pairs of bf16: twice the rate of f32 where the CPU has the instruction.
//!
//! Keys and values of a chunk are converted once for all queries that meet it. bf16 keeps 8 bits of the mantissa where
//! the cache's f16 has 11: the error of a score or a weighted sum of many elements is far below that of the int8
//! activations around it (measured in docs/performance.md).

use std::ops::Range;

use super::super::isa::{Bf16, LANES};
use super::super::kv_format::{KvFormat, PREFETCH, prefetch};
use super::{AttentionWork, CHUNK, HeadCache, MAX_QUERIES, MAX_ROWS, QueryRow, Reduced, Scheme};

/// See the module.
pub(crate) struct InBf16;

/// A chunk as bf16, by position inside the chunk.
pub(super) struct Converted {
    /// Elements of a key, rounded up to pairs.
    head_dim: usize,
    /// Keys, `[CHUNK / 16][head_dim / 2][16 positions][2]`.
    keys: Vec<u16>,
    /// Values, `[CHUNK / 2][value_stride][2 positions]`.
    values: Vec<u16>,
    /// Queries, `[MAX_QUERIES][head_dim]`.
    queries: Vec<u16>,
    /// Weights, `[MAX_ROWS][CHUNK]`.
    weights: Vec<u16>,
}

impl Converted {
    pub(super) fn new(head_dim: usize) -> Converted {
        let padded = head_dim.next_multiple_of(LANES);
        Converted {
            head_dim: head_dim.next_multiple_of(2),
            keys: vec![0; CHUNK * head_dim.next_multiple_of(2)],
            values: vec![0; CHUNK * padded],
            // Whole vectors are stored.
            queries: vec![0; MAX_QUERIES * head_dim.next_multiple_of(2) + LANES],
            weights: vec![0; MAX_ROWS * CHUNK],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        2 * (self.keys.len() + self.values.len() + self.queries.len() + self.weights.len())
    }
}

impl<S: Bf16, K: KvFormat> Reduced<S, K> for InBf16 {}

impl<S: Bf16, K: KvFormat> Scheme<S, K> for InBf16 {
    #[inline(always)]
    unsafe fn prepare(cache: &HeadCache, rows: &[QueryRow], scale: f32, span: Range<usize>, work: &mut AttentionWork) {
        assert!(rows.len() <= MAX_QUERIES && cache.head_dim == work.head_dim);
        // SAFETY: the cache holds the span, which is inside one chunk; the buffers have room for a chunk and for all queries.
        unsafe {
            let n = cache.head_dim;
            let converted = &mut work.converted;
            let inside = span.start % CHUNK..span.start % CHUNK + span.len();
            let mut largest = S::f_splat(0.0);
            for tile in 0..span.len() / LANES {
                let mut squares = [S::f_splat(0.0); 2];
                let keys = cache.keys::<K>(span.start).add(tile * K::key_tile_bytes(n));
                prefetch::<S>(keys.wrapping_add(PREFETCH), K::key_tile_bytes(n));
                let out = converted.keys.as_mut_ptr().add((inside.start + tile * LANES) * converted.head_dim);
                for pair in 0..converted.head_dim / 2 {
                    let low = K::key::<S>(keys, n, 2 * pair);
                    let high = if 2 * pair + 1 < n { K::key::<S>(keys, n, 2 * pair + 1) } else { S::f_splat(0.0) };
                    S::b_store(out.add(pair * 2 * LANES).cast(), S::bf_pack(low, high));
                    squares = [S::f_fma(low, low, squares[0]), S::f_fma(high, high, squares[1])];
                }
                largest = S::f_max(largest, S::f_add(squares[0], squares[1]));
            }
            work.largest_key = S::f_max_lane(largest).sqrt();
            let (stride, bytes) = (cache.value_stride, K::value_bytes(cache.value_stride));
            for pair in 0..span.len() / 2 {
                let row = cache.values::<K>(span.start).add(2 * pair * bytes);
                prefetch::<S>(row.wrapping_add(PREFETCH), 2 * bytes);
                let out = converted.values.as_mut_ptr().add((inside.start + 2 * pair) * stride);
                for d in (0..stride).step_by(2 * LANES) {
                    let (a, b) = (K::value::<S>(row, stride, d), K::value::<S>(row.add(bytes), stride, d));
                    S::b_store(out.add(2 * d).cast(), S::bf_pack(a.0, b.0));
                    if d + LANES < stride {
                        S::b_store(out.add(2 * (d + LANES)).cast(), S::bf_pack(a.1, b.1));
                    }
                }
            }
            for (i, row) in rows.iter().enumerate() {
                let out = converted.queries.as_mut_ptr().add(i * converted.head_dim);
                let mut squares = S::f_splat(0.0);
                for d in (0..n).step_by(LANES) {
                    let q = row.elements::<S>(d, n);
                    S::bf_store(out.add(d), q);
                    squares = S::f_fma(q, q, squares);
                }
                work.norms[i] = S::f_sum(squares).sqrt() * scale;
            }
        }
    }

    #[inline(always)]
    unsafe fn soften(at: Range<usize>, max: f32, work: &mut AttentionWork) -> S::F {
        // SAFETY: whole vectors inside the scores; there is room for a chunk's weights of `MAX_ROWS` rows.
        unsafe {
            let minus_max = S::f_splat(-max);
            let mut sum = S::f_splat(0.0);
            for i in at.step_by(LANES) {
                let weights = S::bf_exp(S::f_add(S::f_load(work.scores.as_ptr().add(i)), minus_max));
                S::bf_store(work.converted.weights.as_mut_ptr().add(i), weights);
                sum = S::f_add(sum, weights);
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize, const T: usize>(
        _: &HeadCache,
        _: &[QueryRow],
        first: usize,
        scale: f32,
        span: Range<usize>,
        work: &mut AttentionWork,
    ) {
        // SAFETY: `prepare` converted the span and the rows; scores have room for a chunk each.
        unsafe {
            let n = work.converted.head_dim;
            let mut queries = [std::ptr::null(); R];
            for r in 0..R {
                queries[r] = work.converted.queries.as_ptr().add((first + r) * n);
            }
            let (mut at, end) = (0, span.len());
            while at < end {
                let keys = work.converted.keys.as_ptr().add((span.start % CHUNK + at) * n);
                let out = work.scores.as_mut_ptr().add(at);
                if at + T * LANES <= end {
                    tiles::<S, R, T>(keys, n, &queries, scale, out);
                    at += T * LANES;
                } else {
                    tiles::<S, R, 1>(keys, n, &queries, scale, out);
                    at += LANES;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<const R: usize, const W: usize>(cache: &HeadCache, span: Range<usize>, work: &mut AttentionWork) {
        // SAFETY: `prepare` converted the span; weights have been stored for each of `R` rows.
        unsafe {
            let stride = cache.value_stride;
            let values = work.converted.values.as_ptr().add(span.start % CHUNK * stride);
            let mut d = 0;
            while d < stride {
                if d + 2 * W * LANES <= stride {
                    columns::<S, R, W, 2>(values, stride, d, span.len(), work);
                    d += 2 * W * LANES;
                } else {
                    columns::<S, R, 1, 1>(values, stride, d, span.len(), work);
                    d += LANES;
                }
            }
        }
    }
}

/// Scores of `R` queries against `T` tiles of 16 keys of `n` elements; `out` is `[R][CHUNK]`.
#[inline(always)]
unsafe fn tiles<S: Bf16, const R: usize, const T: usize>(
    keys: *const u16,
    n: usize,
    queries: &[*const u16; R],
    scale: f32,
    out: *mut f32,
) {
    // SAFETY: as for [`Scheme::scores`].
    unsafe {
        let mut sum = [[S::f_splat(0.0); R]; T];
        for pair in 0..n / 2 {
            for t in 0..T {
                let k = S::b_load(keys.add(t * LANES * n + pair * 2 * LANES).cast());
                for r in 0..R {
                    sum[t][r] = S::bf_dot(sum[t][r], k, queries[r].add(2 * pair));
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                S::f_store(out.add(r * CHUNK + t * LANES), S::f_mul(sum[t][r], S::f_splat(scale)));
            }
        }
    }
}

/// Weighted sums of `W * V` vectors of elements from `d` on, of `n` values.
#[inline(always)]
unsafe fn columns<S: Bf16, const R: usize, const W: usize, const V: usize>(
    values: *const u16,
    stride: usize,
    d: usize,
    n: usize,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`Scheme::weigh`].
    unsafe {
        let mut sum = [[[S::f_splat(0.0); V]; W]; R];
        for pair in 0..n / 2 {
            for w in 0..W {
                for v in 0..V {
                    let values = S::b_load(values.add(2 * (pair * stride + d + (w * V + v) * LANES)).cast());
                    for r in 0..R {
                        let weights = work.converted.weights.as_ptr().add(r * CHUNK + 2 * pair);
                        sum[r][w][v] = S::bf_dot(sum[r][w][v], values, weights);
                    }
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                for v in 0..V {
                    let out = work.partial.as_mut_ptr().add(r * stride + d + (w * V + v) * LANES);
                    S::f_store(out, sum[r][w][v]);
                }
            }
        }
    }
}
