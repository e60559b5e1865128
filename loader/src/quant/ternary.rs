//! Ternary weights: 256 of -1, 0 and 1, and one scale.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, blocks};

/// Weights per block.
pub const BLOCK: usize = 256;

/// Five ternary digits to a byte: `w = d (q - 1)`; see [`Tq1::quant`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Tq1 {
    /// Weights 0 to 240: digit `n` of byte `i < 32` belongs to weight `32 n + i`, that of byte `i >= 32` to weight
    /// `160 + 16 n + i - 32`.
    pub qs: [u8; 48],
    /// Weights 240 to 256: digit `n` (of 4) of byte `i` belongs to weight `240 + 4 n + i`.
    pub qh: [u8; 4],
    /// Scale.
    pub d: F16Bytes,
}

/// Two bits per weight: `w = d (q - 1)`. A q of 3 is not ternary, but means 2 d.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Tq2 {
    /// Quants, placed as in [`super::k_quants::Q2K`].
    pub qs: [u8; 64],
    /// Scale.
    pub d: F16Bytes,
}

/// Digit `n` of a byte of [`Tq1`], 0, 1 or 2. The byte is a fraction of 256; its digits to base 3 come out at the top,
/// one after the other, when what is left is multiplied by 3.
pub fn digit(byte: u8, n: usize) -> u8 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    ((u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8) as u8
}

/// The byte whose digits these are: their number to base 3 as a fraction of 256, rounded up.
pub fn from_digits(digits: [u8; 5]) -> u8 {
    let number = digits.iter().fold(0u16, |number, q| 3 * number + u16::from(*q));
    (number * 256).div_ceil(243) as u8
}

impl Tq1 {
    /// Quant of weight `i`, 0, 1 or 2.
    pub fn quant(&self, i: usize) -> u8 {
        match i {
            0..160 => digit(self.qs[i % 32], i / 32),
            160..240 => digit(self.qs[32 + i % 16], (i - 160) / 16),
            _ => digit(self.qh[i % 4], (i - 240) / 4),
        }
    }
}

/// Decodes TQ1_0.
pub fn decode_tq1_0(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Tq1>(bytes)) {
        let d = b.d.to_f32();
        *y = std::array::from_fn(|i| (i32::from(b.quant(i)) - 1) as f32 * d);
    }
}

/// Decodes TQ2_0.
pub fn decode_tq2_0(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks::<Tq2>(bytes)) {
        let d = b.d.to_f32();
        *y = std::array::from_fn(|i| (i32::from(super::k_quants::two_bits(&b.qs, i)) - 1) as f32 * d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_five_digits_come_back() {
        for number in 0..243u16 {
            let digits = [81, 27, 9, 3, 1].map(|power| (number / power % 3) as u8);
            let byte = from_digits(digits);
            assert_eq!(std::array::from_fn(|n| digit(byte, n)), digits);
        }
    }
}
