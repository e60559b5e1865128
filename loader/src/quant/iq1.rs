//! IQ1: groups of 8 weights from a grid of -1, 0, 1, all shifted by plus or minus an eighth.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, blocks, grids, point};

/// Weights per super-block.
pub const BLOCK: usize = 256;

/// What a weight of the grid is shifted by, one way or the other.
const DELTA: f32 = 0.125;

/// Groups of 32: `w = d (2 sc + 1) (g +- 1/8)`, sc 3 bits, g from [`grids::IQ1`] by 8.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq1S {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Low 8 bits of the indices, one per 8 weights.
    pub qs: [u8; 32],
    /// Per group of 32, little-endian 16 bits: from the low end 4 times 3 high bits of the indices, the scale, and a bit
    /// that is 1 where the shift is down.
    pub qh: [[u8; 2]; 8],
}

/// Groups of 16: `w = d (2 sc + 1) (g +- 1/8)`, sc 3 bits, g from [`grids::IQ1`] by 8, the shift by 8 too.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq1M {
    /// Low 8 bits of the indices, one per 8 weights.
    pub qs: [u8; 32],
    /// Nibbles, one per 8 weights: 3 high bits of the index, and a bit that is 1 where the shift is down.
    pub qh: [u8; 16],
    /// Per 64 weights, little-endian 16 bits: from the low end 4 scales of 3 bits, and 4 bits of the scale of the scales
    /// (its lowest in the first).
    pub scales: [[u8; 2]; 4],
}

impl Iq1S {
    /// The 16 bits of group `g` of 32.
    pub fn high(&self, g: usize) -> u16 {
        u16::from_le_bytes(self.qh[g])
    }
}

impl Iq1M {
    /// Scale of the scales.
    pub fn d(&self) -> F16Bytes {
        let bits = (0..4).fold(0, |bits, i| bits | (u16::from_le_bytes(self.scales[i]) >> 12) << (4 * i));
        F16Bytes(bits.to_le_bytes())
    }

    /// Scale of group `g` of 16, 3 bits.
    pub fn scale(&self, g: usize) -> u8 {
        (u16::from_le_bytes(self.scales[g / 4]) >> (3 * (g % 4)) & 7) as u8
    }

    /// High bits of the index and shift of the `i`-th 8 weights, 4 bits.
    pub fn high(&self, i: usize) -> u8 {
        self.qh[i / 2] >> (4 * (i % 2)) & 15
    }
}

fn eight(index: usize, scale: f32, delta: f32) -> [f32; 8] {
    point::<2, 8>(grids::IQ1[index]).map(|g| scale * (f32::from(g) - 1.0 + delta))
}

/// Decodes IQ1_S.
pub fn decode_iq1_s(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Iq1S>(bytes)) {
        let d = b.d.to_f32();
        for (i, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = b.high(i / 4);
            let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
            let delta = if high >> 15 == 0 { DELTA } else { -DELTA };
            let index = usize::from(b.qs[i]) | usize::from(high >> (3 * (i % 4)) & 7) << 8;
            *y = eight(index, scale, delta);
        }
    }
}

/// Decodes IQ1_M.
pub fn decode_iq1_m(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Iq1M>(bytes)) {
        let d = b.d().to_f32();
        for (i, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = b.high(i);
            let scale = d * f32::from(2 * b.scale(i / 2) + 1);
            let delta = if high >> 3 == 0 { DELTA } else { -DELTA };
            let index = usize::from(b.qs[i]) | usize::from(high & 7) << 8;
            *y = eight(index, scale, delta);
        }
    }
}
