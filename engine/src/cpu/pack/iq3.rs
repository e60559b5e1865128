//! Panels of IQ3: f16 scales, then per 32 weights the indices, signs and scales of the 16 rows.

use tandem_loader::quant::grids;
use tandem_loader::quant::iq3::{MAGNITUDES_S, MAGNITUDES_XXS};

use super::super::isa::{Isa, LANES};
use super::grid::{eight_signs, fours, half_steps, join, pack_dwords, parity7, signed_table, spread_signs};
use super::k_quants::transpose_bytes;
use super::{HALF_ROW, Packed, pack_f16};

static GRID_XXS: [u32; 256] = fours(&grids::IQ3_XXS);
static GRID_S: [u32; 512] = fours(&grids::IQ3_S);

/// Above every magnitude.
const OFFSET_XXS: i32 = 64;
const OFFSET_S: i32 = 16;
static QUANTS_XXS: [u8; 16] = signed_table(MAGNITUDES_XXS, OFFSET_XXS);
static QUANTS_S: [u8; 16] = signed_table(MAGNITUDES_S, OFFSET_S);

/// `[d]`, then per group `[indices 8][signs and scale, dwords]`.
pub(crate) struct Iq3Xxs;
/// `[d][scales 4]`, then per group `[indices 8][signs, dwords][ninth bits]`.
pub(crate) struct Iq3S;

/// The quants of 8 weights of each row from two grid entries.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn eight<S: Isa>(entries: [S::I; 2], signs: S::I, quants: &[u8; 16]) -> [S::B; 2] {
    // SAFETY: register operations.
    unsafe {
        let signs = S::i_as_b(spread_signs::<S>(signs));
        [
            S::b_lookup(quants, S::b_or(S::i_as_b(entries[0]), S::b_and(signs, 8))),
            S::b_lookup(quants, S::b_or(S::i_as_b(entries[1]), S::b_and(S::b_shr(signs, 4), 8))),
        ]
    }
}

/// The `i`-th 8 weights of a group of IQ3_XXS.
///
/// # Safety
/// `group` points to the group's indices; the CPU has the instruction set.
#[inline(always)]
unsafe fn eight_xxs<S: Isa>(group: *const u8, bits: S::I, parity: S::I, i: usize) -> [S::B; 2] {
    // SAFETY: 8 bits of index, as the table has.
    unsafe {
        let first = S::i_gather(GRID_XXS.as_ptr(), S::i_load_u8(group.add(2 * LANES * i)));
        let second = S::i_gather(GRID_XXS.as_ptr(), S::i_load_u8(group.add(2 * LANES * i + LANES)));
        eight::<S>([first, second], eight_signs::<S>(bits, parity, 7 * i as u32), &QUANTS_XXS)
    }
}

/// The `i`-th 8 weights of a group of IQ3_S.
///
/// # Safety
/// `group` points to the group's indices; the CPU has the instruction set.
#[inline(always)]
unsafe fn eight_s<S: Isa>(group: *const u8, signs: S::I, ninth: S::I, i: usize) -> [S::B; 2] {
    // SAFETY: 9 bits of index, as the table has.
    unsafe {
        let high = (S::i_and(S::i_shl(ninth, 8 - 2 * i as u32), 256), S::i_and(S::i_shl(ninth, 7 - 2 * i as u32), 256));
        let first = S::i_or(S::i_load_u8(group.add(2 * LANES * i)), high.0);
        let second = S::i_or(S::i_load_u8(group.add(2 * LANES * i + LANES)), high.1);
        let entries = [S::i_gather(GRID_S.as_ptr(), first), S::i_gather(GRID_S.as_ptr(), second)];
        eight::<S>(entries, S::i_and(S::i_shr(signs, 8 * i as u32), 255), &QUANTS_S)
    }
}

impl Packed for Iq3Xxs {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 98;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, groups) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        for (g, out) in groups.chunks_exact_mut(12 * LANES).enumerate() {
            transpose_bytes(rows, 2 + 8 * g, 8, out);
            pack_dwords(rows, 66 + 4 * g, 1, &mut out[8 * LANES..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 12 * LANES * g);
            let bits = S::i_load(group.add(8 * LANES));
            let parity = parity7::<S>(bits);
            join(
                eight_xxs::<S>(group, bits, parity, 0),
                eight_xxs::<S>(group, bits, parity, 1),
                eight_xxs::<S>(group, bits, parity, 2),
                eight_xxs::<S>(group, bits, parity, 3),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let bits = S::i_load(block.add(HALF_ROW + 12 * LANES * g + 8 * LANES));
            [half_steps::<S>(block, S::i_and(S::i_shr(bits, 28), 15), 0.5, OFFSET_XXS); 2]
        }
    }
}

impl Packed for Iq3S {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 110;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (head, groups) = out.split_at_mut(HALF_ROW + 4 * LANES);
        pack_f16(rows, 0, head);
        transpose_bytes(rows, 106, 4, &mut head[HALF_ROW..]);
        for (g, out) in groups.chunks_exact_mut(13 * LANES).enumerate() {
            transpose_bytes(rows, 2 + 8 * g, 8, out);
            pack_dwords(rows, 74 + 4 * g, 1, &mut out[8 * LANES..]);
            transpose_bytes(rows, 66 + g, 1, &mut out[12 * LANES..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 4 * LANES + 13 * LANES * g);
            let signs = S::i_load(group.add(8 * LANES));
            let ninth = S::i_load_u8(group.add(12 * LANES));
            join(
                eight_s::<S>(group, signs, ninth, 0),
                eight_s::<S>(group, signs, ninth, 1),
                eight_s::<S>(group, signs, ninth, 2),
                eight_s::<S>(group, signs, ninth, 3),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let bytes = S::i_load_u8(block.add(HALF_ROW + LANES * (g / 2)));
            let sc = S::i_and(S::i_shr(bytes, 4 * (g % 2) as u32), 15);
            // 2 sc + 1 is twice sc + 1/2.
            [half_steps::<S>(block, sc, 2.0, OFFSET_S); 2]
        }
    }
}
