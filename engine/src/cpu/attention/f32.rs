//! The products of attention in f32, straight from the cache.

use std::ops::Range;

use super::super::isa::{Isa, LANES};
use super::super::kv_format::{KvFormat, PREFETCH, prefetch};
use super::{AttentionWork, CHUNK, HeadCache, MAX_ROWS, QueryRow, Scheme};

/// See the module.
pub(crate) struct InF32;

// SAFETY (all methods): pointers as [`super::chunk`]'s caller promises; the constants are the numbers of rows and tiles.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<S: Isa, K: KvFormat> Scheme<S, K> for InF32 {
    #[inline(always)]
    unsafe fn prepare(_: &HeadCache, _: &[QueryRow], _: Range<usize>, _: &mut AttentionWork) {}

    #[inline(always)]
    unsafe fn exp(x: S::F) -> S::F {
        unsafe { S::f_exp(x) }
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
        unsafe {
            let mut queries = [std::ptr::null(); R];
            for r in 0..R {
                queries[r] = rows[first + r].q;
            }
            let bytes = K::key_tile_bytes(cache.head_dim);
            let (mut tile, end) = (0, span.len() / LANES);
            while tile < end {
                let keys = cache.keys::<K>(span.start).add(tile * bytes);
                // Decoding one query at a time waits for memory; many queries find the keys in the cache.
                if R < MAX_ROWS {
                    prefetch::<S>(keys.wrapping_add(PREFETCH), T * bytes);
                }
                let out = work.scores.as_mut_ptr().add(tile * LANES);
                if tile + T <= end {
                    tiles::<S, K, R, T>(keys, cache.head_dim, &queries, scale, out);
                    tile += T;
                } else {
                    tiles::<S, K, R, 1>(keys, cache.head_dim, &queries, scale, out);
                    tile += 1;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<const R: usize, const W: usize>(cache: &HeadCache, span: Range<usize>, work: &mut AttentionWork) {
        unsafe {
            let stride = cache.value_stride;
            let values = cache.values::<K>(span.start);
            if R < MAX_ROWS {
                prefetch::<S>(values, PREFETCH);
            }
            let mut d = 0;
            while d < stride {
                if d + 2 * W * LANES <= stride {
                    columns::<S, K, R, W>(values, stride, d, span.len(), work);
                    d += 2 * W * LANES;
                } else {
                    columns::<S, K, R, 1>(values, stride, d, span.len(), work);
                    d += 2 * LANES;
                }
            }
        }
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
