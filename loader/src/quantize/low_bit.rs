//! Encoders of one and two bits with one scale per block: Q1_0, Q2_0.

use super::search::Ints;
use super::{Method, encode_blocks, f16, scaled};
use crate::quant::low_bit::{Q1_0, Q2_0};

/// Encodes Q1_0: signs, and the mean magnitude, which is the best scale for them whatever the method.
pub(super) fn encode_q1_0(x: &[f32], w: &[f32], _method: Method, out: &mut [u8]) {
    encode_blocks::<Q1_0, 128>(x, w, out, |x, w| {
        let (mut sum, mut weight) = (0f64, 0f64);
        for (x, w) in x.iter().zip(w) {
            sum += f64::from(x.abs()) * f64::from(*w);
            weight += f64::from(*w);
        }
        let bit = |i: usize| u8::from(x[i] >= 0.0) << (i % 8);
        let qs = std::array::from_fn(|byte| (8 * byte..8 * byte + 8).map(bit).sum());
        Q1_0 { d: f16::bytes((sum / weight) as f32), qs }
    });
}

/// Encodes Q2_0.
pub(super) fn encode_q2_0(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q2_0, 64>(x, w, out, |x, w| {
        let (d, q) = scaled::encode::<8, 64, _>(x, w, Ints { lo: -1.0, hi: 2.0 }, (0.3, 3.0), method);
        let bits = |i: usize| ((q[i] + 1) as u8) << (2 * (i % 4));
        Q2_0 { d: f16::bytes(d), qs: std::array::from_fn(|byte| (4 * byte..4 * byte + 4).map(bits).sum()) }
    });
}
