//! Panels of plain numbers: for every k the 16 rows' elements together.

use super::super::isa::{Isa, LANES};

/// A float type's panel layout and decoder.
pub(crate) trait PackedFloat: 'static {
    /// Bytes per element.
    const BYTES: usize;

    /// The 16 rows' elements at one k.
    ///
    /// # Safety
    /// `p` points to 16 elements; the CPU has the instruction set.
    unsafe fn load<S: Isa>(p: *const u8) -> S::F;

    /// Interleaves rows of equal length.
    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        for (k, out) in out.chunks_exact_mut(LANES * Self::BYTES).enumerate() {
            for (out, row) in out.chunks_exact_mut(Self::BYTES).zip(rows) {
                out.copy_from_slice(&row[k * Self::BYTES..(k + 1) * Self::BYTES]);
            }
        }
    }
}

/// IEEE single precision.
pub(crate) struct F32;
/// IEEE half precision.
pub(crate) struct F16;
/// bfloat16.
pub(crate) struct BF16;

impl PackedFloat for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const u8) -> S::F {
        // SAFETY: 16 elements, as the caller promises.
        unsafe { S::f_load(p.cast()) }
    }
}

impl PackedFloat for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const u8) -> S::F {
        // SAFETY: 16 elements, as the caller promises.
        unsafe { S::f_load_f16(p.cast()) }
    }
}

impl PackedFloat for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const u8) -> S::F {
        // SAFETY: 16 elements, as the caller promises.
        unsafe { S::f_load_bf16(p.cast()) }
    }
}
