//! IQ2: groups of 8 magnitudes from a grid, with a sign each.
//!
//! Where 7 bits hold 8 signs, the number of minus signs is even, which gives the eighth.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, blocks, eighth_sign, grids, point, signed};

/// Weights per super-block.
pub const BLOCK: usize = 256;

/// The magnitudes of the grids.
pub const MAGNITUDES: [u8; 3] = [8, 25, 43];

/// Groups of 32: `w = d (sc + 1/2) / 4 (+- g)`, sc 4 bits, g from [`grids::IQ2_XXS`] by 8.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2Xxs {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Per group of 32.
    pub groups: [Iq2XxsGroup; 8],
}

/// A group of [`Iq2Xxs`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2XxsGroup {
    /// Indices, one per 8 weights.
    pub index: [u8; 4],
    /// Little-endian 32 bits: from the low end 4 times 7 signs, and the scale.
    pub signs: [u8; 4],
}

/// Groups of 16: `w = d (sc + 1/2) / 4 (+- g)`, sc 4 bits, g from [`grids::IQ2_XS`] by 8.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2Xs {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Per 8 weights, little-endian 16 bits: from the low end 9 bits of index and 7 signs.
    pub qs: [[u8; 2]; 32],
    /// Scales, nibbles.
    pub scales: [u8; 8],
}

/// Groups of 16: `w = d (sc + 1/2) / 4 (+- g)`, sc 4 bits, g from [`grids::IQ2_S`] by 8.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2S {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Low 8 bits of the indices, one per 8 weights.
    pub qs: [u8; 32],
    /// 8 signs per 8 weights.
    pub signs: [u8; 32],
    /// High 2 bits of the indices, 4 to a byte.
    pub qh: [u8; 8],
    /// Scales, nibbles.
    pub scales: [u8; 8],
}

fn eight(point_bits: u16, signs: u8, scale: f32) -> [f32; 8] {
    let codes = point::<2, 8>(point_bits);
    std::array::from_fn(|t| signed(scale * f32::from(MAGNITUDES[usize::from(codes[t])]), signs >> t))
}

fn scale(d: f32, four_bits: u32) -> f32 {
    d * (0.5 + four_bits as f32) * 0.25
}

/// Decodes IQ2_XXS.
pub fn decode_iq2_xxs(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Iq2Xxs>(bytes)) {
        let d = b.d.to_f32();
        for (i, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let group = &b.groups[i / 4];
            let bits = u32::from_le_bytes(group.signs);
            let signs = eighth_sign(bits >> (7 * (i % 4)));
            *y = eight(grids::IQ2_XXS[usize::from(group.index[i % 4])], signs, scale(d, bits >> 28));
        }
    }
}

/// Decodes IQ2_XS.
pub fn decode_iq2_xs(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Iq2Xs>(bytes)) {
        let d = b.d.to_f32();
        for (i, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let bits = u16::from_le_bytes(b.qs[i]);
            let scale = scale(d, u32::from(b.scales[i / 4] >> (4 * (i / 2 % 2)) & 15));
            *y = eight(grids::IQ2_XS[usize::from(bits & 511)], eighth_sign(u32::from(bits >> 9)), scale);
        }
    }
}

/// Decodes IQ2_S.
pub fn decode_iq2_s(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Iq2S>(bytes)) {
        let d = b.d.to_f32();
        for (i, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let index = usize::from(b.qs[i]) | usize::from(b.qh[i / 4] >> (2 * (i % 4)) & 3) << 8;
            let scale = scale(d, u32::from(b.scales[i / 4] >> (4 * (i / 2 % 2)) & 15));
            *y = eight(grids::IQ2_S[index], b.signs[i], scale);
        }
    }
}
