//! Panels of MXFP4 and NVFP4: 8-bit float scales of the 16 rows, then nibbles that a table turns into integers.

use tandem_loader::quant::fp4::VALUES;

use super::super::isa::{Isa, LANES};
use super::block32::pack_nibbles;
use super::k_quants::transpose_bytes;
use super::{NIBBLE_PLANE, Packed, dword, looked_up, nibbles, offset_table, put};

/// Makes all values unsigned.
const OFFSET: i32 = 16;
static TABLE: [u8; 16] = offset_table(VALUES, OFFSET);

/// `[e][nibbles]`.
pub(crate) struct Mxfp4;
/// `[d 4][nibbles x 2]`.
pub(crate) struct Nvfp4;

/// `2^(n - 64)`.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn power<S: Isa>(n: S::I) -> S::F {
    // SAFETY: register operations.
    unsafe { S::i_as_f(S::i_shl(S::i_add(n, S::i_splat(127 - 64)), 23)) }
}

/// Scale and min from UE4M3 scales, of which half is wanted.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn ue4m3<S: Isa>(bits: S::I) -> (S::F, S::F) {
    // SAFETY: register operations.
    unsafe {
        // 0x7f is NaN and counts as 0. All ones where it is there, else 0.
        let nan = S::i_shr(S::i_add(S::i_xor(bits, S::i_splat(0x7f)), S::i_splat(-1)), 31);
        let bits = S::i_add(S::i_and(bits, 0x7f), S::i_and(nan, -0x7f));
        // `significand * 2^(exponent - 10)`, with 8 added to the significand where the exponent is not 0; else that is 1. (As
        // f32 with a small exponent the bits would be the number at once, but some CPUs take long for such numbers.)
        let exponent = S::i_shr(bits, 3);
        let normal = S::i_shr(S::i_add(exponent, S::i_splat(15)), 4);
        let significand = S::i_or(S::i_and(bits, 7), S::i_shl(normal, 3));
        let exponent = S::i_add(S::i_sub(exponent, normal), S::i_splat(1 - 11 + 127));
        let scale = S::f_mul(S::i_to_f(significand), S::i_as_f(S::i_shl(exponent, 23)));
        (scale, S::f_mul(scale, S::f_splat(-OFFSET as f32)))
    }
}

impl Packed for Mxfp4 {
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 17;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (scales, quants) = out.split_at_mut(LANES);
        transpose_bytes(rows, 0, 1, scales);
        pack_nibbles(rows, 1, quants);
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { looked_up::<S>(&TABLE, nibbles::<S>(block.add(LANES))) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            // 2^(e - 128) as a product of two powers that are normal numbers, whatever e.
            let e = S::i_load_u8(block);
            let (half, other_half) = (S::i_shr(e, 1), S::i_shr(S::i_add(e, S::i_splat(1)), 1));
            let scale = S::f_mul(power::<S>(half), power::<S>(other_half));
            [(scale, S::f_mul(scale, S::f_splat(-OFFSET as f32))); 2]
        }
    }
}

impl Packed for Nvfp4 {
    const BLOCK: usize = 64;
    const FILE_BYTES: usize = 36;
    const HALVES: usize = 2;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (scales, quants) = out.split_at_mut(4 * LANES);
        transpose_bytes(rows, 0, 4, scales);
        for (g, out) in quants.chunks_exact_mut(NIBBLE_PLANE).enumerate() {
            for (lane, row) in rows.iter().enumerate() {
                // The file has k-groups 0 and 2, 1 and 3, 4 and 6, 5 and 7 together in a dword's halves.
                let pair = |i: usize| (dword(&row[4 + 16 * g..], i), dword(&row[4 + 16 * g..], i + 2));
                for i in 0..2 {
                    let (a, b) = pair(i);
                    put(out, i, lane, a & 0x0f0f_0f0f | (b & 0x0f0f_0f0f) << 4);
                    put(out, i + 2, lane, a >> 4 & 0x0f0f_0f0f | b & 0xf0f0_f0f0);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { looked_up::<S>(&TABLE, nibbles::<S>(block.add(4 * LANES + NIBBLE_PLANE * g))) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let bytes = block.add(2 * LANES * g);
            [ue4m3::<S>(S::i_load_u8(bytes)), ue4m3::<S>(S::i_load_u8(bytes.add(LANES)))]
        }
    }
}
