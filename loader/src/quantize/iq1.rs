//! Encoders of IQ1: groups of 8 weights from a grid of -1, 0, 1, shifted up or down by an eighth.

use std::array::from_fn;
use std::sync::LazyLock;

use half::f16 as Half;

use super::codebook::Codebook;
use super::grid_group::{GridGroup, Lookup, Shift, Signs};
use super::super_scaled::{self, Form, Scaled, Steps};
use super::{Method, encode_blocks, f16};
use crate::quant::iq1::{BLOCK, Iq1M, Iq1S};
use crate::quant::{grids, point};

static GRID: LazyLock<Codebook<8>> =
    LazyLock::new(|| Codebook::new(&[-1.0, 0.0, 1.0], grids::IQ1.iter().map(|bits| point::<2, 8>(*bits))));

/// `2 sc + 1`, sc 3 bits.
const FORM: Form = Form {
    scales: Steps { lo: 1.0, hi: 15.0, step: 2.0 },
    starts: &[1.0, 1.07, 1.15, 1.25, 1.4, 1.6, 0.95, 0.88, 0.8, 0.7, 0.6],
};

/// What the largest weight is multiplied by before it is rounded to a level of at most 1: ternary weights serve best
/// when large ones are cut off.
const REACH: (f32, f32) = (0.8, 3.4);

/// The 3 bits of a scale.
fn scale_bits(scale: f32) -> u16 {
    ((scale - 1.0) / 2.0) as u16
}

/// Encodes IQ1_S.
pub(super) fn encode_iq1_s(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    let lookup = Lookup { grid: &*GRID, signs: Signs::InGrid, shift: Shift::Group, reach: REACH };
    encode_blocks::<Iq1S, BLOCK>(x, w, out, |x, w| {
        let groups: [GridGroup<4, _>; 8] =
            from_fn(|g| GridGroup::load(&x[32 * g..32 * g + 32], &w[32 * g..32 * g + 32], lookup));
        let Scaled { d, scales } = super_scaled::scales(&groups, FORM, method);
        let mut b = Iq1S { d: f16::bytes(d), qs: [0; 32], qh: [[0; 2]; 8] };
        for (g, group) in groups.iter().enumerate() {
            let points = group.points(d * scales[g]);
            let mut high = scale_bits(scales[g]) << 12 | u16::from(points.is_down[0]) << 15;
            for (i, chosen) in points.chosen.iter().enumerate() {
                b.qs[4 * g + i] = chosen.index[0] as u8;
                high |= chosen.index[0] >> 8 << (3 * i);
            }
            b.qh[g] = high.to_le_bytes();
        }
        b
    });
}

/// Encodes IQ1_M.
pub(super) fn encode_iq1_m(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    let lookup = Lookup { grid: &*GRID, signs: Signs::InGrid, shift: Shift::Eights, reach: REACH };
    encode_blocks::<Iq1M, BLOCK>(x, w, out, |x, w| {
        let groups: [GridGroup<2, _>; 16] =
            from_fn(|g| GridGroup::load(&x[16 * g..16 * g + 16], &w[16 * g..16 * g + 16], lookup));
        let Scaled { d, scales } = super_scaled::scales(&groups, FORM, method);
        let mut b = Iq1M { qs: [0; 32], qh: [0; 16], scales: [[0; 2]; 4] };
        let d_bits = Half::from_f32(d).to_bits();
        for i in 0..4 {
            let of_groups = (0..4).fold(0, |bits, g| bits | scale_bits(scales[4 * i + g]) << (3 * g));
            b.scales[i] = (of_groups | (d_bits >> (4 * i) & 15) << 12).to_le_bytes();
        }
        for (g, group) in groups.iter().enumerate() {
            let points = group.points(d * scales[g]);
            for (i, chosen) in points.chosen.iter().enumerate() {
                b.qs[2 * g + i] = chosen.index[0] as u8;
                b.qh[g] |= ((chosen.index[0] >> 8) as u8 | u8::from(points.is_down[i]) << 3) << (4 * i);
            }
        }
        b
    });
}
