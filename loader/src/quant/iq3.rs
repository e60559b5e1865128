//! IQ3: groups of 4 magnitudes from a grid, with a sign each.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, blocks, eighth_sign, grids, point, signed};

/// Weights per super-block.
pub const BLOCK: usize = 256;

/// The magnitudes of [`grids::IQ3_XXS`].
pub const MAGNITUDES_XXS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
/// The magnitudes of [`grids::IQ3_S`].
pub const MAGNITUDES_S: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// Groups of 32: `w = d (sc + 1/2) / 2 (+- g)`, sc 4 bits, g from [`grids::IQ3_XXS`] by 4.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq3Xxs {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Indices, one per 4 weights.
    pub qs: [u8; 64],
    /// Per group of 32, little-endian 32 bits: from the low end 4 times 7 signs (of 8 weights; the number of minus signs
    /// is even), and the scale.
    pub signs: [[u8; 4]; 8],
}

/// Groups of 32: `w = d (2 sc + 1) (+- g)`, sc 4 bits, g from [`grids::IQ3_S`] by 4.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq3S {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Low 8 bits of the indices, one per 4 weights.
    pub qs: [u8; 64],
    /// Ninth bits of the indices, 8 to a byte.
    pub qh: [u8; 8],
    /// 8 signs per 8 weights.
    pub signs: [u8; 32],
    /// Scales, nibbles.
    pub scales: [u8; 4],
}

fn four(point_bits: u16, magnitudes: &[u8; 8], signs: u8, scale: f32) -> [f32; 4] {
    let codes = point::<4, 4>(point_bits);
    std::array::from_fn(|t| signed(scale * f32::from(magnitudes[usize::from(codes[t])]), signs >> t))
}

/// Decodes IQ3_XXS.
pub fn decode_iq3_xxs(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Iq3Xxs>(bytes)) {
        let d = b.d.to_f32();
        for (i, y) in y.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let bits = u32::from_le_bytes(b.signs[i / 8]);
            let signs = eighth_sign(bits >> (7 * (i / 2 % 4))) >> (4 * (i % 2));
            let scale = d * (0.5 + (bits >> 28) as f32) * 0.5;
            *y = four(grids::IQ3_XXS[usize::from(b.qs[i])], &MAGNITUDES_XXS, signs, scale);
        }
    }
}

/// Decodes IQ3_S.
pub fn decode_iq3_s(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Iq3S>(bytes)) {
        let d = b.d.to_f32();
        for (i, y) in y.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let index = usize::from(b.qs[i]) | usize::from(b.qh[i / 8] >> (i % 8) & 1) << 8;
            let scale = d * f32::from(2 * (b.scales[i / 16] >> (4 * (i / 8 % 2)) & 15) + 1);
            *y = four(grids::IQ3_S[index], &MAGNITUDES_S, b.signs[i / 2] >> (4 * (i % 2)), scale);
        }
    }
}
