//! K-quants: super-blocks of 256 weights whose groups of 16 or 32 share a small integer scale (and minimum), themselves
//! scaled by one f16 (or two) per super-block.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, blocks};

/// Weights per super-block.
pub const BLOCK: usize = 256;

/// 2 bits; groups of 16: `w = d sc q - dmin m`, sc and m 4 bits each.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q2K {
    /// Per group of 16: scale in the low, minimum in the high nibble.
    pub scales: [u8; 16],
    /// Quants: byte `32 h + l` holds weights `128 h + l + {0, 32, 64, 96}` from its low bits up.
    pub qs: [u8; 64],
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minimums.
    pub dmin: F16Bytes,
}

/// 3 bits; groups of 16: `w = d (sc - 32) (q - 4)`, sc 6 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q3K {
    /// Third bits: bit `j` of byte `l` belongs to weight `32 j + l`.
    pub hmask: [u8; 32],
    /// Low 2 bits, placed as in [`Q2K`].
    pub qs: [u8; 64],
    /// 16 scales of 6 bits: low nibbles in bytes 0..8, high 2 bits in bytes 8..12.
    pub scales: [u8; 12],
    /// Scale of the scales.
    pub d: F16Bytes,
}

/// 4 bits; groups of 32: `w = d sc q - dmin m`, sc and m 6 bits each.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q4K {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minimums.
    pub dmin: F16Bytes,
    /// 8 scales and 8 minimums of 6 bits; see [`scale_min`].
    pub scales: [u8; 12],
    /// Nibbles: byte `32 h + l` holds weights `64 h + l` (low) and `64 h + 32 + l` (high).
    pub qs: [u8; 128],
}

/// 5 bits; groups of 32: `w = d sc q - dmin m`, sc and m 6 bits each.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q5K {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minimums.
    pub dmin: F16Bytes,
    /// 8 scales and 8 minimums of 6 bits; see [`scale_min`].
    pub scales: [u8; 12],
    /// Fifth bits: bit `j` of byte `l` belongs to weight `32 j + l`.
    pub qh: [u8; 32],
    /// Low nibbles, placed as in [`Q4K`].
    pub qs: [u8; 128],
}

/// 6 bits; groups of 16: `w = d sc (q - 32)`, sc 8 bits signed.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q6K {
    /// Low nibbles: byte `64 h + l` holds weights `128 h + l` (low) and `128 h + 64 + l` (high), l < 64.
    pub ql: [u8; 128],
    /// High 2 bits: byte `32 h + l` holds those of weights `128 h + l + {0, 32, 64, 96}` from its low bits up.
    pub qh: [u8; 64],
    /// Scales of the groups of 16.
    pub scales: [i8; 16],
    /// Scale of the scales.
    pub d: F16Bytes,
}

/// Scale and minimum (6 bits each) of group `j` of 8, from the 12 packed bytes of Q4_K and Q5_K.
pub fn scale_min(scales: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        (low & 15 | (scales[j - 4] >> 6) << 4, low >> 4 | (scales[j] >> 6) << 4)
    }
}

/// Scale (6 bits, still offset by 32) of group `j` of 16, from the 12 packed bytes of Q3_K.
pub fn q3_scale(scales: &[u8; 12], j: usize) -> u8 {
    let low = if j < 8 { scales[j] & 15 } else { scales[j - 8] >> 4 };
    let high = scales[8 + j % 4] >> (2 * (j / 4)) & 3;
    low | high << 4
}

/// 2-bit quant of weight `i` in the placement of [`Q2K`].
pub fn two_bits(qs: &[u8; 64], i: usize) -> u8 {
    qs[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3
}

/// 4-bit quant of weight `i` in the placement of [`Q4K`].
pub fn four_bits(qs: &[u8; 128], i: usize) -> u8 {
    qs[32 * (i / 64) + i % 32] >> (4 * (i % 64 / 32)) & 15
}

impl Q3K {
    /// Quant of weight `i`, 0..8 (offset by 4).
    pub fn quant(&self, i: usize) -> u8 {
        two_bits(&self.qs, i) | (self.hmask[i % 32] >> (i / 32) & 1) << 2
    }
}

impl Q5K {
    /// Quant of weight `i`, 0..32.
    pub fn quant(&self, i: usize) -> u8 {
        four_bits(&self.qs, i) | (self.qh[i % 32] >> (i / 32) & 1) << 4
    }
}

impl Q6K {
    /// Quant of weight `i`, 0..64 (offset by 32).
    pub fn quant(&self, i: usize) -> u8 {
        let low = self.ql[64 * (i / 128) + i % 64] >> (4 * (i % 128 / 64)) & 15;
        low | two_bits(&self.qh, i) << 4
    }
}

/// Decodes Q2_K.
pub fn decode_q2_k(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q2K>(bytes)) {
        let (d, dmin) = (b.d.to_f32(), b.dmin.to_f32());
        for (g, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (scale, min) = (d * f32::from(b.scales[g] & 15), dmin * f32::from(b.scales[g] >> 4));
            *y = std::array::from_fn(|i| scale * f32::from(two_bits(&b.qs, 16 * g + i)) - min);
        }
    }
}

/// Decodes Q3_K.
pub fn decode_q3_k(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q3K>(bytes)) {
        let d = b.d.to_f32();
        for (g, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * (i32::from(q3_scale(&b.scales, g)) - 32) as f32;
            *y = std::array::from_fn(|i| scale * (i32::from(b.quant(16 * g + i)) - 4) as f32);
        }
    }
}

/// Decodes Q4_K.
pub fn decode_q4_k(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q4K>(bytes)) {
        let (d, dmin) = (b.d.to_f32(), b.dmin.to_f32());
        for (g, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (sc, m) = scale_min(&b.scales, g);
            let (scale, min) = (d * f32::from(sc), dmin * f32::from(m));
            *y = std::array::from_fn(|i| scale * f32::from(four_bits(&b.qs, 32 * g + i)) - min);
        }
    }
}

/// Decodes Q5_K.
pub fn decode_q5_k(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q5K>(bytes)) {
        let (d, dmin) = (b.d.to_f32(), b.dmin.to_f32());
        for (g, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (sc, m) = scale_min(&b.scales, g);
            let (scale, min) = (d * f32::from(sc), dmin * f32::from(m));
            *y = std::array::from_fn(|i| scale * f32::from(b.quant(32 * g + i)) - min);
        }
    }
}

/// Decodes Q6_K.
pub fn decode_q6_k(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q6K>(bytes)) {
        let d = b.d.to_f32();
        for (g, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(b.scales[g]);
            *y = std::array::from_fn(|i| scale * (i32::from(b.quant(16 * g + i)) - 32) as f32);
        }
    }
}
