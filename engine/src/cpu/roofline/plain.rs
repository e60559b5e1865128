//! The loops without an instruction set: what the compiler makes of plain Rust, with operands in the L1 cache.

use std::hint::black_box;

use super::super::isa::scalar::Scalar;
use super::super::isa::{Isa, LANES};
use super::Loop;

/// Vectors of weights, used in turn: 1 KiB.
const VECTORS: usize = 16;
/// Sums of f32 that do not wait for each other.
const CHAINS: usize = 3;

/// The plain kernels' dot product of 64 bytes, for each of some vectors.
pub(super) const INT8: Loop = Loop { run: int8, ops: (2 * 4 * LANES * VECTORS) as u64 };
/// A multiplication and an addition of 16 lanes.
pub(super) const F32: Loop = Loop { run: f32, ops: (2 * LANES * CHAINS) as u64 };

fn int8(iterations: u64) {
    let mut weights = [[3u8; 4 * LANES]; VECTORS];
    let activations = black_box([5i8; 4]);
    let mut sum = [0; LANES];
    for _ in 0..iterations {
        // Unknown to the compiler again in each iteration.
        black_box(&mut weights);
        for w in &weights {
            // SAFETY: plain Rust; four activations.
            sum = unsafe { Scalar::dot4(sum, *w, activations.as_ptr()) };
        }
    }
    black_box(sum);
}

fn f32(iterations: u64) {
    let (half, one): (f32, f32) = black_box((0.5, 1.0));
    let mut sums: [[f32; LANES]; CHAINS] = black_box([[0.25; LANES]; CHAINS]);
    for _ in 0..iterations {
        for sum in &mut sums {
            // SAFETY: plain Rust.
            *sum = unsafe { Scalar::f_fma(*sum, [half; LANES], [one; LANES]) };
        }
    }
    black_box(sums);
}
