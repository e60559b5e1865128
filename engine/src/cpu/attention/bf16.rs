//! The products of attention in pairs of bf16: twice the rate of f32 where the CPU has the instruction.
//!
//! Keys and values of a chunk are converted once for all queries that meet it; few queries convert them on the way, to
//! the same bits. bf16 keeps 8 bits of the mantissa where
//! the cache's f16 has 11: the error of a score or a weighted sum of many elements is far below that of the int8
//! activations around it (measured in docs/performance.md).

use std::ops::Range;

use super::super::isa::{Bf16, LANES};
use super::super::kv_format::{KvFormat, PREFETCH, prefetch};
use super::{AttentionWork, CHUNK, HeadCache, MAX_QUERIES, MAX_ROWS, QueryRow, Scheme};

/// See the module.
pub(crate) struct InBf16;

/// Up to so many queries convert keys and values on the way: it takes less time than to store them and load them again.
const FEW: usize = 4;

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
    /// There are few queries: keys and values are not converted here.
    few: bool,
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
            few: false,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        2 * (self.keys.len() + self.values.len() + self.queries.len() + self.weights.len())
    }
}

// SAFETY (all methods): pointers as [`super::chunk`]'s caller promises; offsets stay inside the converted chunk.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<S: Bf16, K: KvFormat> Scheme<S, K> for InBf16 {
    #[inline(always)]
    unsafe fn prepare(cache: &HeadCache, rows: &[QueryRow], span: Range<usize>, work: &mut AttentionWork) {
        assert!(rows.len() <= MAX_QUERIES && cache.head_dim <= work.converted.head_dim);
        unsafe {
            convert_queries::<S>(cache.head_dim, rows, &mut work.converted);
            work.converted.few = rows.len() <= FEW;
            if !work.converted.few {
                convert::<S, K>(cache, span, &mut work.converted);
            }
        }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize, const T: usize>(
        cache: &HeadCache,
        _: &[QueryRow],
        first: usize,
        scale: f32,
        span: Range<usize>,
        work: &mut AttentionWork,
    ) {
        unsafe {
            if R <= FEW && work.converted.few {
                scores::<S, K, R, T, true>(cache, first, scale, span, work);
            } else {
                scores::<S, K, R, T, false>(cache, first, scale, span, work);
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<const R: usize, const W: usize>(cache: &HeadCache, span: Range<usize>, work: &mut AttentionWork) {
        unsafe {
            for r in 0..R {
                for p in (r * CHUNK..r * CHUNK + span.len()).step_by(LANES) {
                    let weights = work.converted.weights.as_mut_ptr().add(p);
                    S::bf_store(weights, S::f_load(work.scores.as_ptr().add(p)));
                }
            }
            if R <= FEW && work.converted.few {
                weigh::<S, K, R, W, true>(cache, span, work);
            } else {
                weigh::<S, K, R, W, false>(cache, span, work);
            }
        }
    }

    #[inline(always)]
    unsafe fn exp(x: S::F) -> S::F {
        unsafe { S::bf_exp(x) }
    }
}

/// Converts the queries.
#[inline(always)]
unsafe fn convert_queries<S: Bf16>(n: usize, rows: &[QueryRow], converted: &mut Converted) {
    // SAFETY: as for [`Scheme::prepare`]; whole vectors fit behind the last query.
    unsafe {
        for (i, row) in rows.iter().enumerate() {
            let out = converted.queries.as_mut_ptr().add(i * converted.head_dim);
            let whole = n / LANES * LANES;
            for d in (0..whole).step_by(LANES) {
                S::bf_store(out.add(d), S::f_load(row.q.add(d)));
            }
            if whole < n {
                let mut last = [0.0; LANES];
                std::ptr::copy_nonoverlapping(row.q.add(whole), last.as_mut_ptr(), n - whole);
                S::bf_store(out.add(whole), S::f_load(last.as_ptr()));
            }
        }
    }
}

/// Converts the positions' keys and values.
#[inline(always)]
unsafe fn convert<S: Bf16, K: KvFormat>(cache: &HeadCache, span: Range<usize>, converted: &mut Converted) {
    // SAFETY: as for [`Scheme::prepare`].
    unsafe {
        let n = cache.head_dim;
        let inside = span.start % CHUNK;
        for tile in 0..span.len() / LANES {
            let keys = cache.keys::<K>(span.start).add(tile * K::key_tile_bytes(n));
            prefetch::<S>(keys.wrapping_add(PREFETCH), K::key_tile_bytes(n));
            let out = converted.keys.as_mut_ptr().add((inside + tile * LANES) * converted.head_dim);
            for pair in 0..converted.head_dim / 2 {
                S::b_store(out.add(pair * 2 * LANES).cast(), key_pair::<S, K>(keys, n, pair));
            }
        }
        let (stride, bytes) = (cache.value_stride, K::value_bytes(cache.value_stride));
        for pair in 0..span.len() / 2 {
            let row = cache.values::<K>(span.start).add(2 * pair * bytes);
            prefetch::<S>(row.wrapping_add(PREFETCH), 2 * bytes);
            let out = converted.values.as_mut_ptr().add((inside + 2 * pair) * stride);
            for d in (0..stride).step_by(2 * LANES) {
                let values = value_pair::<S, K>(row, stride, d);
                S::b_store(out.add(2 * d).cast(), values[0]);
                if d + LANES < stride {
                    S::b_store(out.add(2 * (d + LANES)).cast(), values[1]);
                }
            }
        }
    }
}

/// Elements `2 pair` and the next of the 16 keys of a tile, of `n` elements each, 0 past their end.
#[inline(always)]
unsafe fn key_pair<S: Bf16, K: KvFormat>(tile: *const u8, n: usize, pair: usize) -> S::B {
    // SAFETY: the tile is the caller's.
    unsafe {
        let low = K::key::<S>(tile, n, 2 * pair);
        let high = if 2 * pair + 1 < n { K::key::<S>(tile, n, 2 * pair + 1) } else { S::f_splat(0.0) };
        S::bf_pack(low, high)
    }
}

/// Elements `d..d + 32` of the value at `row` and the next one; see [`KvFormat::value`].
#[inline(always)]
unsafe fn value_pair<S: Bf16, K: KvFormat>(row: *const u8, stride: usize, d: usize) -> [S::B; 2] {
    // SAFETY: the rows are the caller's.
    unsafe {
        let (a, b) = (K::value::<S>(row, stride, d), K::value::<S>(row.add(K::value_bytes(stride)), stride, d));
        [S::bf_pack(a.0, b.0), S::bf_pack(a.1, b.1)]
    }
}

/// See [`Scheme::scores`]; converts on the way if `FEW`.
#[inline(always)]
unsafe fn scores<S: Bf16, K: KvFormat, const R: usize, const T: usize, const FEW: bool>(
    cache: &HeadCache,
    first: usize,
    scale: f32,
    span: Range<usize>,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`Scheme::scores`].
    unsafe {
        let n = work.converted.head_dim;
        let queries: [*const u16; R] = std::array::from_fn(|r| work.converted.queries.as_ptr().add((first + r) * n));
        let (mut at, end) = (0, span.len());
        while at < end {
            let keys: *const u8 = if FEW {
                let keys = cache.keys::<K>(span.start + at);
                // Memory is slower than this: the values are asked for beside the keys, so that both come at once.
                let tiles = T.min((end - at) / LANES);
                prefetch::<S>(keys.wrapping_add(PREFETCH), tiles * K::key_tile_bytes(cache.head_dim));
                let values = cache.values::<K>(span.start + at);
                prefetch::<S>(values, tiles * LANES * K::value_bytes(cache.value_stride));
                keys
            } else {
                work.converted.keys.as_ptr().add((span.start % CHUNK + at) * n).cast()
            };
            let out = work.scores.as_mut_ptr().add(at);
            if at + T * LANES <= end {
                tiles::<S, K, R, T, FEW>(keys, cache.head_dim, &queries, scale, out);
                at += T * LANES;
            } else {
                tiles::<S, K, R, 1, FEW>(keys, cache.head_dim, &queries, scale, out);
                at += LANES;
            }
        }
    }
}

/// See [`Scheme::weigh`]; converts on the way if `FEW`.
#[inline(always)]
unsafe fn weigh<S: Bf16, K: KvFormat, const R: usize, const W: usize, const FEW: bool>(
    cache: &HeadCache,
    span: Range<usize>,
    work: &mut AttentionWork,
) {
    // SAFETY: as for [`Scheme::weigh`].
    unsafe {
        let stride = cache.value_stride;
        let values: *const u8 = if FEW {
            cache.values::<K>(span.start)
        } else {
            work.converted.values.as_ptr().add(span.start % CHUNK * stride).cast()
        };
        let mut d = 0;
        while d < stride {
            if d + 2 * W * LANES <= stride {
                columns::<S, K, R, W, 2, FEW>(values, stride, d, span.len(), work);
                d += 2 * W * LANES;
            } else {
                columns::<S, K, R, 1, 1, FEW>(values, stride, d, span.len(), work);
                d += LANES;
            }
        }
    }
}

/// Scores of `R` queries against `T` tiles of 16 keys of `n` elements, converted or (if `FEW`) not; `out` is `[R][CHUNK]`.
#[inline(always)]
unsafe fn tiles<S: Bf16, K: KvFormat, const R: usize, const T: usize, const FEW: bool>(
    keys: *const u8,
    n: usize,
    queries: &[*const u16; R],
    scale: f32,
    out: *mut f32,
) {
    // SAFETY: as for [`Scheme::scores`].
    unsafe {
        let tile_bytes = if FEW { K::key_tile_bytes(n) } else { 2 * LANES * n.next_multiple_of(2) };
        let mut sum = [[S::f_splat(0.0); R]; T];
        for pair in 0..n.div_ceil(2) {
            for t in 0..T {
                let tile = keys.add(t * tile_bytes);
                let k = if FEW { key_pair::<S, K>(tile, n, pair) } else { S::b_load(tile.add(pair * 4 * LANES)) };
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

/// Weighted sums of `W * V` vectors of elements from `d` on, of `n` values, converted or (if `FEW`) not.
#[inline(always)]
unsafe fn columns<S: Bf16, K: KvFormat, const R: usize, const W: usize, const V: usize, const FEW: bool>(
    values: *const u8,
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
                let d = d + w * V * LANES;
                let both = if FEW {
                    value_pair::<S, K>(values.add(2 * pair * K::value_bytes(stride)), stride, d)
                } else {
                    let at = |v: usize| values.add(4 * (pair * stride + d + v * LANES));
                    [S::b_load(at(0)), S::b_load(at(V - 1))]
                };
                for (v, values) in both.into_iter().enumerate().take(V) {
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
