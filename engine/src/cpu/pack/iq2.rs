//! Panels of IQ2: f16 scales, then per 32 weights the indices, signs and scales of the 16 rows.

use tandem_loader::quant::grids;
use tandem_loader::quant::iq2::MAGNITUDES;

use super::super::isa::{Isa, LANES};
use super::grid::{
    both_nibbles, eight_signs, eights, half_steps, join, pack_dwords, parity7, signed_table, spread_signs,
};
use super::k_quants::transpose_bytes;
use super::{HALF_ROW, Packed, pack_f16};

static GRID_XXS: [u32; 256] = eights(&grids::IQ2_XXS);
static GRID_XS: [u32; 512] = eights(&grids::IQ2_XS);
static GRID_S: [u32; 1024] = eights(&grids::IQ2_S);

/// Above every magnitude.
const OFFSET: i32 = 64;
static QUANTS: [u8; 16] = signed_table(MAGNITUDES, OFFSET);

/// `[d]`, then per group `[indices 4][signs and scale, dwords]`.
pub(crate) struct Iq2Xxs;
/// `[d]`, then per group `[indices and signs, 2 x dwords][scales]`.
pub(crate) struct Iq2Xs;
/// `[d]`, then per group `[indices 4][signs, dwords][high bits][scales]`.
pub(crate) struct Iq2S;

/// The quants of 8 weights of each row.
///
/// # Safety
/// The table is valid for every index; the CPU has the instruction set.
#[inline(always)]
unsafe fn eight<S: Isa>(table: *const u32, index: S::I, signs: S::I) -> [S::B; 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let [low, high] = both_nibbles::<S>(S::i_or(S::i_gather(table, index), spread_signs::<S>(signs)));
        [S::b_lookup(&QUANTS, low), S::b_lookup(&QUANTS, high)]
    }
}

/// The `i`-th 8 weights of a group of IQ2_XXS.
///
/// # Safety
/// `group` points to the group's indices; the CPU has the instruction set.
#[inline(always)]
unsafe fn eight_xxs<S: Isa>(group: *const u8, bits: S::I, parity: S::I, i: usize) -> [S::B; 2] {
    // SAFETY: 8 bits of index, as the table has.
    unsafe {
        let signs = eight_signs::<S>(bits, parity, 7 * i as u32);
        eight::<S>(GRID_XXS.as_ptr(), S::i_load_u8(group.add(LANES * i)), signs)
    }
}

/// 8 weights of IQ2_XS from the 16 bits at bit `at`.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn eight_xs<S: Isa>(bits: S::I, parity: S::I, at: u32) -> [S::B; 2] {
    // SAFETY: 9 bits of index, as the table has.
    unsafe {
        let index = S::i_and(S::i_shr(bits, at), 511);
        eight::<S>(GRID_XS.as_ptr(), index, eight_signs::<S>(bits, parity, at + 9))
    }
}

/// The `i`-th 8 weights of a group of IQ2_S.
///
/// # Safety
/// `group` points to the group's indices; the CPU has the instruction set.
#[inline(always)]
unsafe fn eight_s<S: Isa>(group: *const u8, signs: S::I, high: S::I, i: usize) -> [S::B; 2] {
    // SAFETY: 10 bits of index, as the table has.
    unsafe {
        let high = S::i_shl(S::i_and(S::i_shr(high, 2 * i as u32), 3), 8);
        let index = S::i_or(S::i_load_u8(group.add(LANES * i)), high);
        eight::<S>(GRID_S.as_ptr(), index, S::i_and(S::i_shr(signs, 8 * i as u32), 255))
    }
}

/// Scales and mins of both halves from a byte of two nibbles per row.
///
/// # Safety
/// `d` points to 16 f16 and `scales` to 16 bytes; the CPU has the instruction set.
#[inline(always)]
unsafe fn scale_nibbles<S: Isa>(d: *const u8, scales: *const u8) -> [(S::F, S::F); 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let sc = S::i_load_u8(scales);
        [half_steps::<S>(d, S::i_and(sc, 15), 0.25, OFFSET), half_steps::<S>(d, S::i_shr(sc, 4), 0.25, OFFSET)]
    }
}

impl Packed for Iq2Xxs {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 66;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, groups) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        for (g, out) in groups.chunks_exact_mut(8 * LANES).enumerate() {
            transpose_bytes(rows, 2 + 8 * g, 4, out);
            pack_dwords(rows, 6 + 8 * g, 1, &mut out[4 * LANES..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 8 * LANES * g);
            let bits = S::i_load(group.add(4 * LANES));
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
            let bits = S::i_load(block.add(HALF_ROW + 8 * LANES * g + 4 * LANES));
            [half_steps::<S>(block, S::i_and(S::i_shr(bits, 28), 15), 0.25, OFFSET); 2]
        }
    }
}

impl Packed for Iq2Xs {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 74;
    const HALVES: usize = 2;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, groups) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        for (g, out) in groups.chunks_exact_mut(9 * LANES).enumerate() {
            pack_dwords(rows, 2 + 8 * g, 2, out);
            transpose_bytes(rows, 66 + g, 1, &mut out[8 * LANES..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 9 * LANES * g);
            let (first, second) = (S::i_load(group), S::i_load(group.add(4 * LANES)));
            let (parity1, parity2) = (parity7::<S>(first), parity7::<S>(second));
            join(
                eight_xs::<S>(first, parity1, 0),
                eight_xs::<S>(first, parity1, 16),
                eight_xs::<S>(second, parity2, 0),
                eight_xs::<S>(second, parity2, 16),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { scale_nibbles::<S>(block, block.add(HALF_ROW + 9 * LANES * g + 8 * LANES)) }
    }
}

impl Packed for Iq2S {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 82;
    const HALVES: usize = 2;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, groups) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        for (g, out) in groups.chunks_exact_mut(10 * LANES).enumerate() {
            transpose_bytes(rows, 2 + 4 * g, 4, out);
            pack_dwords(rows, 34 + 4 * g, 1, &mut out[4 * LANES..]);
            transpose_bytes(rows, 66 + g, 1, &mut out[8 * LANES..]);
            transpose_bytes(rows, 74 + g, 1, &mut out[9 * LANES..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 10 * LANES * g);
            let signs = S::i_load(group.add(4 * LANES));
            let high = S::i_load_u8(group.add(8 * LANES));
            join(
                eight_s::<S>(group, signs, high, 0),
                eight_s::<S>(group, signs, high, 1),
                eight_s::<S>(group, signs, high, 2),
                eight_s::<S>(group, signs, high, 3),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { scale_nibbles::<S>(block, block.add(HALF_ROW + 10 * LANES * g + 9 * LANES)) }
    }
}
