//! Encoders of IQ3: groups of 4 magnitudes from a grid, with a sign each.

use std::array::from_fn;
use std::sync::LazyLock;

use super::codebook::Codebook;
use super::grid_group::{GridGroup, Lookup, Shift, Signs};
use super::super_scaled::{self, Form, Scaled, Steps};
use super::{Method, encode_blocks, f16};
use crate::quant::iq3::{BLOCK, Iq3S, Iq3Xxs, MAGNITUDES_S, MAGNITUDES_XXS};
use crate::quant::{grids, point};

static LEVELS_XXS: [f32; 8] = as_f32(MAGNITUDES_XXS);
static LEVELS_S: [f32; 8] = as_f32(MAGNITUDES_S);
static XXS: LazyLock<Codebook<4>> =
    LazyLock::new(|| Codebook::new(&LEVELS_XXS, grids::IQ3_XXS.iter().map(|bits| point::<4, 4>(*bits))));
static S: LazyLock<Codebook<4>> =
    LazyLock::new(|| Codebook::new(&LEVELS_S, grids::IQ3_S.iter().map(|bits| point::<4, 4>(*bits))));

const fn as_f32(magnitudes: [u8; 8]) -> [f32; 8] {
    let mut out = [0.0; 8];
    let mut i = 0;
    while i < 8 {
        out[i] = magnitudes[i] as f32;
        i += 1;
    }
    out
}

const STARTS: &[f32] = &[1.0, 1.04, 1.09, 1.15, 0.95, 0.9, 0.8, 0.67];
const REACH: (f32, f32) = (0.6, 1.5);

/// The groups of a super-block.
fn groups<'a>(
    x: &[f32; BLOCK],
    w: &[f32; BLOCK],
    lookup: Lookup<'a, Codebook<4>>,
) -> [GridGroup<'a, 4, Codebook<4>>; 8] {
    from_fn(|g| GridGroup::load(&x[32 * g..32 * g + 32], &w[32 * g..32 * g + 32], lookup))
}

/// Encodes IQ3_XXS.
pub(super) fn encode_iq3_xxs(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    let lookup = Lookup { grid: &*XXS, signs: Signs::Even, shift: Shift::None, reach: REACH };
    // (sc + 1/2) / 2, sc 4 bits
    let form = Form { scales: Steps { lo: 0.25, hi: 7.75, step: 0.5 }, starts: STARTS };
    encode_blocks::<Iq3Xxs, BLOCK>(x, w, out, |x, w| {
        let groups = groups(x, w, lookup);
        let Scaled { d, scales } = super_scaled::scales(&groups, form, method);
        let mut b = Iq3Xxs { d: f16::bytes(d), qs: [0; 64], signs: [[0; 4]; 8] };
        for (g, group) in groups.iter().enumerate() {
            for (i, chosen) in group.points(d * scales[g]).chosen.iter().enumerate() {
                for half in 0..2 {
                    b.qs[8 * g + 2 * i + half] = chosen.index[half] as u8;
                }
            }
            let signs = (0..4).fold(0, |bits, i| bits | u32::from(group.minus[i] & 127) << (7 * i));
            b.signs[g] = (signs | ((2.0 * scales[g]) as u32) << 28).to_le_bytes();
        }
        b
    });
}

/// Encodes IQ3_S.
pub(super) fn encode_iq3_s(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    let lookup = Lookup { grid: &*S, signs: Signs::Free, shift: Shift::None, reach: REACH };
    // 2 sc + 1, sc 4 bits
    let form = Form { scales: Steps { lo: 1.0, hi: 31.0, step: 2.0 }, starts: STARTS };
    encode_blocks::<Iq3S, BLOCK>(x, w, out, |x, w| {
        let groups = groups(x, w, lookup);
        let Scaled { d, scales } = super_scaled::scales(&groups, form, method);
        let mut b = Iq3S { d: f16::bytes(d), qs: [0; 64], qh: [0; 8], signs: [0; 32], scales: [0; 4] };
        for (g, group) in groups.iter().enumerate() {
            b.scales[g / 2] |= (((scales[g] - 1.0) / 2.0) as u8) << (4 * (g % 2));
            for (i, chosen) in group.points(d * scales[g]).chosen.iter().enumerate() {
                b.signs[4 * g + i] = group.minus[i];
                for half in 0..2 {
                    b.qs[8 * g + 2 * i + half] = chosen.index[half] as u8;
                    b.qh[g] |= ((chosen.index[half] >> 8) as u8) << (2 * i + half);
                }
            }
        }
        b
    });
}
