//! Panels of IQ4_NL and IQ4_XS: as Q4_0 and Q4_K, with a table between nibbles and quants.

use tandem_loader::quant::iq4::VALUES;

use super::super::isa::{Isa, LANES};
use super::block32::{pack_nibbles, symmetric};
use super::k_quants::transpose_bytes;
use super::{HALF_ROW, NIBBLE_PLANE, Packed, looked_up, nibbles, offset_table, pack_f16};

/// Makes all values unsigned.
const OFFSET: i32 = 128;
static TABLE: [u8; 16] = offset_table(VALUES, OFFSET);

/// `[d][nibbles]`.
pub(crate) struct Iq4Nl;
/// `[d][high scales 2][low scales 4][nibbles x 8]`.
pub(crate) struct Iq4Xs;

impl Packed for Iq4Nl {
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 18;
    const HALVES: usize = 1;
    const WIDE: bool = true;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (d, quants) = out.split_at_mut(HALF_ROW);
        pack_f16(rows, 0, d);
        pack_nibbles(rows, 2, quants);
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, _: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { looked_up::<S>(&TABLE, nibbles::<S>(block.add(HALF_ROW))) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, _: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { symmetric::<S>(block, OFFSET as f32) }
    }
}

impl Packed for Iq4Xs {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 136;
    const HALVES: usize = 1;
    const WIDE: bool = true;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (head, quants) = out.split_at_mut(HALF_ROW + 6 * LANES);
        pack_f16(rows, 0, head);
        transpose_bytes(rows, 2, 6, &mut head[HALF_ROW..]);
        for (g, out) in quants.chunks_exact_mut(NIBBLE_PLANE).enumerate() {
            pack_nibbles(rows, 8 + 16 * g, out);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { looked_up::<S>(&TABLE, nibbles::<S>(block.add(HALF_ROW + 6 * LANES + NIBBLE_PLANE * g))) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let bytes = block.add(HALF_ROW);
            let low = S::i_and(S::i_shr(S::i_load_u8(bytes.add(LANES * (2 + g / 2))), 4 * (g % 2) as u32), 15);
            let high = S::i_and(S::i_shr(S::i_load_u8(bytes.add(LANES * (g / 4))), 2 * (g % 4) as u32), 3);
            let sc = S::i_add(S::i_or(low, S::i_shl(high, 4)), S::i_splat(-32));
            let scale = S::f_mul(S::f_load_f16(block.cast()), S::i_to_f(sc));
            [(scale, S::f_mul(scale, S::f_splat(-OFFSET as f32))); 2]
        }
    }
}
