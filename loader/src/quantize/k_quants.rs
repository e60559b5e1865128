//! Encoders of the K-quants: 256 weights in groups whose scales (and minimums) are small integers.

use super::search::{Clips, Ints};
use super::super_scaled::Steps;
use super::{Method, encode_blocks, f16};
use super::{super_affine, super_scaled};
use crate::quant::k_quants::{BLOCK, Q2K, Q3K, Q4K, Q5K, Q6K};

/// Encodes Q2_K.
pub(super) fn encode_q2_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q2K, BLOCK>(x, w, out, |x, w| {
        let form = super_affine::Form {
            n: 3.0,
            largest: 15.0,
            clips: Clips { share: (0.5, 1.1, 13), places: 5 },
            starts: &[1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 1.05, 1.1, 1.15, 1.2],
        };
        let found = super_affine::encode::<2, 16>(x, w, form, method);
        let mut b = Q2K { scales: [0; 16], qs: [0; 64], d: f16::bytes(found.d), dmin: f16::bytes(found.dmin) };
        b.scales = std::array::from_fn(|g| found.scales[g] | found.mins[g] << 4);
        put_two_bits(&mut b.qs, &found.q);
        b
    });
}

/// Encodes Q4_K.
pub(super) fn encode_q4_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q4K, BLOCK>(x, w, out, |x, w| {
        let form = super_affine::Form {
            n: 15.0,
            largest: 63.0,
            clips: Clips { share: (0.58, 1.06, 13), places: 3 },
            starts: &[1.0, 0.99, 0.98, 0.9, 0.75, 0.6, 0.5],
        };
        let found = super_affine::encode::<4, 8>(x, w, form, method);
        let scales = scales_mins(&found.scales, &found.mins);
        let mut b = Q4K { d: f16::bytes(found.d), dmin: f16::bytes(found.dmin), scales, qs: [0; 128] };
        put_four_bits(&mut b.qs, &found.q);
        b
    });
}

/// Encodes Q5_K.
pub(super) fn encode_q5_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q5K, BLOCK>(x, w, out, |x, w| {
        let form = super_affine::Form {
            n: 31.0,
            largest: 63.0,
            clips: Clips { share: (0.62, 1.04, 13), places: 3 },
            starts: &[1.0, 0.99, 0.98, 0.9, 0.75, 0.6, 0.5],
        };
        let found = super_affine::encode::<4, 8>(x, w, form, method);
        let scales = scales_mins(&found.scales, &found.mins);
        let (d, dmin) = (f16::bytes(found.d), f16::bytes(found.dmin));
        let mut b = Q5K { d, dmin, scales, qh: [0; 32], qs: [0; 128] };
        put_four_bits(&mut b.qs, &found.q.map(|q| q & 15));
        put_one_bit(&mut b.qh, &found.q.map(|q| q >> 4));
        b
    });
}

/// Encodes Q3_K.
pub(super) fn encode_q3_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q3K, BLOCK>(x, w, out, |x, w| {
        let form = super_scaled::Form {
            scales: Steps { lo: -32.0, hi: 31.0, step: 1.0 },
            starts: &[1.0, 1.04, 1.09, 1.14, 1.2, 1.28, 1.39, 1.5, 1.67, 0.94, 0.87, 0.77, 0.67, 0.57, 0.5],
        };
        let levels = Ints { lo: -4.0, hi: 3.0 };
        let (found, q) = super_scaled::encode::<2, 16, _>(x, w, (levels, (0.5, 2.0), form), method);
        let q = q.map(|q| (q + 4) as u8);
        let scales = signed_scales(&found.scales.map(|scale| scale as i8));
        let mut b = Q3K { hmask: [0; 32], qs: [0; 64], scales, d: f16::bytes(found.d) };
        put_two_bits(&mut b.qs, &q.map(|q| q & 3));
        put_one_bit(&mut b.hmask, &q.map(|q| q >> 2));
        b
    });
}

/// Encodes Q6_K.
pub(super) fn encode_q6_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q6K, BLOCK>(x, w, out, |x, w| {
        let form = super_scaled::Form {
            scales: Steps { lo: -128.0, hi: 127.0, step: 1.0 },
            starts: &[1.0, 1.03, 1.06, 1.1, 0.9, 0.8, 0.67, 0.5],
        };
        let levels = Ints { lo: -32.0, hi: 31.0 };
        let (found, q) = super_scaled::encode::<2, 16, _>(x, w, (levels, (0.7, 1.4), form), method);
        let q = q.map(|q| (q + 32) as u8);
        let scales = found.scales.map(|scale| scale as i8);
        let mut b = Q6K { ql: [0; 128], qh: [0; 64], scales, d: f16::bytes(found.d) };
        for (i, q) in q.iter().enumerate() {
            b.ql[64 * (i / 128) + i % 64] |= (q & 15) << (4 * (i % 128 / 64));
        }
        put_two_bits(&mut b.qh, &q.map(|q| q >> 4));
        b
    });
}

/// Places 2 bits of each weight as [`Q2K`] says.
pub(super) fn put_two_bits(qs: &mut [u8; 64], q: &[u8; 256]) {
    for (i, q) in q.iter().enumerate() {
        qs[32 * (i / 128) + i % 32] |= q << (2 * (i % 128 / 32));
    }
}

/// Places 4 bits of each weight as [`Q4K`] says.
fn put_four_bits(qs: &mut [u8; 128], q: &[u8; 256]) {
    for (i, q) in q.iter().enumerate() {
        qs[32 * (i / 64) + i % 32] |= q << (4 * (i % 64 / 32));
    }
}

/// Places 1 bit of each weight: bit `i / 32` of byte `i % 32`.
fn put_one_bit(bits: &mut [u8; 32], q: &[u8; 256]) {
    for (i, q) in q.iter().enumerate() {
        bits[i % 32] |= q << (i / 32);
    }
}

/// 8 scales and 8 minimums of 6 bits in 12 bytes; [`crate::quant::k_quants::scale_min`] reads them.
fn scales_mins(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        out[j] = scales[j] | scales[j + 4] >> 4 << 6;
        out[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        out[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4;
    }
    out
}

/// 16 scales of -32..32 in 12 bytes; [`crate::quant::k_quants::q3_scale`] reads them.
fn signed_scales(scales: &[i8; 16]) -> [u8; 12] {
    let mut out = [0; 12];
    for (j, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        out[j % 8] |= (scale & 15) << (4 * (j / 8));
        out[8 + j % 4] |= (scale >> 4) << (2 * (j / 4));
    }
    out
}
