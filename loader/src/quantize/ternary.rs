//! Encoders of ternary weights: TQ1_0, TQ2_0.

use super::search::{Block, Ints, NOTHING};
use super::{Method, encode_blocks, f16};
use crate::quant::ternary::{BLOCK, Tq1, Tq2, from_digits};

const LEVELS: Ints = Ints { lo: -1.0, hi: 1.0 };

/// Encodes TQ1_0.
pub(super) fn encode_tq1_0(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Tq1, BLOCK>(x, w, out, |x, w| {
        let (d, q) = ternary(x, w, method);
        let digits = |first: usize, step: usize| from_digits(std::array::from_fn(|n| q[first + step * n]));
        Tq1 {
            qs: std::array::from_fn(|i| if i < 32 { digits(i, 32) } else { digits(160 + i - 32, 16) }),
            // Four digits, the fifth unused.
            qh: std::array::from_fn(|i| from_digits([q[240 + i], q[244 + i], q[248 + i], q[252 + i], 0])),
            d: f16::bytes(d),
        }
    });
}

/// Encodes TQ2_0.
pub(super) fn encode_tq2_0(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Tq2, BLOCK>(x, w, out, |x, w| {
        let (d, q) = ternary(x, w, method);
        let mut b = Tq2 { qs: [0; 64], d: f16::bytes(d) };
        super::k_quants::put_two_bits(&mut b.qs, &q);
        b
    });
}

/// Scale (a half-precision number) and quants: 0, 1, 2 for -1, 0, 1.
fn ternary(x: &[f32; BLOCK], w: &[f32; BLOCK], method: Method) -> (f32, [u8; BLOCK]) {
    let block = Block::<32>::load(x, w);
    let extreme = block.extreme().abs();
    let d = match method {
        _ if extreme < NOTHING => 0.0,
        Method::AbsMax | Method::MinMax => f16::nearest(extreme),
        Method::Search => f16::nearest(best_scale(x, w)),
    };
    let mut q = [0; BLOCK];
    block.quants(d, LEVELS, &mut q);
    (d, q.map(|q| (q + 1) as u8))
}

/// The best scale of all: for the `k` largest magnitudes as 1 and the others as 0 it is their weighted mean, which
/// explains `(sum of w |x|)^2 / sum of w`; the best `k` is looked for.
fn best_scale(x: &[f32; BLOCK], w: &[f32; BLOCK]) -> f32 {
    let mut sorted: [(f32, f32); BLOCK] = std::array::from_fn(|i| (x[i].abs(), w[i]));
    sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let (mut sum, mut weight) = (0f64, 0f64);
    let mut best = (0f64, 0f64);
    for (x, w) in sorted {
        sum += f64::from(x) * f64::from(w);
        weight += f64::from(w);
        let gain = sum * sum / weight;
        if gain > best.0 {
            best = (gain, sum / weight);
        }
    }
    best.1 as f32
}
