//! 4-bit floats (E2M1) with 8-bit float scales: MXFP4 of the OCP Microscaling Formats (MX) specification 1.0, and NVFP4.
//!
//! As in ggml the 16 values are doubled, to be integers, and the scales halved.

use bytemuck::{Pod, Zeroable};

use super::block32::nibbles;
use super::blocks;

/// The 16 values of E2M1, doubled.
pub const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 weights: `w = 2^(e - 128) v[q]`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Mxfp4 {
    /// Scale: an exponent (E8M0). 255, which is NaN in the specification, counts on as in ggml.
    pub e: u8,
    /// Nibbles, placed as in [`super::block32`].
    pub qs: [u8; 16],
}

/// 64 weights in groups of 16: `w = d / 2 v[q]`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Nvfp4 {
    /// Scales of the groups, UE4M3; see [`ue4m3_half`].
    pub d: [u8; 4],
    /// Nibbles: byte `8 g + l` holds weights `16 g + l` (low) and `16 g + 8 + l` (high).
    pub qs: [u8; 32],
}

/// Half of the value of an E8M0 scale: `2^(e - 128)`.
pub fn e8m0_half(e: u8) -> f32 {
    // The two smallest are below the normal numbers.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Half of the value of an unsigned float with 4 bits of exponent (bias 7) and 3 of mantissa. The eighth bit is ignored;
/// 0x7f, which is NaN, counts as 0, as in ggml.
pub fn ue4m3_half(bits: u8) -> f32 {
    if bits == 0x7f {
        return 0.0;
    }
    // Placed at the mantissa's top, the bits are an f32 whose exponent is 120 too small.
    f32::from_bits(u32::from(bits & 0x7f) << 20) * 2f32.powi(119)
}

/// Decodes MXFP4.
pub fn decode_mxfp4(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks::<Mxfp4>(bytes)) {
        let scale = e8m0_half(b.e);
        *y = nibbles(&b.qs).map(|q| scale * f32::from(VALUES[usize::from(q)]));
    }
}

/// Decodes NVFP4.
pub fn decode_nvfp4(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<64>().0.iter_mut().zip(blocks::<Nvfp4>(bytes)) {
        let groups = y.as_chunks_mut::<16>().0.iter_mut().zip(b.qs.as_chunks::<8>().0).zip(b.d);
        for ((y, qs), d) in groups {
            let scale = ue4m3_half(d);
            let q = |i: usize| if i < 8 { qs[i] & 15 } else { qs[i - 8] >> 4 };
            *y = std::array::from_fn(|i| scale * f32::from(VALUES[usize::from(q(i))]));
        }
    }
}
