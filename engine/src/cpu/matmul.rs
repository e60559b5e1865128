//! GEMV and GEMM over weight panels, written once for all quantized types and instruction sets.
//!
//! Every output element is `sum over groups of 32: (scale * d) * (q . a) + min * d * sum(a)`, added group by group in
//! f32 by one lane. GEMV and GEMM do exactly the same operations in the same order, so results do not depend on how a
//! prompt is split into batches, nor on the number of threads.

use std::ops::Range;

use super::isa::{Isa, LANES};
use super::pack::{GROUP, Packed, PackedFloat};
use super::sums;

/// 32 quantized activations: what a product needs of them lies together, so that a column is one pointer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub(crate) struct ActGroup {
    /// Quants.
    pub(crate) q: [i8; GROUP],
    /// Scale.
    pub(crate) d: f32,
    /// Scale times the sum of the quants.
    pub(crate) sum: f32,
    /// The negated sum of the quants.
    pub(crate) minus: i32,
    /// The negated sum of the first half of the quants.
    pub(crate) minus_first: i32,
}

/// The input of a matrix product: rows of activations, one per token or per token and expert.
#[derive(Clone, Copy)]
pub(crate) struct Acts {
    /// Row length.
    pub(crate) n_in: usize,
    /// As f32, `[n_rows, n_in]`.
    pub(crate) x: *const f32,
    /// As int8 with one scale per 32, `[n_rows, n_in / 32]`.
    pub(crate) groups: *const ActGroup,
    /// The row of each column; null where the columns are the rows in order.
    pub(crate) rows: *const u32,
}

impl Acts {
    /// A column in f32.
    ///
    /// # Safety
    /// `rows`, where not null, and `x` cover `col`.
    #[inline(always)]
    pub(crate) unsafe fn floats(&self, col: usize) -> *const f32 {
        // SAFETY: as the caller promises.
        unsafe { self.x.add(self.row(col) * self.n_in) }
    }

    /// A column in int8.
    ///
    /// # Safety
    /// `rows`, where not null, and `groups` cover `col`.
    #[inline(always)]
    unsafe fn quants(&self, col: usize) -> *const ActGroup {
        // SAFETY: as the caller promises.
        unsafe { self.groups.add(self.row(col) * (self.n_in / GROUP)) }
    }

    /// # Safety
    /// `rows`, where not null, covers `col`.
    #[inline(always)]
    unsafe fn row(&self, col: usize) -> usize {
        // SAFETY: as the caller promises.
        if self.rows.is_null() { col } else { unsafe { *self.rows.add(col) as usize } }
    }
}

/// Fewer columns than this go through GEMV: unpacking a panel would cost more than it saves.
const GEMM_FROM: usize = 3;

/// Groups along k that GEMM unpacks at a time (whole super-blocks): they and a tile's activations stay in the L1 cache.
const K_BLOCK: usize = 16;

/// Bytes of quantized activations that stay in the L2 cache while panel after panel is multiplied with them.
const L2_ACTS: usize = 512 << 10;

/// How far ahead GEMV asks for weights. Decoding takes so many instructions that the processor, by looking ahead itself,
/// would have too few reads under way to use the memory's bandwidth.
const PREFETCH: usize = 4096;
/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Activations below this are far beyond what f32 sums can tell from 0.
const TINY: f32 = 1e-30;

/// Bytes of an unpacked group: quants, then scale and min of each half.
const fn unpacked_bytes(halves: usize) -> usize {
    LANES * GROUP + 2 * halves * LANES * 4
}

/// Bytes of work memory that [`panel`] needs.
pub(crate) const WORK_BYTES: usize = K_BLOCK * unpacked_bytes(2);

/// How many columns of `n_in` activations should be multiplied with one panel after the other.
pub(crate) fn columns_per_pass(n_in: usize, most: usize) -> usize {
    // A multiple of every tile width.
    let fit = L2_ACTS / (n_in.div_ceil(GROUP) * size_of::<ActGroup>()).max(1);
    (fit / 12 * 12).clamp(12, most)
}

/// Multiplies one panel of a quantized type with the columns (tokens) `cols`; `out` is `[cols][16]`.
///
/// # Safety
/// `panel` is a packed panel of rows of `acts.n_in`; `acts` covers `cols`; `work` has [`WORK_BYTES`] bytes and `out`
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
        match cols.len() {
            0 => {}
            1 => gemv::<S, P, 1>(panel, acts, cols.start, out),
            2 => gemv::<S, P, 2>(panel, acts, cols.start, out),
            GEMM_FROM.. => {
                let groups = acts.n_in / GROUP;
                for first in (0..groups).step_by(K_BLOCK) {
                    let span = first..groups.min(first + K_BLOCK);
                    unpack::<S, P>(panel, span.clone(), work);
                    block::<S, P, TILE>(work, acts, span, cols.clone(), out);
                }
            }
        }
    }
}

