//! Products of ternary weights: activations are selected and added. What is multiplied is each group's sum, by its scale.
//!
//! A quant q of 0 to 3 (minus 1: the weight) is its low bit plus twice its high bit, so that the sum of q a is the sum of
//! the activations whose quant has the low bit, plus twice the sum of those that have the high bit. A byte that is not
//! selected counts 128, one that is selected 128 + a: bytes stay unsigned, and the excess is the same for all rows.

use std::ops::Range;

use super::isa::{Isa, LANES};
use super::matmul::{ActGroup, Acts, apply, unpack, unpacked_bytes};
use super::pack::{GROUP, Packed};

/// What the sums of a group are too large by: 128 for every weight in the single and in the double sum.
const EXCESS: i32 = (1 + 2) * 128 * GROUP as i32;

/// Multiplies one panel of a ternary type with the columns (tokens) `cols`; `out` is `[cols][16]`.
///
/// # Safety
/// As for [`super::matmul::panel`].
#[inline(always)]
pub(crate) unsafe fn panel<S: Isa, P: Packed, const TILE: usize>(
    panel: *const u8,
    acts: &Acts,
    cols: Range<usize>,
    work: *mut u8,
    out: *mut f32,
) {
    const { assert!(P::OCTETS && P::HALVES == 1) };
    // SAFETY: the caller's promises are the callees'.
    unsafe {
        let (mut col, mut out) = (cols.start, out);
        if cols.len() == 1 {
            return S::f_store(out, gemv::<S, P>(panel, acts, col));
        }
        unpack::<S, P>(panel, acts.n_in, work);
        while cols.end - col >= TILE {
            tile::<S, P, TILE>(work, acts, col, out);
            col += TILE;
            out = out.add(LANES * TILE);
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
        let mut act = acts.groups.add(col * (acts.n_in / GROUP));
        let mut total = S::f_splat(0.0);
        let mut block = panel;
        for _ in 0..acts.n_in / P::BLOCK {
            for g in 0..P::BLOCK / GROUP {
                let quants = P::quants::<S>(block, g);
                let [sums] = group::<S, 1>(|j| quants[j], [act]);
                let scales = P::scale_min::<S>(block, g);
                total = apply::<S, P>(total, [sums; 2], &scales, act);
                act = act.add(1);
            }
            block = block.add(LANES * P::FILE_BYTES);
        }
        total
    }
}

/// `N` columns of an unpacked panel; `out` is `[N][16]`.
#[inline(always)]
unsafe fn tile<S: Isa, P: Packed, const N: usize>(work: *const u8, acts: &Acts, col: usize, out: *mut f32) {
    // SAFETY: as for [`panel`].
    unsafe {
        let groups = acts.n_in / GROUP;
        let columns: [*const ActGroup; N] = std::array::from_fn(|n| acts.groups.add((col + n) * groups));
        let mut total = [S::f_splat(0.0); N];
        for kb in 0..groups {
            let unpacked = work.add(kb * unpacked_bytes(P::HALVES));
            let act = columns.map(|column| column.add(kb));
            let sums = group::<S, N>(|j| S::b_load(unpacked.add(64 * j)), act);
            let floats = unpacked.add(LANES * GROUP).cast::<f32>();
            let scales = [(S::f_load(floats), S::f_load(floats.add(LANES))); 2];
            for n in 0..N {
                total[n] = apply::<S, P>(total[n], [sums[n]; 2], &scales, act[n]);
            }
        }
        for n in 0..N {
            S::f_store(out.add(LANES * n), total[n]);
        }
    }
}

/// The sums of `q a` of 16 rows over a group, for `N` columns. `quants(j)` is vector `j` of the group.
#[inline(always)]
unsafe fn group<S: Isa, const N: usize>(quants: impl Fn(usize) -> S::B, acts: [*const ActGroup; N]) -> [S::I; N] {
    // SAFETY: as for [`panel`].
    unsafe {
        let mut low = [[S::i_splat(0); 2]; N];
        let mut high = low;
        for octet in 0..GROUP / 8 {
            let a: [S::B; N] =
                std::array::from_fn(|n| S::b_splat8((&raw const (*acts[n]).q).cast::<i8>().add(8 * octet)));
            for rows in 0..2 {
                let q = quants(2 * octet + rows);
                let (has_low, has_high) = (S::b_test(q, 1), S::b_test(q, 2));
                for n in 0..N {
                    low[n][rows] = S::i_add_selected(low[n][rows], has_low, a[n]);
                    high[n][rows] = S::i_add_selected(high[n][rows], has_high, a[n]);
                }
            }
        }
        std::array::from_fn(|n| {
            let sum = |rows: usize| S::i_add(low[n][rows], S::i_add(high[n][rows], high[n][rows]));
            S::i_add(S::i_join_even(sum(0), sum(1)), S::i_splat(-EXCESS))
        })
    }
}
