//! Encoders of IQ2: groups of 8 magnitudes from a grid, with a sign each.

use std::array::from_fn;
use std::sync::LazyLock;

use super::codebook::Codebook;
use super::grid_group::{GridGroup, Lookup, Shift, Signs};
use super::super_scaled::{self, Form, Scaled, Steps};
use super::{Method, encode_blocks, f16};
use crate::quant::iq2::{BLOCK, Iq2S, Iq2Xs, Iq2Xxs, Iq2XxsGroup, MAGNITUDES};
use crate::quant::{grids, point};

static LEVELS: [f32; 3] = [MAGNITUDES[0] as f32, MAGNITUDES[1] as f32, MAGNITUDES[2] as f32];
static XXS: LazyLock<Codebook<8>> = LazyLock::new(|| codebook(&grids::IQ2_XXS));
static XS: LazyLock<Codebook<8>> = LazyLock::new(|| codebook(&grids::IQ2_XS));
static S: LazyLock<Codebook<8>> = LazyLock::new(|| codebook(&grids::IQ2_S));

fn codebook(grid: &[u16]) -> Codebook<8> {
    Codebook::new(&LEVELS, grid.iter().map(|bits| point::<2, 8>(*bits)))
}

/// `(sc + 1/2) / 4`, sc 4 bits.
const FORM: Form = Form {
    scales: Steps { lo: 0.125, hi: 3.875, step: 0.25 },
    starts: &[1.0, 1.04, 1.09, 1.15, 1.25, 0.95, 0.9, 0.8, 0.67],
};

const REACH: (f32, f32) = (0.5, 1.7);

/// The 4 bits of a scale.
fn scale_bits(scale: f32) -> u8 {
    (4.0 * scale) as u8
}

/// Encodes IQ2_XXS.
pub(super) fn encode_iq2_xxs(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    let lookup = Lookup { grid: &*XXS, signs: Signs::Even, shift: Shift::None, reach: REACH };
    encode_blocks::<Iq2Xxs, BLOCK>(x, w, out, |x, w| {
        let groups: [GridGroup<4, _>; 8] =
            from_fn(|g| GridGroup::load(&x[32 * g..32 * g + 32], &w[32 * g..32 * g + 32], lookup));
        let Scaled { d, scales } = super_scaled::scales(&groups, FORM, method);
        let group = |g: usize| {
            let points = groups[g].points(d * scales[g]);
            let signs = (0..4).fold(0, |bits, i| bits | u32::from(groups[g].minus[i] & 127) << (7 * i));
            Iq2XxsGroup {
                index: points.chosen.map(|chosen| chosen.index[0] as u8),
                signs: (signs | u32::from(scale_bits(scales[g])) << 28).to_le_bytes(),
            }
        };
        Iq2Xxs { d: f16::bytes(d), groups: from_fn(group) }
    });
}

/// Groups of 16 and their scales.
fn sixteens<'a>(
    x: &[f32; BLOCK],
    w: &[f32; BLOCK],
    lookup: Lookup<'a, Codebook<8>>,
    method: Method,
) -> ([GridGroup<'a, 2, Codebook<8>>; 16], Scaled<16>) {
    let groups = from_fn(|g| GridGroup::load(&x[16 * g..16 * g + 16], &w[16 * g..16 * g + 16], lookup));
    let found = super_scaled::scales(&groups, FORM, method);
    (groups, found)
}

/// Scales as nibbles, the first low.
fn nibbles(scales: &[f32; 16]) -> [u8; 8] {
    from_fn(|i| scale_bits(scales[2 * i]) | scale_bits(scales[2 * i + 1]) << 4)
}

/// Encodes IQ2_XS.
pub(super) fn encode_iq2_xs(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    let lookup = Lookup { grid: &*XS, signs: Signs::Even, shift: Shift::None, reach: REACH };
    encode_blocks::<Iq2Xs, BLOCK>(x, w, out, |x, w| {
        let (groups, Scaled { d, scales }) = sixteens(x, w, lookup, method);
        let mut b = Iq2Xs { d: f16::bytes(d), qs: [[0; 2]; 32], scales: nibbles(&scales) };
        for (g, group) in groups.iter().enumerate() {
            for (i, chosen) in group.points(d * scales[g]).chosen.iter().enumerate() {
                b.qs[2 * g + i] = (chosen.index[0] | u16::from(group.minus[i] & 127) << 9).to_le_bytes();
            }
        }
        b
    });
}

/// Encodes IQ2_S.
pub(super) fn encode_iq2_s(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    let lookup = Lookup { grid: &*S, signs: Signs::Free, shift: Shift::None, reach: REACH };
    encode_blocks::<Iq2S, BLOCK>(x, w, out, |x, w| {
        let (groups, Scaled { d, scales }) = sixteens(x, w, lookup, method);
        let mut b = Iq2S { d: f16::bytes(d), qs: [0; 32], signs: [0; 32], qh: [0; 8], scales: nibbles(&scales) };
        for (g, group) in groups.iter().enumerate() {
            for (i, chosen) in group.points(d * scales[g]).chosen.iter().enumerate() {
                let i8 = 2 * g + i;
                b.qs[i8] = chosen.index[0] as u8;
                b.qh[i8 / 4] |= ((chosen.index[0] >> 8) as u8) << (2 * (i8 % 4));
                b.signs[i8] = group.minus[i];
            }
        }
        b
    });
}
