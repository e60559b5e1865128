//! Panels of the 32-weight types: f16 scales (and mins) of the 16 rows, then planes of quants.

use super::super::isa::{Isa, LANES};
use super::{BIT_PLANE, HALF_ROW, Packed, add_bits, dword, nibbles, pack_f16, put};

/// Copies 16 bytes of nibbles at `from` of each row: ggml's order is already k-group `v` low, `v + 4` high.
pub(super) fn pack_nibbles(rows: &[&[u8]; LANES], from: usize, out: &mut [u8]) {
    for (lane, row) in rows.iter().enumerate() {
        for v in 0..4 {
            put(out, v, lane, dword(&row[from..], v));
        }
    }
}

/// Spreads 32 fifth bits at `from` of each row: weight `4 j + t` to bit `j` of byte `t`.
pub(super) fn pack_fifth_bits(rows: &[&[u8]; LANES], from: usize, out: &mut [u8]) {
    for (lane, row) in rows.iter().enumerate() {
        let bits = dword(&row[from..], 0);
        let plane = (0..8).fold(0u32, |plane, j| {
            let four = bits >> (4 * j) & 15;
            // Bit t of `four` to bit 0 of byte t.
            let spread = (four & 1) | (four & 2) << 7 | (four & 4) << 14 | (four & 8) << 21;
            plane | spread << j
        });
        put(out, 0, lane, plane);
    }
}

/// Scale, and min = `-offset * scale`.
///
/// # Safety
/// `d` points to 16 f16; the CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn symmetric<S: Isa>(d: *const u8, offset: f32) -> [(S::F, S::F); 2] {
    // SAFETY: 16 f16, as the caller promises.
    unsafe {
        let d = S::f_load_f16(d.cast());
        [(d, S::f_mul(d, S::f_splat(-offset))); 2]
    }
}

/// Scale and min from two rows of f16.
///
/// # Safety
/// `d` points to 32 f16; the CPU has the instruction set.
#[inline(always)]
unsafe fn asymmetric<S: Isa>(d: *const u8) -> [(S::F, S::F); 2] {
    // SAFETY: 32 f16, as the caller promises.
    unsafe { [(S::f_load_f16(d.cast()), S::f_load_f16(d.add(HALF_ROW).cast())); 2] }
}

/// `[d][nibbles]`, offset 8.
pub(crate) struct Q4_0;
/// `[d][m][nibbles]`.
pub(crate) struct Q4_1;
/// `[d][fifth bits][nibbles]`, offset 16.
pub(crate) struct Q5_0;
/// `[d][m][fifth bits][nibbles]`.
pub(crate) struct Q5_1;
/// `[d][bytes + 128]`, offset 128.
pub(crate) struct Q8_0;

impl Packed for Q4_0 {
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 18;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, quants) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        pack_nibbles(rows, 2, quants);
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { nibbles::<S>(block.add(HALF_ROW)) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { symmetric::<S>(block, 8.0) }
    }
}

impl Packed for Q4_1 {
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 20;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (scales, quants) = out.split_at_mut(2 * HALF_ROW);
        pack_f16(rows, 0, &mut scales[..HALF_ROW]);
        pack_f16(rows, 2, &mut scales[HALF_ROW..]);
        pack_nibbles(rows, 4, quants);
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { nibbles::<S>(block.add(2 * HALF_ROW)) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { asymmetric::<S>(block) }
    }
}

impl Packed for Q5_0 {
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 22;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, rest) = out.split_at_mut(HALF_ROW);
        let (bits, quants) = rest.split_at_mut(BIT_PLANE);
        pack_f16(rows, 0, d);
        pack_fifth_bits(rows, 2, bits);
        pack_nibbles(rows, 6, quants);
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { add_bits::<S, 4>(nibbles::<S>(block.add(HALF_ROW + BIT_PLANE)), block.add(HALF_ROW)) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { symmetric::<S>(block, 16.0) }
    }
}

impl Packed for Q5_1 {
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 24;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (scales, rest) = out.split_at_mut(2 * HALF_ROW);
        let (bits, quants) = rest.split_at_mut(BIT_PLANE);
        pack_f16(rows, 0, &mut scales[..HALF_ROW]);
        pack_f16(rows, 2, &mut scales[HALF_ROW..]);
        pack_fifth_bits(rows, 4, bits);
        pack_nibbles(rows, 8, quants);
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { add_bits::<S, 4>(nibbles::<S>(block.add(2 * HALF_ROW + BIT_PLANE)), block.add(2 * HALF_ROW)) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { asymmetric::<S>(block) }
    }
}

impl Packed for Q8_0 {
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 34;
    const HALVES: usize = 1;
    const WIDE: bool = true;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, quants) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        for (lane, row) in rows.iter().enumerate() {
            for v in 0..8 {
                // Flipping the sign bit adds 128.
                put(quants, v, lane, dword(&row[2..], v) ^ 0x8080_8080);
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let mut quants = [S::b_load(block.add(HALF_ROW)); 8];
            for j in 1..8 {
                quants[j] = S::b_load(block.add(HALF_ROW + 64 * j));
            }
            quants
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { symmetric::<S>(block, 128.0) }
    }
}
