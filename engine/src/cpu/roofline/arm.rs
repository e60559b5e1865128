//! The loops for NEON. Values stay in registers.

use std::arch::aarch64::*;

use super::super::isa::neon::{Dot, Widening, sdot};
use super::Loop;

/// Sums that do not wait for each other: as many as the latency of these instructions (up to 4 cycles) times those begun per
/// cycle (up to 4). With the operands they fit the 32 registers.
const CHAINS: usize = 16;

/// `smull` of both halves, `addp` and `sadalp`: 16 products.
pub(super) const INT8_NEON: Loop = Loop { run: int8_neon, ops: 2 * 16 * CHAINS as u64 };
/// `sdot`: 16 products.
pub(super) const INT8_DOTPROD: Loop = Loop { run: int8_dotprod, ops: 2 * 16 * CHAINS as u64 };
/// `fmla` of 4 lanes.
pub(super) const F32: Loop = Loop { run: f32, ops: 2 * 4 * CHAINS as u64 };

#[target_feature(enable = "neon")]
fn int8_neon(iterations: u64) {
    let (mut w, a) = (vdupq_n_s8(3), vdupq_n_s8(5));
    let mut sums = [vdupq_n_s32(0); CHAINS];
    for _ in 0..iterations {
        for sum in &mut sums {
            // The same product for each sum, were it not for this.
            opaque!(vreg, w);
            // SAFETY: the instructions are those of NEON.
            *sum = unsafe { Widening::dot(*sum, w, a) };
            opaque!(vreg, *sum);
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
fn int8_dotprod(iterations: u64) {
    let (w, a) = (vdupq_n_s8(3), vdupq_n_s8(5));
    let mut sums = [vdupq_n_s32(0); CHAINS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = sdot(*sum, w, a);
            opaque!(vreg, *sum);
        }
    }
}

#[target_feature(enable = "neon")]
fn f32(iterations: u64) {
    // The sums stop growing at 2^24: no overflow, and no denormal numbers, which some CPUs take longer for.
    let one = vdupq_n_f32(1.0);
    let mut sums = [one; CHAINS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = vfmaq_f32(*sum, one, one);
            opaque!(vreg, *sum);
        }
    }
}
