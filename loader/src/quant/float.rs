//! Plain numbers: F32, F16, BF16.

/// Decodes little-endian f32.
pub fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (y, x) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *y = f32::from_le_bytes(*x);
    }
}

/// Decodes little-endian IEEE half precision.
pub fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    for (y, x) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *y = half::f16::from_le_bytes(*x).to_f32();
    }
}

/// Decodes little-endian bfloat16 (the upper half of an f32).
pub fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (y, x) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *y = half::bf16::from_le_bytes(*x).to_f32();
    }
}
