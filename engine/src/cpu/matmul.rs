//! GEMV and GEMM over weight panels, written once for all quantized types and instruction sets.
//!
//! Every output element is `sum over groups of 32 (or 16): (d * (q . a)) * scale + min * (d * sum(a))`, added group by group
//! in f32 by one lane. GEMV and GEMM do exactly the same operations in the same order, so results do not depend on how a
//! prompt is split into batches, nor on the number of threads.
//!
//! Vectors are handled in plain loops and inlined functions, never in closures (`array::from_fn`, `map`): a closure that the
//! compiler does not inline has none of the instruction set's features, and costs a factor.

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
    /// Scale times the sums of the first and the second half of the quants.
    pub(crate) halves: [f32; 2],
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

    /// `N` columns from `col` on, in int8, from group `first` on.
    ///
    /// # Safety
    /// As for [`Acts::quants`], for all of them.
    #[inline(always)]
    unsafe fn columns<const N: usize>(&self, col: usize, first: usize) -> [*const ActGroup; N] {
        let mut columns = [std::ptr::null(); N];
        for n in 0..N {
            // SAFETY: as the caller promises.
            columns[n] = unsafe { self.quants(col + n).add(first) };
        }
        columns
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
        let mut columns = acts.columns::<N>(col, 0);
        let mut total = [S::f_splat(0.0); N];
        let mut block = panel;
        let group_bytes = LANES * P::FILE_BYTES * GROUP / P::BLOCK;
        for _ in (0..groups).step_by(P::BLOCK / GROUP) {
            for g in 0..P::BLOCK / GROUP {
                for line in (0..group_bytes).step_by(CACHE_LINE) {
                    S::prefetch(block.wrapping_add(g * group_bytes + line + PREFETCH));
                }
                let quants = P::quants::<S>(block, g);
                let scales = P::scale_min::<S>(block, g);
                if P::OCTETS {
                    let sums = sums::group::<S, N>(&quants, &columns);
                    for n in 0..N {
                        total[n] = add_ternary::<S>(total[n], sums[n], scales[0].0, columns[n]);
                    }
                } else {
                    for n in 0..N {
                        total[n] = group::<S, P>(total[n], &quants, &scales, columns[n]);
                    }
                }
                for n in 0..N {
                    columns[n] = columns[n].wrapping_add(1);
                }
            }
            block = block.add(LANES * P::FILE_BYTES);
        }
        for n in 0..N {
            S::f_store(out.add(LANES * n), total[n]);
        }
    }
}

/// Adds one group's share, of quants in registers.
#[inline(always)]
unsafe fn group<S: Isa, P: Packed>(
    mut total: S::F,
    quants: &[S::B; 8],
    scales: &[(S::F, S::F); 2],
    act: *const ActGroup,
) -> S::F {
    // SAFETY: as for [`panel`].
    unsafe {
        let a = (&raw const (*act).q).cast::<i8>();
        for half in 0..P::HALVES {
            let mut acc = S::i_splat(0);
            for j in half * (8 / P::HALVES)..(half + 1) * (8 / P::HALVES) {
                acc = dot::<S, P>(acc, quants[j], a.add(4 * j));
            }
            total = add_scaled::<S, P>(total, acc, scales[half], act, half);
        }
        total
    }
}

#[inline(always)]
unsafe fn dot<S: Isa, P: Packed>(acc: S::I, w: S::B, a: *const i8) -> S::I {
    // SAFETY: as for [`panel`].
    unsafe { if P::WIDE { S::dot4_wide(acc, w, a) } else { S::dot4(acc, w, a) } }
}

/// Scales the integer sums of a group, or of one of its halves, and adds them and the share of the mins.
#[inline(always)]
unsafe fn add_scaled<S: Isa, P: Packed>(
    total: S::F,
    acc: S::I,
    (scale, min): (S::F, S::F),
    act: *const ActGroup,
    half: usize,
) -> S::F {
    // SAFETY: as for [`panel`].
    unsafe {
        let sum = if P::HALVES == 1 { (*act).sum } else { (*act).halves[half] };
        let total = S::f_fma(S::f_mul(S::i_to_f(acc), S::f_splat((*act).d)), scale, total);
        S::f_fma(min, S::f_splat(sum), total)
    }
}

