//! Encoders of the types with 16 uneven values: IQ4_NL, IQ4_XS.

use super::block32::nibbles;
use super::search::Table;
use super::super_scaled::{self, Form, Steps};
use super::{Method, encode_blocks, f16, scaled};
use crate::quant::iq4::{Iq4Nl, Iq4Xs, VALUES};

/// The values, as numbers.
const LEVELS: Table<16> = Table { values: &VALUES_F32 };
static VALUES_F32: [f32; 16] = {
    let mut out = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = VALUES[i] as f32;
        i += 1;
    }
    out
};

/// The place of a value among [`VALUES`], which ascend.
fn index(value: i8) -> u8 {
    VALUES.partition_point(|v| *v < value) as u8
}

/// Encodes IQ4_NL.
pub(super) fn encode_iq4_nl(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Iq4Nl, 32>(x, w, out, |x, w| {
        let (d, q) = scaled::encode::<4, 32, _>(x, w, LEVELS, (0.6, 1.6), method);
        Iq4Nl { d: f16::bytes(d), qs: nibbles(&q.map(index)) }
    });
}

/// Encodes IQ4_XS.
pub(super) fn encode_iq4_xs(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Iq4Xs, 256>(x, w, out, |x, w| {
        let form = Form {
            scales: Steps { lo: -32.0, hi: 31.0, step: 1.0 },
            starts: &[1.0, 1.03, 1.07, 1.12, 0.9, 0.8, 0.67, 0.5],
        };
        let (found, q) = super_scaled::encode::<4, 8, _>(x, w, (LEVELS, (0.6, 1.6), form), method);
        let (mut high, mut low) = (0u16, [0u8; 4]);
        for (g, scale) in found.scales.iter().enumerate() {
            let scale = (scale + 32.0) as u8;
            high |= u16::from(scale >> 4) << (2 * g);
            low[g / 2] |= (scale & 15) << (4 * (g % 2));
        }
        let q = q.map(index);
        let groups = q.as_chunks::<32>().0;
        Iq4Xs {
            d: f16::bytes(found.d),
            scales_h: high.to_le_bytes(),
            scales_l: low,
            qs: std::array::from_fn(|g| nibbles(&groups[g])),
        }
    });
}
