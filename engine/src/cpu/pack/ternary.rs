//! Panels of TQ1_0 and TQ2_0: f16 scales of the 16 rows, then vectors of 8 rows by 8 consecutive k.
//!
//! Vector `j` of a group of 32 holds k = `8 (j / 2) .. 8 (j / 2) + 8` of rows 0 to 8 (even `j`) or 8 to 16 (odd `j`).

use rayon::prelude::*;
use tandem_loader::quant::ternary::{Tq1, Tq2, from_digits};
use tandem_loader::quant::{blocks, k_quants};

use super::super::isa::{Isa, LANES};
use super::block32::symmetric;
use super::{GROUP, HALF_ROW, PAIR_PLANE, Packed, pack_f16, pairs};

/// `[d][ternary digits, 13 vectors]`. Digits 0 to 4 of vector `g < 8` are vectors 0 to 4 of group `g`. The other three of
/// each group follow one another in the digits of vectors 8 to 12.
pub(crate) struct Tq1_0;
/// TQ2_0, `[d][pairs x 8]`: of 3 levels, -1, 0 and 1 times the scale; or of 4, as 2 bits can also say twice the scale. Sums
/// of activations cannot, and so those are in the order of all other types.
pub(crate) struct Tq2Levels<const N: usize>;

/// Whether all weights of TQ2_0 blocks are -1, 0 or 1 times the scale: those of all models that anybody trains.
pub(crate) fn is_ternary(file: &[u8]) -> bool {
    let has_three = |block: &[u8]| block[..64].iter().fold(0, |found, byte| found | byte & byte >> 1) & 0x55 != 0;
    !file.par_chunks_exact(Tq2Levels::<3>::FILE_BYTES).with_min_len(4096).any(has_three)
}

/// Bytes of a vector of digits.
const DIGITS: usize = 64;
/// Digits in a byte.
const PER_BYTE: usize = 5;

/// The weight of a block, and the row, in byte `(row slot, i)` of vector `j` of group `g`.
fn weight_at(g: usize, j: usize, slot: usize, i: usize) -> (usize, usize) {
    (slot + 8 * (j % 2), 32 * g + 8 * (j / 2) + i)
}

/// Where digit `n` of vector `v` belongs: group, and vector of the group.
fn place(v: usize, n: usize) -> Option<(usize, usize)> {
    if v < 8 {
        return Some((v, n));
    }
    let rest = PER_BYTE * (v - 8) + n;
    (rest < 24).then_some((rest / 3, PER_BYTE + rest % 3))
}

/// The first digit of every byte: how many thirds of 256 it reaches.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn first_digit<S: Isa>(bytes: S::B) -> S::B {
    // SAFETY: register operations.
    unsafe { S::b_add(S::b_at_least(bytes, 86), S::b_at_least(bytes, 171)) }
}

/// Moves the next digit to the front: three times what is left, modulo 256.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn next_digit<S: Isa>(bytes: S::B) -> S::B {
    // SAFETY: register operations.
    unsafe { S::b_add(S::b_add(bytes, bytes), bytes) }
}

impl Packed for Tq1_0 {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 54;
    const HALVES: usize = 1;
    const OCTETS: bool = true;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, vectors) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 52, d);
        let quants = rows.map(|row| {
            let block = &blocks::<Tq1>(row)[0];
            std::array::from_fn::<u8, 256, _>(|k| block.quant(k))
        });
        for (v, vector) in vectors.chunks_exact_mut(DIGITS).enumerate() {
            for (at, byte) in vector.iter_mut().enumerate() {
                let digit = |n: usize| {
                    let (g, j) = place(v, n)?;
                    let (row, k) = weight_at(g, j, at / 8, at % 8);
                    Some(quants[row][k])
                };
                // The last digit of the last vector is not used.
                *byte = from_digits(std::array::from_fn(|n| digit(n).unwrap_or(0)));
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let vectors = block.add(HALF_ROW);
            let mut bytes = S::b_load(vectors.add(DIGITS * g));
            let mut quants = [bytes; 8];
            for j in 0..PER_BYTE {
                quants[j] = first_digit::<S>(bytes);
                bytes = next_digit::<S>(bytes);
            }
            for i in 0..3 {
                let rest = 3 * g + i;
                let mut bytes = S::b_load(vectors.add(DIGITS * (8 + rest / PER_BYTE)));
                for _ in 0..rest % PER_BYTE {
                    bytes = next_digit::<S>(bytes);
                }
                quants[PER_BYTE + i] = first_digit::<S>(bytes);
            }
            quants
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { symmetric::<S>(block, 1.0) }
    }
}

impl<const N: usize> Packed for Tq2Levels<N> {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 66;
    const HALVES: usize = 1;
    const OCTETS: bool = N == 3;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, planes) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 64, d);
        for (g, plane) in planes.chunks_exact_mut(PAIR_PLANE).enumerate() {
            for (at, byte) in plane.iter_mut().enumerate() {
                let pair = |i: usize| {
                    let (j, at) = (4 * (at / 64) + i, at % 64);
                    let (row, k) = if Self::OCTETS {
                        weight_at(g, j, at / 8, at % 8)
                    } else {
                        (at / 4, GROUP * g + 4 * j + at % 4)
                    };
                    k_quants::two_bits(&blocks::<Tq2>(rows[row])[0].qs, k)
                };
                *byte = pair(0) | pair(1) << 2 | pair(2) << 4 | pair(3) << 6;
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { pairs::<S>(block.add(HALF_ROW + PAIR_PLANE * g)) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { symmetric::<S>(block, 1.0) }
    }
}
