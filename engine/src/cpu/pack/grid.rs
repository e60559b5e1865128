//! What the grid types (IQ1, IQ2, IQ3) share: the grids in the order of vectors, and signs.
//!
//! A grid point is looked up once per 8 (or 4) weights of a row. Its entry has a nibble per weight, placed so that one
//! mask (and one shift) gives the two vectors: weights 0 to 3 in the low nibbles of the 4 bytes, 4 to 7 in the high ones.
//!
//! The types' helpers are functions and not closures: a closure cannot be told to be inlined, and one that is not has none
//! of the instruction set's features.

use super::super::isa::{Isa, LANES};
use super::{dword, put};

/// Entries of a grid of 8 weights.
pub(super) const fn eights<const N: usize>(grid: &[u16; N]) -> [u32; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        let mut t = 0;
        while t < 8 {
            let code = (grid[i] >> (2 * t) & 3) as u32;
            out[i] |= code << (8 * (t % 4) + 4 * (t / 4));
            t += 1;
        }
        i += 1;
    }
    out
}

/// Entries of a grid of 4 weights: one byte each.
pub(super) const fn fours<const N: usize>(grid: &[u16; N]) -> [u32; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        let mut t = 0;
        while t < 4 {
            out[i] |= ((grid[i] >> (4 * t) & 15) as u32) << (8 * t);
            t += 1;
        }
        i += 1;
    }
    out
}

/// From a nibble (3 bits that count through the magnitudes, then the sign) to a quant: `offset` plus the signed magnitude.
pub(super) const fn signed_table<const N: usize>(magnitudes: [u8; N], offset: i32) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < N {
        table[i] = (offset + magnitudes[i] as i32) as u8;
        table[8 + i] = (offset - magnitudes[i] as i32) as u8;
        i += 1;
    }
    table
}

/// Copies `n` dwords at `from` of each row, so that dword `i` of all 16 rows lies together.
pub(super) fn pack_dwords(rows: &[&[u8]; LANES], from: usize, n: usize, out: &mut [u8]) {
    for (lane, row) in rows.iter().enumerate() {
        for i in 0..n {
            put(out, i, lane, dword(&row[from..], i));
        }
    }
}

/// The signs' parities: bit `b` of the result is 1 where bits `b .. b + 7` of `bits` have an odd number of ones. Only
/// fields below bit 31, or that end there, come out right.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn parity7<S: Isa>(bits: S::I) -> S::I {
    // SAFETY: register operations.
    unsafe {
        let two = S::i_xor(bits, S::i_shr(bits, 1));
        let three = S::i_xor(two, S::i_shr(bits, 2));
        let four = S::i_xor(two, S::i_shr(two, 2));
        S::i_xor(four, S::i_shr(three, 4))
    }
}

/// The 8 signs of a field of 7 at bit `at`, given its parities.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn eight_signs<S: Isa>(bits: S::I, parity: S::I, at: u32) -> S::I {
    // SAFETY: register operations.
    unsafe { S::i_or(S::i_and(S::i_shr(bits, at), 127), S::i_shl(S::i_and(S::i_shr(parity, at), 1), 7)) }
}

/// Moves 8 signs (bits 0 to 8 of each lane) to the high bits of the nibbles of their weights.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn spread_signs<S: Isa>(signs: S::I) -> S::I {
    // SAFETY: register operations.
    unsafe {
        // Sign t belongs at bit 8 t + 3, sign t + 4 at 8 t + 7: copies shifted by 0, 7, 14 and 21, and then by 3.
        let two = S::i_or(signs, S::i_shl(signs, 7));
        let four = S::i_or(two, S::i_shl(two, 14));
        S::i_and(S::i_shl(four, 3), 0x8888_8888_u32 as i32)
    }
}

/// The two vectors of an entry of 8 nibbles.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn both_nibbles<S: Isa>(entry: S::I) -> [S::B; 2] {
    // SAFETY: register operations.
    unsafe {
        let bytes = S::i_as_b(entry);
        [S::b_and(bytes, 15), S::b_and(S::b_shr(bytes, 4), 15)]
    }
}

/// The vectors of four times 8 weights.
#[inline(always)]
pub(super) fn join<B: Copy>([a, b]: [B; 2], [c, d]: [B; 2], [e, f]: [B; 2], [g, h]: [B; 2]) -> [B; 8] {
    [a, b, c, d, e, f, g, h]
}

/// Scale `d * (sc + 1/2) * factor` and the min of quants that are offset by `offset`.
///
/// # Safety
/// `d` points to 16 f16; the CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn half_steps<S: Isa>(d: *const u8, sc: S::I, factor: f32, offset: i32) -> (S::F, S::F) {
    // SAFETY: 16 f16, as the caller promises.
    unsafe {
        // Exact: sc has few bits and the factor is a power of 2.
        let sc = S::f_fma(S::i_to_f(sc), S::f_splat(factor), S::f_splat(0.5 * factor));
        let scale = S::f_mul(S::f_load_f16(d.cast()), sc);
        (scale, S::f_mul(scale, S::f_splat(-offset as f32)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::isa::scalar::Scalar;
    use super::*;
    use tandem_loader::quant::eighth_sign;

    #[test]
    fn all_sign_fields_unfold() {
        for seven in 0..128u32 {
            for at in [0, 7, 9, 14, 21, 25] {
                // The bits around a field must not matter.
                for around in [0, u32::MAX] {
                    let bits = (around & !(127 << at) | seven << at) as i32;
                    // SAFETY: scalar code runs everywhere.
                    let signs = unsafe { eight_signs::<Scalar>([bits; LANES], parity7::<Scalar>([bits; LANES]), at) };
                    assert_eq!(signs, [i32::from(eighth_sign(seven)); LANES], "{seven} at {at}");
                    // SAFETY: as above.
                    let spread = unsafe { spread_signs::<Scalar>(signs) }[0] as u32;
                    for t in 0..8 {
                        let sign = spread >> (8 * (t % 4) + 4 * (t / 4) + 3) & 1;
                        assert_eq!(sign, u32::from(eighth_sign(seven)) >> t & 1);
                    }
                    assert_eq!(spread & 0x7777_7777, 0);
                }
            }
        }
    }
}
