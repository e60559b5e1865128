//! Encoders of 4-bit floats with 8-bit scales: MXFP4, NVFP4.
//!
//! There are few scales, so all that may be best are tried.

use super::block32::nibbles;
use super::search::{Block, Table};
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

/// Of these scales (each with its code) the code of the one that loses least, the first of equals.
fn best<const V: usize>(block: &Block<V>, scales: impl Iterator<Item = (u8, f32)>) -> u8 {
    let losses = scales.map(|(code, scale)| (code, block.loss(scale, LEVELS)));
    losses.reduce(|a, b| if b.1 < a.1 { b } else { a }).map_or(0, |row| row.0)
}

/// Encodes MXFP4.
pub(super) fn encode_mxfp4(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Mxfp4, 32>(x, w, out, |x, w| {
        let block = Block::<4>::load(x, w);
        let extreme = block.extreme().abs();
        // The smallest scale with which nothing is cut off.
        let whole = (0..=254u8).find(|e| LARGEST * e8m0_half(*e) >= extreme).unwrap_or(254);
        let e = match method {
            // The specification's way: 4 to 8 times the scale is where the largest weight is.
            Method::AbsMax | Method::MinMax if 8.0 * e8m0_half(whole) > extreme => whole,
            Method::AbsMax | Method::MinMax => whole.saturating_sub(u8::from(16.0 * e8m0_half(whole) <= extreme)),
            Method::Search => {
                let exponents = [0, -1, -2, 1].map(|step| i16::from(whole) + step);
                let exponents = exponents.into_iter().filter_map(|e| u8::try_from(e).ok()).filter(|e| *e < 255);
                best(&block, exponents.map(|e| (e, e8m0_half(e))))
            }
        };
        let mut q = [0; 32];
        block.quants(e8m0_half(e), LEVELS, &mut q);
        Mxfp4 { e, qs: nibbles(&q.map(code)) }
    });
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
    let whole = block.extreme().abs() / LARGEST;
    // 127 is NaN.
    let scales = (0..127u8).map(|code| (code, ue4m3_half(code)));
    match method {
        Method::AbsMax | Method::MinMax => {
            let distance = |scale: f32| (scale - whole).abs();
            scales.reduce(|a, b| if distance(b.1) < distance(a.1) { b } else { a }).map_or(0, |row| row.0)
        }
        Method::Search => {
            // Codes ascend with their scales. The smallest that cuts nothing off, and what is around it.
            let first = (0..126u8).find(|code| ue4m3_half(*code) >= whole).unwrap_or(126);
            let around = scales.filter(|row| row.0 + 12 >= first && row.0 <= first.saturating_add(6));
            best(block, around)
        }
    }
}