/// All columns of one unpacked block along k.
#[inline(always)]
unsafe fn block<S: Isa, P: Packed, const TILE: usize>(
    work: *const u8,
    acts: &Acts,
    span: Range<usize>,
    cols: Range<usize>,
    mut out: *mut f32,
) {
    // SAFETY: as for [`panel`].
    unsafe {
        let mut col = cols.start;
        while cols.end - col >= TILE {
            tile::<S, P, TILE>(work, acts, span.clone(), col, out);
            col += TILE;
            out = out.add(LANES * TILE);
        }
        while cols.end - col >= 4 && TILE > 4 {
            tile::<S, P, 4>(work, acts, span.clone(), col, out);
            col += 4;
            out = out.add(LANES * 4);
        }
        while col < cols.end {
            tile::<S, P, 1>(work, acts, span.clone(), col, out);
            col += 1;
            out = out.add(LANES);
        }
    }
}

/// `N` columns from `col` on: decodes the panel as it goes. `out` is `[N][16]`.
#[inline(always)]
unsafe fn gemv<S: Isa, P: Packed, const N: usize>(panel: *const u8, acts: &Acts, col: usize, out: *mut f32) {
    // SAFETY: as for [`panel`].
    unsafe {
        let groups = acts.n_in / GROUP;
        let columns: [*const ActGroup; N] = std::array::from_fn(|n| acts.quants(col + n));
        let mut total = [S::f_splat(0.0); N];
        let mut block = panel;
        let group_bytes = LANES * P::FILE_BYTES * GROUP / P::BLOCK;
        for kb in (0..groups).step_by(P::BLOCK / GROUP) {
            for g in 0..P::BLOCK / GROUP {
                for line in (0..group_bytes).step_by(CACHE_LINE) {
                    S::prefetch(block.wrapping_add(g * group_bytes + line + PREFETCH));
                }
                let quants = P::quants::<S>(block, g);
                let scales = P::scale_min::<S>(block, g);
                for n in 0..N {
                    total[n] = group::<S, P>(total[n], &quants, &scales, columns[n].add(kb + g));
                }
            }
            block = block.add(LANES * P::FILE_BYTES);
        }
        for n in 0..N {
            S::f_store(out.add(LANES * n), total[n]);
        }
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
        if P::OCTETS {
            let [sum] = sums::group::<S, 1>(|j| quants[j], [act]);
            return apply::<S, P>(total, [sum; 2], scales, act);
        }
        let mut acc = start::<S, P>(act);
        for (j, w) in quants.iter().enumerate() {
            let half = j * P::HALVES / 8;
            acc[half] = dot::<S, P>(acc[half], *w, a.add(4 * j));
        }
        apply::<S, P>(total, acc, scales, act)
    }
}

/// What a group's integer sums begin with: the share of the type's offset, `-OFFSET * sum(a)`, of each half.
#[inline(always)]
unsafe fn start<S: Isa, P: Packed>(act: *const ActGroup) -> [S::I; 2] {
    // SAFETY: as for [`panel`].
    unsafe {
        if P::OFFSET == 0 {
            return [S::i_splat(0); 2];
        }
        let shift = const { P::OFFSET.trailing_zeros() };
        let all = S::i_shl(S::i_splat((*act).minus), shift);
        if P::HALVES == 1 {
            return [all; 2];
        }
        let first = S::i_shl(S::i_splat((*act).minus_first), shift);
        [first, S::i_sub(all, first)]
    }
}

#[inline(always)]
unsafe fn dot<S: Isa, P: Packed>(acc: S::I, w: S::B, a: *const i8) -> S::I {
    // SAFETY: as for [`panel`].
    unsafe { if P::WIDE { S::dot4_wide(acc, w, a) } else { S::dot4(acc, w, a) } }
}

/// Scales a group's integer sums and adds them.
#[inline(always)]
unsafe fn apply<S: Isa, P: Packed>(
    total: S::F,
    acc: [S::I; 2],
    scales: &[(S::F, S::F); 2],
    act: *const ActGroup,
) -> S::F {
    // SAFETY: as for [`panel`].
    unsafe {
        let d = S::f_splat((*act).d);
        let [(scale0, min0), (scale1, min1)] = *scales;
        if P::HALVES == 1 {
            let total = S::f_fma(S::f_mul(S::i_to_f(acc[0]), d), scale0, total);
            return if P::OFFSET == 0 { S::f_fma(min0, S::f_splat((*act).sum), total) } else { total };
        }
        let mut both = S::f_fma(S::i_to_f(acc[1]), scale1, S::f_mul(S::i_to_f(acc[0]), scale0));
        if P::OFFSET == 0 {
            let (all, first) = ((*act).minus, (*act).minus_first);
            both = S::f_fma(min0, S::i_to_f(S::i_splat(-first)), both);
            both = S::f_fma(min1, S::i_to_f(S::i_splat(first - all)), both);
        }
        S::f_fma(both, d, total)
    }
}

