//! Encoders of the blocks of 32 weights with one scale and, in the `_1` types, one minimum.

use super::search::{Block, Clips, Ints};
use super::{Method, encode_blocks, f16, grid, scaled};
use crate::quant::block32::{BLOCK, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

/// A block of 32 weights.
type Block32 = Block<4>;

const INT4: Ints = Ints { lo: -8.0, hi: 7.0 };
const INT5: Ints = Ints { lo: -16.0, hi: 15.0 };
const INT8: Ints = Ints { lo: -128.0, hi: 127.0 };

/// Encodes Q4_0.
pub(super) fn encode_q4_0(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q4_0, BLOCK>(x, w, out, |x, w| {
        let (d, q) = scaled::encode::<4, BLOCK, _>(x, w, INT4, (0.5, 2.0), method);
        Q4_0 { d: f16::bytes(d), qs: nibbles(&q.map(|q| (q + 8) as u8)) }
    });
}

/// Encodes Q5_0.
pub(super) fn encode_q5_0(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q5_0, BLOCK>(x, w, out, |x, w| {
        let (d, q) = scaled::encode::<4, BLOCK, _>(x, w, INT5, (0.5, 2.0), method);
        let (qs, qh) = nibbles_and_fifth(&q.map(|q| (q + 16) as u8));
        Q5_0 { d: f16::bytes(d), qh, qs }
    });
}

/// Encodes Q8_0.
pub(super) fn encode_q8_0(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q8_0, BLOCK>(x, w, out, |x, w| {
        let (d, qs) = scaled::encode::<4, BLOCK, _>(x, w, INT8, (0.95, 1.05), method);
        Q8_0 { d: f16::bytes(d), qs }
    });
}

/// Encodes Q4_1.
pub(super) fn encode_q4_1(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q4_1, BLOCK>(x, w, out, |x, w| {
        let (d, m, q) = affine(x, w, 15.0, method);
        Q4_1 { d: f16::bytes(d), m: f16::bytes(m), qs: nibbles(&q) }
    });
}

/// Encodes Q5_1.
pub(super) fn encode_q5_1(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q5_1, BLOCK>(x, w, out, |x, w| {
        let (d, m, q) = affine(x, w, 31.0, method);
        let (qs, qh) = nibbles_and_fifth(&q);
        Q5_1 { d: f16::bytes(d), m: f16::bytes(m), qh, qs }
    });
}

/// Quants in weight order as nibbles: byte `j` holds weight `j` in its low and weight `j + 16` in its high half.
pub(super) fn nibbles(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|j| (q[j] & 15) | (q[j + 16] & 15) << 4)
}

/// Quants of 5 bits as nibbles and the plane of fifth bits.
fn nibbles_and_fifth(q: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    let high = q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4) << i);
    (nibbles(q), high.to_le_bytes())
}

/// Scale and minimum (half-precision numbers) and quants 0..=n of a block.
fn affine(x: &[f32; 32], w: &[f32; 32], n: f32, method: Method) -> (f32, f32, [u8; 32]) {
    let block = Block32::load(x, w);
    let (lo, hi) = block.extremes();
    let reach = hi.max(-lo);
    let absmax = (f16::nearest(2.0 * reach / n), f16::nearest(-reach));
    let minmax = (f16::nearest((hi - lo) / n), f16::nearest(lo));
    let (d, m) = match method {
        Method::AbsMax => absmax,
        Method::MinMax => minmax,
        Method::Search => match grid::affine(x, lo, hi, n) {
            Some(found) => found,
            None => search_affine(&block, n, [absmax, minmax]),
        },
    };
    let mut q = [0; 32];
    block.affine_quants(d, m, n, &mut q);
    (d, m, q)
}

/// The clippings that the search of Q4_1 and Q5_1 tries.
const CLIPS: Clips = Clips { share: (0.58, 1.06, 13), places: 3 };

/// The best scale and minimum found; never worse than the plain ones.
fn search_affine(block: &Block32, n: f32, plain: [(f32, f32); 2]) -> (f32, f32) {
    let found = block.search_affine(n, f32::INFINITY, CLIPS);
    let (sw, swx) = block.moments();
    let around = f16::around(found.d).flat_map(|d| f16::around(found.m).chain([0.0]).map(move |m| (d, m)));
    // A block of one value, or too narrow for a half-precision scale.
    let mean = (0.0, f16::nearest(swx / sw));
    let losses = around.chain(plain).chain([mean]).map(|(d, m)| (block.affine_loss(d, m, n), d, m));
    losses.reduce(|a, b| if b.0 < a.0 { b } else { a }).map_or(mean, |best| (best.1, best.2))
}
