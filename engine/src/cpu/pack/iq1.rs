//! Panels of IQ1: f16 scales, then per 32 weights the indices and high bits of the 16 rows.
//!
//! The grid's -1, 0, 1 are shifted by an eighth. IQ1_S shifts 32 weights together, which goes into the min. IQ1_M shifts by
//! 8, finer than the contract's groups: there the shift goes into the quants, which count eighths.

use tandem_loader::quant::{blocks, grids, iq1};

use super::super::isa::{Isa, LANES};
use super::grid::{both_nibbles, eights, join};
use super::k_quants::transpose_bytes;
use super::{HALF_ROW, Packed, pack_f16};

static GRID: [u32; 2048] = eights(&grids::IQ1);

/// Quants of IQ1_M from a grid code and (fourth bit) the shift's direction: eighths, offset by 16.
static EIGHTHS: [u8; 16] = [9, 17, 25, 0, 0, 0, 0, 0, 7, 15, 23, 0, 0, 0, 0, 0];
const EIGHTHS_OFFSET: i32 = 16;

/// `[d]`, then per group `[indices 4][high bits, words]`.
pub(crate) struct Iq1S;
/// `[d][scales 6]`, then per group `[indices 4][high bits 2]`.
pub(crate) struct Iq1M;

/// The 48 bits of the scales of IQ1_M in 6 bytes: the 6 bits of group `g < 6` in byte `g`, those of groups 6 and 7 in twos
/// above them.
fn scale_bytes(block: &iq1::Iq1M) -> [u8; 6] {
    let group = |g: usize| block.scale(2 * g) | block.scale(2 * g + 1) << 3;
    std::array::from_fn(|i| group(i) | (group(6 + i / 3) >> (2 * (i % 3)) & 3) << 6)
}

/// The `i`-th 8 weights of a group of IQ1_S.
///
/// # Safety
/// `group` points to the group's indices; the CPU has the instruction set.
#[inline(always)]
unsafe fn eight_s<S: Isa>(group: *const u8, high: S::I, i: usize) -> [S::B; 2] {
    // SAFETY: 11 bits of index, as the table has.
    unsafe {
        let high = S::i_shl(S::i_and(S::i_shr(high, 3 * i as u32), 7), 8);
        let index = S::i_or(S::i_load_u8(group.add(LANES * i)), high);
        both_nibbles::<S>(S::i_gather(GRID.as_ptr(), index))
    }
}

/// The `i`-th 8 weights of a group of IQ1_M, in eighths.
///
/// # Safety
/// `group` points to the group's indices and high bits; the CPU has the instruction set.
#[inline(always)]
unsafe fn eight_m<S: Isa>(group: *const u8, i: usize) -> [S::B; 2] {
    // SAFETY: 11 bits of index, as the table has.
    unsafe {
        let high = S::i_shr(S::i_load_u8(group.add(LANES * (4 + i / 2))), 4 * (i % 2) as u32);
        let index = S::i_or(S::i_load_u8(group.add(LANES * i)), S::i_shl(S::i_and(high, 7), 8));
        // The fourth bit of all nibbles, where the shift is down.
        let down = S::i_and(S::i_shr(S::i_shl(high, 28), 31), 0x8888_8888_u32 as i32);
        let [low, high] = both_nibbles::<S>(S::i_or(S::i_gather(GRID.as_ptr(), index), down));
        [S::b_lookup(&EIGHTHS, low), S::b_lookup(&EIGHTHS, high)]
    }
}

/// Scale `d (2 sc + 1)` and min of quants in eighths; sc is the low 3 bits.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn eighths_scale<S: Isa>(d: S::F, sc: S::I) -> (S::F, S::F) {
    // SAFETY: register operations.
    unsafe {
        let sc = S::i_add(S::i_shl(S::i_and(sc, 7), 1), S::i_splat(1));
        let scale = S::f_mul(d, S::i_to_f(sc));
        (scale, S::f_mul(scale, S::f_splat(-EIGHTHS_OFFSET as f32)))
    }
}

impl Packed for Iq1S {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 50;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, groups) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        for (g, out) in groups.chunks_exact_mut(6 * LANES).enumerate() {
            transpose_bytes(rows, 2 + 4 * g, 4, out);
            pack_f16(rows, 34 + 2 * g, &mut out[4 * LANES..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 6 * LANES * g);
            let high = S::i_load_u16(group.add(4 * LANES));
            join(
                eight_s::<S>(group, high, 0),
                eight_s::<S>(group, high, 1),
                eight_s::<S>(group, high, 2),
                eight_s::<S>(group, high, 3),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let high = S::i_load_u16(block.add(HALF_ROW + 6 * LANES * g + 4 * LANES));
            let sc = S::i_add(S::i_and(S::i_shr(high, 11), 14), S::i_splat(1));
            let scale = S::f_mul(S::f_load_f16(block.cast()), S::i_to_f(sc));
            // Codes are offset by 1; the shift is an eighth up, or down.
            let down = S::i_to_f(S::i_shr(high, 15));
            let min = S::f_fma(down, S::f_splat(-0.25), S::f_splat(0.125 - 1.0));
            [(scale, S::f_mul(scale, min)); 2]
        }
    }
}

impl Packed for Iq1M {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 56;
    const HALVES: usize = 2;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (head, groups) = out.split_at_mut(HALF_ROW + 6 * LANES);
        let (ds, scales) = head.split_at_mut(HALF_ROW);
        for (lane, row) in rows.iter().enumerate() {
            let block = &blocks::<iq1::Iq1M>(row)[0];
            ds[2 * lane..2 * lane + 2].copy_from_slice(&block.d().0);
            for (i, byte) in scale_bytes(block).into_iter().enumerate() {
                scales[LANES * i + lane] = byte;
            }
        }
        for (g, out) in groups.chunks_exact_mut(6 * LANES).enumerate() {
            transpose_bytes(rows, 4 * g, 4, out);
            transpose_bytes(rows, 32 + 2 * g, 2, &mut out[4 * LANES..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 6 * LANES + 6 * LANES * g);
            join(eight_m::<S>(group, 0), eight_m::<S>(group, 1), eight_m::<S>(group, 2), eight_m::<S>(group, 3))
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let bytes = block.add(HALF_ROW);
            let six = if g < 6 {
                S::i_load_u8(bytes.add(LANES * g))
            } else {
                let bytes = bytes.add(3 * LANES * (g - 6));
                let first = S::i_shr(S::i_load_u8(bytes), 6);
                let second = S::i_shl(S::i_shr(S::i_load_u8(bytes.add(LANES)), 6), 2);
                let third = S::i_shl(S::i_shr(S::i_load_u8(bytes.add(2 * LANES)), 6), 4);
                S::i_or(first, S::i_or(second, third))
            };
            let d = S::f_mul(S::f_load_f16(block.cast()), S::f_splat(0.125));
            [eighths_scale::<S>(d, six), eighths_scale::<S>(d, S::i_shr(six, 3))]
        }
    }
}
