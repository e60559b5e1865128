//! GEMV and GEMM over weight panels, written once for all quantized types and instruction sets.
//!
//! Every output element is `sum over groups of 32: (scale * d) * (q . a) + min * d * sum(a)`, added group by group in
//! f32 by one lane. GEMV and GEMM do exactly the same operations in the same order, so results do not depend on how a
//! prompt is split into batches, nor on the number of threads.

use std::ops::Range;

use super::isa::{Isa, LANES};
use super::pack::{GROUP, Packed, PackedFloat};

/// 32 quantized activations: what a product needs of them lies together, so that a column is one pointer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub(crate) struct ActGroup {
    /// Quants.
    pub(crate) q: [i8; GROUP],
    /// Scale.
    pub(crate) d: f32,
    /// Scale times the sum of the quants.
    pub(crate) sum32: f32,
    /// Scale times the sum of each half.
    pub(crate) sum16: [f32; 2],
}

/// The input of a matrix product: rows of activations, one per token.
#[derive(Clone, Copy)]
pub(crate) struct Acts {
    /// Row length.
    pub(crate) n_in: usize,
    /// As f32, `[n_tokens, n_in]`.
    pub(crate) x: *const f32,
    /// As int8 with one scale per 32, `[n_tokens, n_in / 32]`.
    pub(crate) groups: *const ActGroup,
}

/// Fewer columns than this go through GEMV one by one: unpacking a panel would cost more than it saves.
const GEMM_FROM: usize = 3;

/// How far ahead GEMV asks for weights. Decoding takes so many instructions that the processor, by looking ahead itself,
/// would have too few reads under way to use the memory's bandwidth.
const PREFETCH: usize = 4096;
/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Activations below this are far beyond what f32 sums can tell from 0.
const TINY: f32 = 1e-30;

/// Bytes of an unpacked group: quants, then scale and min of each half.
pub(super) const fn unpacked_bytes(halves: usize) -> usize {
    LANES * GROUP + 2 * halves * LANES * 4
}

/// Bytes of work memory that [`panel`] needs for rows of `n_in`.
pub(crate) const fn work_bytes(n_in: usize) -> usize {
    n_in / GROUP * unpacked_bytes(2)
}

/// Multiplies one panel of a quantized type with the columns (tokens) `cols`; `out` is `[cols][16]`.
///
/// # Safety
/// `panel` is a packed panel of rows of `acts.n_in`; `acts` covers `cols`; `work` has [`work_bytes`] bytes and `out`
/// `16 * cols` floats; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn panel<S: Isa, P: Packed, const TILE: usize>(
    panel: *const u8,
    acts: &Acts,
    cols: Range<usize>,
    work: *mut u8,
    out: *mut f32,
) {
    // SAFETY: the caller's promises are the callees'.
    unsafe {
        if cols.len() < GEMM_FROM {
            for (i, col) in cols.enumerate() {
                S::f_store(out.add(LANES * i), gemv::<S, P>(panel, acts, col));
            }
            return;
        }
        unpack::<S, P>(panel, acts.n_in, work);
        let mut col = cols.start;
        let mut out = out;
        while cols.end - col >= TILE {
            tile::<S, P, TILE>(work, acts, col, out);
            col += TILE;
            out = out.add(LANES * TILE);
        }
        while cols.end - col >= 4 && TILE > 4 {
            tile::<S, P, 4>(work, acts, col, out);
            col += 4;
            out = out.add(LANES * 4);
        }
        while col < cols.end {
            tile::<S, P, 1>(work, acts, col, out);
            col += 1;
            out = out.add(LANES);
        }
    }
}

/// One column: decodes the panel as it goes.
#[inline(always)]
unsafe fn gemv<S: Isa, P: Packed>(panel: *const u8, acts: &Acts, col: usize) -> S::F {
    // SAFETY: as for [`panel`].
    unsafe {
        let groups = acts.n_in / GROUP;
        let mut total = S::f_splat(0.0);
        let mut block = panel;
        let group_bytes = LANES * P::FILE_BYTES * GROUP / P::BLOCK;
        for kb in (0..groups).step_by(P::BLOCK / GROUP) {
            for g in 0..P::BLOCK / GROUP {
                for line in (0..group_bytes).step_by(CACHE_LINE) {
                    S::prefetch(block.wrapping_add(g * group_bytes + line + PREFETCH));
                }
                let quants = P::quants::<S>(block, g);
                let scales = P::scale_min::<S>(block, g);
                total = group::<S, P>(total, &quants, &scales, acts.groups.add(col * groups + kb + g));
            }
            block = block.add(LANES * P::FILE_BYTES);
        }
        total
    }
}

