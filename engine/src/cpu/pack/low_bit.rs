//! Panels of Q1_0 and Q2_0: f16 scales of the 16 rows, then planes of bits or pairs.

use super::super::isa::{Isa, LANES};
use super::block32::{pack_fifth_bits, symmetric};
use super::{BIT_PLANE, HALF_ROW, PAIR_PLANE, Packed, add_bits, pack_f16, pairs, put};

/// `[d][bits x 4]`, quants 0 and 2, offset 1.
pub(crate) struct Q1_0;
/// `[d][pairs x 2]`, offset 1.
pub(crate) struct Q2_0;

impl Packed for Q1_0 {
    const BLOCK: usize = 128;
    const FILE_BYTES: usize = 18;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, bits) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        for (g, out) in bits.chunks_exact_mut(BIT_PLANE).enumerate() {
            pack_fifth_bits(rows, 2 + 4 * g, out);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let zero = S::i_as_b(S::i_splat(0));
            add_bits::<S, 1>([zero; 8], block.add(HALF_ROW + BIT_PLANE * g))
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { symmetric::<S>(block, 1.0) }
    }
}

impl Packed for Q2_0 {
    const BLOCK: usize = 64;
    const FILE_BYTES: usize = 18;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, quants) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        for (g, out) in quants.chunks_exact_mut(PAIR_PLANE).enumerate() {
            for (lane, row) in rows.iter().enumerate() {
                // Byte j of the file's group holds k-group j of 4 weights.
                let group = &row[2 + 8 * g..2 + 8 * (g + 1)];
                for u in 0..2 {
                    let plane = (0..4).fold(0, |plane, i| plane | spread_pairs(group[4 * u + i]) << (2 * i));
                    put(out, u, lane, plane);
                }
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

/// Bits `2 t` and `2 t + 1` of a byte to the low end of byte `t`.
fn spread_pairs(byte: u8) -> u32 {
    let byte = u32::from(byte);
    (byte & 3) | (byte & 0x0c) << 6 | (byte & 0x30) << 12 | (byte & 0xc0) << 18
}
