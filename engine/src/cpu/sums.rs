//! Products of ternary weights: activations are selected and added. What is multiplied is each group's sum, by its scale.
//!
//! A quant q of 0 to 3 (minus 1: the weight) is its low bit plus twice its high bit, so that the sum of q a is the sum of
//! the activations whose quant has the low bit, plus twice the sum of those that have the high bit. A byte that is not
//! selected counts 128, one that is selected 128 + a: bytes stay unsigned, and the excess is the same for all rows.

use super::isa::Isa;
use super::matmul::ActGroup;
use super::pack::GROUP;

/// What the sums of a group are too large by: 128 for every weight in the single and in the double sum.
const EXCESS: i32 = (1 + 2) * 128 * GROUP as i32;

/// The sums of `q a` of 16 rows over a group, for `N` columns.
///
/// # Safety
/// `acts` point to groups; the CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn group<S: Isa, const N: usize>(quants: &[S::B; 8], acts: &[*const ActGroup; N]) -> [S::I; N] {
    // SAFETY: 8 bytes at each octet of a group's 32.
    unsafe {
        let mut low = [[S::i_splat(0); 2]; N];
        let mut high = low;
        for octet in 0..GROUP / 8 {
            for rows in 0..2 {
                let q = quants[2 * octet + rows];
                let (has_low, has_high) = (S::b_test(q, 1), S::b_test(q, 2));
                for n in 0..N {
                    let a = S::b_splat8((&raw const (*acts[n]).q).cast::<i8>().add(8 * octet));
                    low[n][rows] = S::i_add_selected(low[n][rows], has_low, a);
                    high[n][rows] = S::i_add_selected(high[n][rows], has_high, a);
                }
            }
        }
        let mut sums = [S::i_splat(-EXCESS); N];
        for n in 0..N {
            let first = S::i_add(low[n][0], S::i_add(high[n][0], high[n][0]));
            let second = S::i_add(low[n][1], S::i_add(high[n][1], high[n][1]));
            sums[n] = S::i_add(S::i_join_even(first, second), sums[n]);
        }
        sums
    }
}