/// Adds one group's share.
#[inline(always)]
unsafe fn group<S: Isa, P: Packed>(
    total: S::F,
    quants: &[S::B; 8],
    scales: &[(S::F, S::F); 2],
    act: *const ActGroup,
) -> S::F {
    // SAFETY: as for [`panel`].
    unsafe {
        let a = (&raw const (*act).q).cast::<i8>();
        let mut acc = [S::i_splat(0); 2];
        for (j, w) in quants.iter().enumerate() {
            let half = j * P::HALVES / 8;
            acc[half] = dot::<S, P>(acc[half], *w, a.add(4 * j));
        }
        apply::<S, P>(total, acc, scales, act)
    }
}

#[inline(always)]
unsafe fn dot<S: Isa, P: Packed>(acc: S::I, w: S::B, a: *const i8) -> S::I {
    // SAFETY: as for [`panel`].
    unsafe { if P::WIDE { S::dot4_wide(acc, w, a) } else { S::dot4(acc, w, a) } }
}

/// Scales a group's integer sums and adds them.
///
/// # Safety
/// `act` points to a group; the CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn apply<S: Isa, P: Packed>(
    total: S::F,
    acc: [S::I; 2],
    scales: &[(S::F, S::F); 2],
    act: *const ActGroup,
) -> S::F {
    // SAFETY: as for [`panel`].
    unsafe {
        let d = S::f_splat((*act).d);
        if P::HALVES == 1 {
            let (scale, min) = scales[0];
            let total = S::f_fma(S::f_mul(S::i_to_f(acc[0]), d), scale, total);
            S::f_fma(min, S::f_splat((*act).sum32), total)
        } else {
            let [(scale0, min0), (scale1, min1)] = *scales;
            let both = S::f_fma(S::i_to_f(acc[1]), scale1, S::f_mul(S::i_to_f(acc[0]), scale0));
            let total = S::f_fma(both, d, total);
            let total = S::f_fma(min0, S::f_splat((*act).sum16[0]), total);
            S::f_fma(min1, S::f_splat((*act).sum16[1]), total)
        }
    }
}

/// Unpacks a whole panel into bytes and f32 scales, to be used by every column of the batch.
///
/// # Safety
/// As for [`panel`].
#[inline(always)]
pub(super) unsafe fn unpack<S: Isa, P: Packed>(panel: *const u8, n_in: usize, work: *mut u8) {
    // SAFETY: as for [`panel`].
    unsafe {
        let mut block = panel;
        let mut out = work;
        for _ in 0..n_in / P::BLOCK {
            for g in 0..P::BLOCK / GROUP {
                for (j, w) in P::quants::<S>(block, g).into_iter().enumerate() {
                    S::b_store(out.add(64 * j), w);
                }
                let scales = P::scale_min::<S>(block, g);
                let floats = out.add(LANES * GROUP).cast::<f32>();
                for (h, (scale, min)) in scales.into_iter().take(P::HALVES).enumerate() {
                    S::f_store(floats.add(2 * LANES * h), scale);
                    S::f_store(floats.add(2 * LANES * h + LANES), min);
                }
                out = out.add(unpacked_bytes(P::HALVES));
            }
            block = block.add(LANES * P::FILE_BYTES);
        }
    }
}

/// `N` columns of an unpacked panel, their sums in registers; `out` is `[N][16]`.
#[inline(always)]
unsafe fn tile<S: Isa, P: Packed, const N: usize>(work: *const u8, acts: &Acts, col: usize, out: *mut f32) {
    // SAFETY: as for [`panel`].
    unsafe {
        let groups = acts.n_in / GROUP;
        let columns: [*const ActGroup; N] = std::array::from_fn(|n| acts.groups.add((col + n) * groups));
        let mut total = [S::f_splat(0.0); N];
        for kb in 0..groups {
            let packed = work.add(kb * unpacked_bytes(P::HALVES));
            let mut acc = [[S::i_splat(0); 2]; N];
            for j in 0..8 {
                let w = S::b_load(packed.add(64 * j));
                for n in 0..N {
                    let a = (&raw const (*columns[n].add(kb)).q).cast::<i8>().add(4 * j);
                    let half = j * P::HALVES / 8;
                    acc[n][half] = dot::<S, P>(acc[n][half], w, a);
                }
            }
            let floats = packed.add(LANES * GROUP).cast::<f32>();
            let load = |h: usize| (S::f_load(floats.add(2 * LANES * h)), S::f_load(floats.add(2 * LANES * h + LANES)));
            let scales = [load(0), load(P::HALVES - 1)];
            for n in 0..N {
                total[n] = apply::<S, P>(total[n], acc[n], &scales, columns[n].add(kb));
            }
        }
        for n in 0..N {
            S::f_store(out.add(LANES * n), total[n]);
        }
    }
}