/// Scales the sums of a group of ternary weights, in which their minimum is already.
#[inline(always)]
unsafe fn add_ternary<S: Isa>(total: S::F, sums: S::I, scale: S::F, act: *const ActGroup) -> S::F {
    // SAFETY: as for [`panel`].
    unsafe { S::f_fma(S::f_mul(S::i_to_f(sums), S::f_splat((*act).d)), scale, total) }
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
                let quants = P::quants::<S>(block, g);
                for j in 0..8 {
                    S::b_store(out.add(64 * j), quants[j]);
                }
                let scales = P::scale_min::<S>(block, g);
                let floats = out.add(LANES * GROUP).cast::<f32>();
                for h in 0..P::HALVES {
                    S::f_store(floats.add(2 * LANES * h), scales[h].0);
                    S::f_store(floats.add(2 * LANES * h + LANES), scales[h].1);
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
        let mut columns = acts.columns::<N>(col, span.start);
        let mut total = [S::f_splat(0.0); N];
        if span.start > 0 {
            for n in 0..N {
                total[n] = S::f_load(out.add(LANES * n));
            }
        }
        let mut packed = work;
        for _ in span {
            let floats = packed.add(LANES * GROUP).cast::<f32>();
            if P::OCTETS {
                let mut quants = [S::b_load(packed); 8];
                for j in 1..8 {
                    quants[j] = S::b_load(packed.add(64 * j));
                }
                let sums = sums::group::<S, N>(&quants, &columns);
                let scale = S::f_load(floats);
                for n in 0..N {
                    total[n] = add_ternary::<S>(total[n], sums[n], scale, columns[n]);
                }
            } else {
                for half in 0..P::HALVES {
                    let mut acc = [S::i_splat(0); N];
                    for j in half * (8 / P::HALVES)..(half + 1) * (8 / P::HALVES) {
                        let w = S::b_load(packed.add(64 * j));
                        for n in 0..N {
                            let a = (&raw const (*columns[n]).q).cast::<i8>().add(4 * j);
                            acc[n] = dot::<S, P>(acc[n], w, a);
                        }
                    }
                    let floats = floats.add(2 * LANES * half);
                    let scale_min = (S::f_load(floats), S::f_load(floats.add(LANES)));
                    for n in 0..N {
                        total[n] = add_scaled::<S, P>(total[n], acc[n], scale_min, columns[n], half);
                    }
                }
            }
            for n in 0..N {
                columns[n] = columns[n].wrapping_add(1);
            }
            packed = packed.add(unpacked_bytes(P::HALVES));
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
        let mut columns = [std::ptr::null(); N];
        for n in 0..N {
            columns[n] = acts.floats(col + n);
        }
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

/// Quantizes a row to int8 in groups of 32: `d = max(absmax, least) / 127`, `q = round(x / d)`; and the sums that offsets
/// and mins need.
///
/// # Safety
/// `x` has 32 floats for each of `out`; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn quantize<S: Isa>(x: *const f32, least: f32, out: &mut [ActGroup]) {
    for (g, out) in out.iter_mut().enumerate() {
        // SAFETY: two vectors per group, as the caller promises.
        unsafe {
            let halves = [S::f_load(x.add(g * GROUP)), S::f_load(x.add(g * GROUP + LANES))];
            *out = quantize_group::<S>(halves, least).0;
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
            let (group, quants) = quantize_group::<S>(halves, 0.0);
            let minus_d = S::f_splat(-group.d);
            let first = S::f_fma(S::i_to_f(quants[0]), minus_d, halves[0]);
            let second = S::f_fma(S::i_to_f(quants[1]), minus_d, halves[1]);
            *main = group;
            *rest = quantize_group::<S>([first, second], 0.0).0;
        }
    }
}

/// One group, and its quants as vectors.
#[inline(always)]
unsafe fn quantize_group<S: Isa>([a, b]: [S::F; 2], least: f32) -> (ActGroup, [S::I; 2]) {
    // SAFETY: register operations, and stores inside the group.
    unsafe {
        let absmax = S::f_max_lane(S::f_max(S::f_abs(a), S::f_abs(b))).max(least);
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
        out.d = scale + taint;
        out.sum = out.d * sa.wrapping_add(sb) as f32;
        out.halves = [out.d * sa as f32, out.d * sb as f32];
        (out, [qa, qb])
    }
}

/// The largest magnitude among `n` floats, a multiple of 16; that of the others where some are NaN.
///
/// # Safety
/// `x` has `n` floats; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn absmax<S: Isa>(x: *const f32, n: usize) -> f32 {
    // SAFETY: whole vectors inside `n`.
    unsafe {
        let mut largest = S::f_splat(0.0);
        for i in (0..n).step_by(LANES) {
            largest = S::f_max(S::f_abs(S::f_load(x.add(i))), largest);
        }
        S::f_max_lane(largest)
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
