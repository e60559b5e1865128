//! Encoders of 4-bit floats with 8-bit scales: MXFP4, NVFP4.
//!
//! There are few scales, so all that may be best are tried.

use super::block32::nibbles;
use super::search::{Block, Levels, Table};
use super::{Method, encode_blocks};
use crate::quant::fp4::{Mxfp4, Nvfp4, e8m0_half, ue4m3_half};

/// The values of E2M1, doubled.
const LEVELS: Table<15> =
    Table { values: &[-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0] };
/// The largest of them.
const LARGEST: f32 = 12.0;

/// The 4 bits of a doubled value.
fn code(value: i8) -> u8 {
    let magnitude = match value.unsigned_abs() {
        small @ 0..=4 => small,
        6 => 5,
        8 => 6,
        _ => 7,
    };
    if value < 0 { magnitude | 8 } else { magnitude }
}

/// Of these codes the one whose scale loses least, the first of equals.
fn best<const V: usize>(block: &Block<V>, codes: impl Iterator<Item = u8>, scale: fn(u8) -> f32) -> u8 {
    let losses = codes.map(|code| (code, block.loss(scale(code), LEVELS)));
    losses.reduce(|a, b| if b.1 < a.1 { b } else { a }).map_or(0, |row| row.0)
}

/// Of the codes `0..=last`, whose scales ascend, the first with a scale of at least `at_least`; or the last.
fn first_from(at_least: f32, last: u8, scale: fn(u8) -> f32) -> u8 {
    let (mut low, mut high) = (0, last);
    while low < high {
        let middle = low + (high - low) / 2;
        if scale(middle) >= at_least { high = middle } else { low = middle + 1 }
    }
    low
}

/// The code with which the weights are levels exactly, where there is one.
fn exact<const V: usize>(block: &Block<V>, last: u8, scale: fn(u8) -> f32) -> Option<u8> {
    let extreme = block.extreme().abs();
    let codes = LEVELS.anchors().filter(|level| *level > 0.0).map(|level| first_from(extreme / level, last, scale));
    codes.into_iter().find(|code| extreme > 0.0 && block.loss(scale(*code), LEVELS) == 0.0)
}

/// Encodes MXFP4.
pub(super) fn encode_mxfp4(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Mxfp4, 32>(x, w, out, |x, w| {
        let block = Block::<4>::load(x, w);
        let e = mxfp4_scale(&block, method);
        let mut q = [0; 32];
        block.quants(e8m0_half(e), LEVELS, &mut q);
        Mxfp4 { e, qs: nibbles(&q.map(code)) }
    });
}

fn mxfp4_scale(block: &Block<4>, method: Method) -> u8 {
    // 255 is NaN.
    const LAST: u8 = 254;
    let extreme = block.extreme().abs();
    // The smallest scale with which nothing is cut off.
    let whole = first_from(extreme / LARGEST, LAST, e8m0_half);
    // The specification's: with it the largest weight is 8 to 16 times the scale.
    let plain = whole.saturating_sub(u8::from(8.0 * e8m0_half(whole) > extreme));
    match method {
        Method::AbsMax | Method::MinMax => plain,
        Method::Search => exact(block, LAST, e8m0_half).unwrap_or_else(|| {
            let exponents = [0, -1, -2, 1].into_iter().filter_map(|step| whole.checked_add_signed(step));
            best(block, exponents.filter(|e| *e <= LAST), e8m0_half)
        }),
    }
}

/// Encodes NVFP4.
pub(super) fn encode_nvfp4(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Nvfp4, 64>(x, w, out, |x, w| {
        let mut b = Nvfp4 { d: [0; 4], qs: [0; 32] };
        let groups = x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0);
        for (g, (x, w)) in groups.enumerate() {
            let block = Block::<2>::load(x, w);
            b.d[g] = nvfp4_scale(&block, method);
            let mut q = [0; 16];
            block.quants(ue4m3_half(b.d[g]), LEVELS, &mut q);
            let q = q.map(code);
            (0..8).for_each(|l| b.qs[8 * g + l] = q[l] | q[l + 8] << 4);
        }
        b
    });
}

fn nvfp4_scale(block: &Block<2>, method: Method) -> u8 {
    // 127 is NaN.
    const LAST: u8 = 126;
    let whole = block.extreme().abs() / LARGEST;
    // The smallest scale that cuts nothing off.
    let first = first_from(whole, LAST, ue4m3_half);
    let below = first.saturating_sub(1);
    let is_nearer = |code: u8, other: u8| (ue4m3_half(code) - whole).abs() < (ue4m3_half(other) - whole).abs();
    match method {
        Method::AbsMax | Method::MinMax if is_nearer(below, first) => below,
        Method::AbsMax | Method::MinMax => first,
        Method::Search => exact(block, LAST, ue4m3_half).unwrap_or_else(|| {
            let around = first.saturating_sub(12)..=(first + 6).min(LAST);
            best(block, around, ue4m3_half)
        }),
    }
}