/// Multiplies one panel of plain numbers with f32 columns; `out` is `[cols][16]`.
///
/// # Safety
/// As for [`panel`], without work memory.
#[inline(always)]
pub(crate) unsafe fn float_panel<S: Isa, P: PackedFloat, const TILE: usize>(
    panel: *const u8,
    acts: &Acts,
    cols: Range<usize>,
    out: *mut f32,
) {
    // SAFETY: the caller's promises are the callee's.
    unsafe {
        let mut col = cols.start;
        let mut out = out;
        while cols.end - col >= TILE {
            float_tile::<S, P, TILE>(panel, acts, col, out);
            col += TILE;
            out = out.add(LANES * TILE);
        }
        while col < cols.end {
            float_tile::<S, P, 1>(panel, acts, col, out);
            col += 1;
            out = out.add(LANES);
        }
    }
}

#[inline(always)]
unsafe fn float_tile<S: Isa, P: PackedFloat, const N: usize>(panel: *const u8, acts: &Acts, col: usize, out: *mut f32) {
    // SAFETY: as for [`float_panel`].
    unsafe {
        let mut total = [S::f_splat(0.0); N];
        for k in 0..acts.n_in {
            let w = P::load::<S>(panel.add(k * LANES * P::BYTES));
            for n in 0..N {
                total[n] = S::f_fma(w, S::f_splat(*acts.x.add((col + n) * acts.n_in + k)), total[n]);
            }
        }
        for n in 0..N {
            S::f_store(out.add(LANES * n), total[n]);
        }
    }
}

/// Quantizes a row to int8 in groups of 32: `d = absmax / 127`, `q = round(x / d)`; and the sums that mins need.
///
/// # Safety
/// `x` has 32 floats for each of `out`; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn quantize<S: Isa>(x: *const f32, out: &mut [ActGroup]) {
    for (g, out) in out.iter_mut().enumerate() {
        // SAFETY: two vectors per group, as the caller promises.
        unsafe {
            let (a, b) = (S::f_load(x.add(g * GROUP)), S::f_load(x.add(g * GROUP + LANES)));
            let absmax = S::f_max_lane(S::f_max(S::f_abs(a), S::f_abs(b)));
            // 0, or NaN where an element is infinite or NaN: what maximum and rounding drop passes on through the scale.
            let taint = S::f_sum(S::f_fma(b, S::f_splat(0.0), S::f_mul(a, S::f_splat(0.0))));
            // Groups too small for the inverse to be finite count as zeros.
            let (scale, inverse) = if absmax <= TINY { (0.0, 0.0) } else { (absmax / 127.0, 127.0 / absmax) };
            let inverse = S::f_splat(inverse);
            let (qa, qb) = (S::f_to_i(S::f_mul(a, inverse)), S::f_to_i(S::f_mul(b, inverse)));
            S::i_store_i8(out.q.as_mut_ptr(), qa);
            S::i_store_i8(out.q.as_mut_ptr().add(LANES), qb);
            let (sa, sb) = (S::i_sum(qa), S::i_sum(qb));
            let scale = scale + taint;
            out.d = scale;
            out.sum32 = scale * sa.wrapping_add(sb) as f32;
            out.sum16 = [scale * sa as f32, scale * sb as f32];
        }
    }
}

/// Dot product of `n` floats, 16 partial sums in a fixed order.
///
/// # Safety
/// `a` and `b` have `n` floats; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn dot_f32<S: Isa>(a: *const f32, b: *const f32, n: usize) -> f32 {
    // SAFETY: whole vectors, then single elements, inside `n`.
    unsafe {
        let mut sum = S::f_splat(0.0);
        let whole = n / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            sum = S::f_fma(S::f_load(a.add(i)), S::f_load(b.add(i)), sum);
        }
        (whole..n).fold(S::f_sum(sum), |sum, i| sum + *a.add(i) * *b.add(i))
    }
}