/// Unpacks some groups of a panel into bytes and f32 scales, to be used by every column of the batch.
#[inline(always)]
unsafe fn unpack<S: Isa, P: Packed>(panel: *const u8, span: Range<usize>, work: *mut u8) {
    // SAFETY: as for [`panel`]; spans begin and end at whole blocks.
    unsafe {
        let per_block = P::BLOCK / GROUP;
        let mut out = work;
        for b in span.start / per_block..span.end / per_block {
            let block = panel.add(b * LANES * P::FILE_BYTES);
            for g in 0..per_block {
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
        }
    }
}

/// Adds an unpacked block along k to `N` columns, their sums in registers; `out` is `[N][16]`, set by the first block.
#[inline(always)]
unsafe fn tile<S: Isa, P: Packed, const N: usize>(
    work: *const u8,
    acts: &Acts,
    span: Range<usize>,
    col: usize,
    out: *mut f32,
) {
    // SAFETY: as for [`panel`].
    unsafe {
        let columns: [*const ActGroup; N] = std::array::from_fn(|n| acts.quants(col + n).add(span.start));
        let mut total = [S::f_splat(0.0); N];
        if span.start > 0 {
            for n in 0..N {
                total[n] = S::f_load(out.add(LANES * n));
            }
        }
        for kb in 0..span.len() {
            let packed = work.add(kb * unpacked_bytes(P::HALVES));
            if P::OCTETS {
                let acts = columns.map(|column| column.add(kb));
                let sums = sums::group::<S, N>(|j| S::b_load(packed.add(64 * j)), acts);
                let floats = packed.add(LANES * GROUP).cast::<f32>();
                let scales = [(S::f_load(floats), S::f_load(floats.add(LANES))); 2];
                for n in 0..N {
                    total[n] = apply::<S, P>(total[n], [sums[n]; 2], &scales, acts[n]);
                }
                continue;
            }
            let mut acc: [[S::I; 2]; N] = std::array::from_fn(|n| start::<S, P>(columns[n].add(kb)));
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
        let columns: [*const f32; N] = std::array::from_fn(|n| acts.floats(col + n));
        let mut total = [S::f_splat(0.0); N];
        for k in 0..acts.n_in {
            let w = P::load::<S>(panel.add(k * LANES * P::BYTES));
            for n in 0..N {
                total[n] = S::f_fma(w, S::f_splat(*columns[n].add(k)), total[n]);
            }
        }
        for n in 0..N {
            S::f_store(out.add(LANES * n), total[n]);
        }
    }
}

/// Quantizes a row to int8 in groups of 32: `d = absmax / 127`, `q = round(x / d)`; and the sums that offsets and mins
/// need.
///
/// # Safety
/// `x` has 32 floats for each of `out`; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn quantize<S: Isa>(x: *const f32, out: &mut [ActGroup]) {
    for (g, out) in out.iter_mut().enumerate() {
        // SAFETY: two vectors per group, as the caller promises.
        unsafe {
            let halves = [S::f_load(x.add(g * GROUP)), S::f_load(x.add(g * GROUP + LANES))];
            *out = quantize_group::<S>(halves).0;
        }
    }
}

/// As [`quantize`], and what that left over, quantized again: `main + rest` is as good as 15 bits.
///
/// # Safety
/// `x` has 32 floats for each of `main`, which is as long as `rest`; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn quantize_twice<S: Isa>(x: *const f32, main: &mut [ActGroup], rest: &mut [ActGroup]) {
    for (g, (main, rest)) in main.iter_mut().zip(rest).enumerate() {
        // SAFETY: two vectors per group, as the caller promises.
        unsafe {
            let halves = [S::f_load(x.add(g * GROUP)), S::f_load(x.add(g * GROUP + LANES))];
            let (group, quants) = quantize_group::<S>(halves);
            let minus_d = S::f_splat(-group.d);
            let left = |h: usize| S::f_fma(S::i_to_f(quants[h]), minus_d, halves[h]);
            *main = group;
            *rest = quantize_group::<S>([left(0), left(1)]).0;
        }
    }
}

/// One group, and its quants as vectors.
#[inline(always)]
unsafe fn quantize_group<S: Isa>([a, b]: [S::F; 2]) -> (ActGroup, [S::I; 2]) {
    // SAFETY: register operations, and stores inside the group.
    unsafe {
        let absmax = S::f_max_lane(S::f_max(S::f_abs(a), S::f_abs(b)));
        // 0, or NaN where an element is infinite or NaN: what maximum and rounding drop passes on through the scale.
        let taint = S::f_sum(S::f_fma(b, S::f_splat(0.0), S::f_mul(a, S::f_splat(0.0))));
        // Groups too small for the inverse to be finite count as zeros.
        let (scale, inverse) = if absmax <= TINY { (0.0, 0.0) } else { (absmax / 127.0, 127.0 / absmax) };
        let inverse = S::f_splat(inverse);
        let (qa, qb) = (S::f_to_i(S::f_mul(a, inverse)), S::f_to_i(S::f_mul(b, inverse)));
        let mut out = ActGroup::default();
        S::i_store_i8(out.q.as_mut_ptr(), qa);
        S::i_store_i8(out.q.as_mut_ptr().add(LANES), qb);
        let (sa, sb) = (S::i_sum(qa), S::i_sum(qb));
        let sum = sa.wrapping_add(sb);
        out.d = scale + taint;
        out.sum = out.d * sum as f32;
        out.minus = sum.wrapping_neg();
        out.minus_first = sa.wrapping_neg();
        (out, [qa, qb])
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
