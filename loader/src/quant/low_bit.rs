//! One and two bits with one scale per block, and nothing else.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, blocks};

/// 128 weights: `w = d` where the bit is 1, `-d` where it is 0.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q1_0 {
    /// Scale.
    pub d: F16Bytes,
    /// Bits: bit `j` of byte `i` belongs to weight `8 i + j`.
    pub qs: [u8; 16],
}

/// 64 weights: `w = d (q - 1)`, q 2 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q2_0 {
    /// Scale.
    pub d: F16Bytes,
    /// Quants: bits `2 j` and `2 j + 1` of byte `i` belong to weight `4 i + j`.
    pub qs: [u8; 16],
}

/// Decodes Q1_0.
pub fn decode_q1_0(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<128>().0.iter_mut().zip(blocks::<Q1_0>(bytes)) {
        let d = b.d.to_f32();
        *y = std::array::from_fn(|i| if b.qs[i / 8] >> (i % 8) & 1 == 1 { d } else { -d });
    }
}

/// Decodes Q2_0.
pub fn decode_q2_0(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<64>().0.iter_mut().zip(blocks::<Q2_0>(bytes)) {
        let d = b.d.to_f32();
        *y = std::array::from_fn(|i| (i32::from(b.qs[i / 4] >> (2 * (i % 4)) & 3) - 1) as f32 * d);
    }
}
