//! Blocks of 32 weights with one scale and, in the `_1` types, one minimum.
//!
//! With nibbles packed as in ggml: byte `j` of `qs` holds weight `j` in its low and weight `j + 16` in its high half.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, blocks};

/// Weights per block.
pub const BLOCK: usize = 32;

/// `w = d (q - 8)`, q 4 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_0 {
    /// Scale.
    pub d: F16Bytes,
    /// Nibbles, 2 weights each.
    pub qs: [u8; 16],
}

/// `w = d q + m`, q 4 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_1 {
    /// Scale.
    pub d: F16Bytes,
    /// Minimum.
    pub m: F16Bytes,
    /// Nibbles, 2 weights each.
    pub qs: [u8; 16],
}

/// `w = d (q - 16)`, q 5 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_0 {
    /// Scale.
    pub d: F16Bytes,
    /// Fifth bits: bit `j` belongs to weight `j`.
    pub qh: [u8; 4],
    /// Low nibbles, 2 weights each.
    pub qs: [u8; 16],
}

/// `w = d q + m`, q 5 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_1 {
    /// Scale.
    pub d: F16Bytes,
    /// Minimum.
    pub m: F16Bytes,
    /// Fifth bits: bit `j` belongs to weight `j`.
    pub qh: [u8; 4],
    /// Low nibbles, 2 weights each.
    pub qs: [u8; 16],
}

/// `w = d q`, q 8 bits signed.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_0 {
    /// Scale.
    pub d: F16Bytes,
    /// Quants.
    pub qs: [i8; 32],
}

/// The 32 quants of a block with 4-bit nibbles, in weight order.
pub fn nibbles(qs: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 })
}

/// The 32 quants of a block with nibbles and a plane of fifth bits, in weight order.
pub fn nibbles_and_fifth(qs: &[u8; 16], qh: [u8; 4]) -> [u8; 32] {
    let high = u32::from_le_bytes(qh);
    let low = nibbles(qs);
    std::array::from_fn(|i| low[i] | ((high >> i & 1) << 4) as u8)
}

/// Decodes Q4_0.
pub fn decode_q4_0(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q4_0>(bytes)) {
        let d = b.d.to_f32();
        let q = nibbles(&b.qs);
        *y = std::array::from_fn(|i| (i32::from(q[i]) - 8) as f32 * d);
    }
}

/// Decodes Q4_1.
pub fn decode_q4_1(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q4_1>(bytes)) {
        let (d, m) = (b.d.to_f32(), b.m.to_f32());
        let q = nibbles(&b.qs);
        *y = std::array::from_fn(|i| f32::from(q[i]) * d + m);
    }
}

/// Decodes Q5_0.
pub fn decode_q5_0(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q5_0>(bytes)) {
        let d = b.d.to_f32();
        let q = nibbles_and_fifth(&b.qs, b.qh);
        *y = std::array::from_fn(|i| (i32::from(q[i]) - 16) as f32 * d);
    }
}

/// Decodes Q5_1.
pub fn decode_q5_1(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q5_1>(bytes)) {
        let (d, m) = (b.d.to_f32(), b.m.to_f32());
        let q = nibbles_and_fifth(&b.qs, b.qh);
        *y = std::array::from_fn(|i| f32::from(q[i]) * d + m);
    }
}

/// Decodes Q8_0.
pub fn decode_q8_0(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Q8_0>(bytes)) {
        let d = b.d.to_f32();
        *y = std::array::from_fn(|i| f32::from(b.qs[i]) * d);
    }
}
