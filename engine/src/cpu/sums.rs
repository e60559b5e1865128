//! Products of ternary weights: activations are left out, added or subtracted. What is multiplied is each group's sum, by its
//! scale.

use super::isa::Isa;
use super::matmul::ActGroup;
use super::pack::GROUP;

/// What the sums of a group are too large by: bytes stay unsigned while they are added up, each with 127 too much.
const EXCESS: i32 = 127 * GROUP as i32;

/// The sums of `w a` of 16 rows over a group, for `N` columns; quants 0, 1 and 2 are the weights -1, 0 and 1.
///
/// # Safety
/// `acts` point to groups; the CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn group<S: Isa, const N: usize>(quants: &[S::B; 8], acts: &[*const ActGroup; N]) -> [S::I; N] {
    // SAFETY: 8 bytes at each octet of a group's 32.
    unsafe {
        let mut rows = [[S::i_splat(-EXCESS); 2]; N];
        for octet in 0..GROUP / 8 {
            for half in 0..2 {
                let w = S::b_ternary(quants[2 * octet + half]);
                for n in 0..N {
                    let a = S::b_splat8((&raw const (*acts[n]).q).cast::<i8>().add(8 * octet));
                    rows[n][half] = S::i_add_ternary(rows[n][half], w, a);
                }
            }
        }
        let mut sums = [rows[0][0]; N];
        for n in 0..N {
            sums[n] = S::i_join_even(rows[n][0], rows[n][1]);
        }
        sums
    }
}
