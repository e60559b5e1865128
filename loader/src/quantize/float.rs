//! Encoders of plain numbers: F32, F16, BF16.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Method;

/// Numbers converted at a time, with the processor's own instructions where it has them.
const PART: usize = 256;

/// Encodes F32.
pub(super) fn encode_f32(x: &[f32], _w: &[f32], _method: Method, out: &mut [u8]) {
    for (x, out) in x.iter().zip(out.as_chunks_mut::<4>().0) {
        *out = x.to_le_bytes();
    }
}

/// Encodes F16: the nearest half-precision numbers, ties to even.
pub(super) fn encode_f16(x: &[f32], _w: &[f32], _method: Method, out: &mut [u8]) {
    let mut part = [f16::ZERO; PART];
    for (x, out) in x.chunks(PART).zip(out.chunks_mut(2 * PART)) {
        let part = &mut part[..x.len()];
        part.convert_from_f32_slice(x);
        part.iter().zip(out.as_chunks_mut::<2>().0).for_each(|(y, out)| *out = y.to_le_bytes());
    }
}

/// Encodes BF16: the nearest bfloat16 numbers, ties to even.
pub(super) fn encode_bf16(x: &[f32], _w: &[f32], _method: Method, out: &mut [u8]) {
    for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = bf16::from_f32(*x).to_le_bytes();
    }
}
