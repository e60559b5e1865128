//! Scales as blocks hold them: half precision, and the half-precision numbers beside a given one.

use half::f16;

use crate::quant::F16Bytes;

/// The bytes of a scale.
pub(super) fn bytes(d: f32) -> F16Bytes {
    F16Bytes(f16::from_f32(d).to_le_bytes())
}

/// The nearest half-precision number, as f32.
pub(super) fn nearest(d: f32) -> f32 {
    f16::from_f32(d).to_f32()
}

/// The nearest half-precision number and its two neighbours, as f32; zero and what is above the largest are left out.
pub(super) fn around(d: f32) -> impl Iterator<Item = f32> {
    let bits = f16::from_f32(d).to_bits();
    let (sign, magnitude) = (bits & 0x8000, bits & 0x7fff);
    // The largest finite one is 0x7bff.
    let kept =
        move |magnitude: u16| (1..=0x7bff).contains(&magnitude).then(|| f16::from_bits(sign | magnitude).to_f32());
    [magnitude, magnitude.wrapping_sub(1), magnitude + 1].into_iter().filter_map(kept)
}
