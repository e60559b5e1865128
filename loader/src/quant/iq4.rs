//! IQ4: 16 values of uneven spacing, chosen by 4 bits.

use bytemuck::{Pod, Zeroable};

use super::block32::nibbles;
use super::{F16Bytes, blocks};

/// The values.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 weights: `w = d v[q]`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Nl {
    /// Scale.
    pub d: F16Bytes,
    /// Nibbles, placed as in [`super::block32`].
    pub qs: [u8; 16],
}

/// 256 weights in groups of 32: `w = d (sc - 32) v[q]`, sc 6 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Xs {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// High 2 bits of the scales, little-endian 16 bits.
    pub scales_h: [u8; 2],
    /// Low nibbles of the scales.
    pub scales_l: [u8; 4],
    /// Nibbles, placed in each group as in [`super::block32`].
    pub qs: [[u8; 16]; 8],
}

impl Iq4Xs {
    /// Scale of group `g` of 32, 6 bits (still offset by 32).
    pub fn scale(&self, g: usize) -> u8 {
        let high = u16::from_le_bytes(self.scales_h) >> (2 * g) & 3;
        self.scales_l[g / 2] >> (4 * (g % 2)) & 15 | (high << 4) as u8
    }
}

fn values(qs: &[u8; 16], scale: f32) -> [f32; 32] {
    nibbles(qs).map(|q| scale * f32::from(VALUES[usize::from(q)]))
}

/// Decodes IQ4_NL.
pub fn decode_iq4_nl(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks::<Iq4Nl>(bytes)) {
        *y = values(&b.qs, b.d.to_f32());
    }
}

/// Decodes IQ4_XS.
pub fn decode_iq4_xs(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<256>().0.iter_mut().zip(blocks::<Iq4Xs>(bytes)) {
        let d = b.d.to_f32();
        for (g, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            *y = values(&b.qs[g], d * (i32::from(b.scale(g)) - 32) as f32);
        }
    }
}
