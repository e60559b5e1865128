//! Weight panels: how a matrix lies in the CPU backend's memory.
//!
//! A panel is 16 rows. Along k it is a sequence of packed blocks, each the 16 rows' blocks of the file interleaved so
//! that a vector holds 16 rows in its lanes, 4 consecutive k per lane: what a dot-product instruction wants, with the
//! activations broadcast. Packing reorders the file's bytes and never widens them.
//!
//! The contract of a quantized type is one line: **`w = scale * q + min`**, q an unsigned byte, scale and min shared by
//! groups of 16 or 32 along k. A symmetric type has `min = -offset * scale`. From it come GEMV and GEMM, on every
//! instruction set.

mod block32;
mod float;
mod fp4;
mod grid;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod k_quants;
mod low_bit;
mod ternary;

use super::isa::{Isa, LANES};

pub(crate) use block32::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use float::{BF16, F16, F32, PackedFloat};
pub(crate) use fp4::{Mxfp4, Nvfp4};
pub(crate) use iq1::{Iq1M, Iq1S};
pub(crate) use iq2::{Iq2S, Iq2Xs, Iq2Xxs};
pub(crate) use iq3::{Iq3S, Iq3Xxs};
pub(crate) use iq4::{Iq4Nl, Iq4Xs};
pub(crate) use k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use low_bit::{Q1_0, Q2_0};
pub(crate) use ternary::{Tq1_0, Tq2Levels, is_ternary};

/// Weights along k that are unpacked together.
pub(crate) const GROUP: usize = 32;

/// A quantized type's panel layout and decoder.
pub(crate) trait Packed: 'static {
    /// Weights along k in a block.
    const BLOCK: usize;
    /// Bytes of one row's block in the file.
    const FILE_BYTES: usize;
    /// Scales per 32 weights: 1, or 2 for types with groups of 16.
    const HALVES: usize;
    /// Whether quants can be above 127.
    const WIDE: bool = false;
    /// Whether products are sums of activations ([`super::sums`]). Vectors of quants then hold 8 rows of 8 consecutive k,
    /// and not 16 rows of 4; quants are 0, 1 and 2, weights the scale times one less, and `HALVES` is 1.
    const OCTETS: bool = false;

    /// Interleaves one block of each of 16 rows. `out` has `16 * FILE_BYTES` bytes.
    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]);

    /// The quants of the `g`-th 32 weights of a packed block: vector `j` holds k = 4j..4j+4 of each row; with
    /// [`Packed::OCTETS`] vectors 2j and 2j+1 hold k = 8j..8j+8 of rows 0..8 and 8..16.
    ///
    /// # Safety
    /// `block` points to a packed block; the CPU has the instruction set.
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8];

    /// Scale and min of each row for the `g`-th 32 weights; one pair per half, equal where `HALVES` is 1.
    ///
    /// # Safety
    /// As for [`Packed::quants`].
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2];
}

/// Bytes of 16 f16.
const HALF_ROW: usize = 2 * LANES;

/// Copies the f16 at `from` of each row to a row of 16 f16.
fn pack_f16(rows: &[&[u8]; LANES], from: usize, out: &mut [u8]) {
    for (out, row) in out.as_chunks_mut::<2>().0.iter_mut().zip(rows) {
        *out = [row[from], row[from + 1]];
    }
}

/// Writes row `lane`'s dword into vector `v` of a plane.
#[inline(always)]
fn put(plane: &mut [u8], v: usize, lane: usize, dword: u32) {
    let at = (v * LANES + lane) * 4;
    plane[at..at + 4].copy_from_slice(&dword.to_le_bytes());
}

/// Reads dword `i` of a row's bytes.
#[inline(always)]
fn dword(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

/// A plane of nibbles, 4 vectors: vector `v` holds k-group `v` in its low and `v + 4` in its high halves.
const NIBBLE_PLANE: usize = 4 * 64;
/// A plane of single bits, 1 vector: bit `j` of a byte belongs to k-group `j`.
const BIT_PLANE: usize = 64;
/// A plane of 2-bit quants, 2 vectors: vector `u` holds k-group `4u + i` in bits `2i`.
const PAIR_PLANE: usize = 2 * 64;

/// Unpacks a nibble plane.
///
/// # Safety
/// `plane` points to [`NIBBLE_PLANE`] bytes; the CPU has the instruction set.
#[inline(always)]
unsafe fn nibbles<S: Isa>(plane: *const u8) -> [S::B; 8] {
    // SAFETY: four vectors, as the caller promises.
    unsafe {
        let mut v = [S::b_load(plane); 4];
        for i in 1..4 {
            v[i] = S::b_load(plane.add(64 * i));
        }
        [
            S::b_and(v[0], 15),
            S::b_and(v[1], 15),
            S::b_and(v[2], 15),
            S::b_and(v[3], 15),
            S::b_and(S::b_shr(v[0], 4), 15),
            S::b_and(S::b_shr(v[1], 4), 15),
            S::b_and(S::b_shr(v[2], 4), 15),
            S::b_and(S::b_shr(v[3], 4), 15),
        ]
    }
}

/// Adds a plane of single bits to quants, as bit `AT`.
///
/// # Safety
/// `plane` points to [`BIT_PLANE`] bytes; the CPU has the instruction set.
#[inline(always)]
unsafe fn add_bits<S: Isa, const AT: u32>(q: [S::B; 8], plane: *const u8) -> [S::B; 8] {
    // SAFETY: one vector, as the caller promises.
    unsafe {
        let bits = S::b_load(plane);
        let mask = 1u8 << AT;
        [
            S::b_or(q[0], S::b_and(S::b_shl(bits, AT), mask)),
            S::b_or(q[1], S::b_and(shift_to::<S>(bits, 1, AT), mask)),
            S::b_or(q[2], S::b_and(shift_to::<S>(bits, 2, AT), mask)),
            S::b_or(q[3], S::b_and(shift_to::<S>(bits, 3, AT), mask)),
            S::b_or(q[4], S::b_and(shift_to::<S>(bits, 4, AT), mask)),
            S::b_or(q[5], S::b_and(shift_to::<S>(bits, 5, AT), mask)),
            S::b_or(q[6], S::b_and(shift_to::<S>(bits, 6, AT), mask)),
            S::b_or(q[7], S::b_and(shift_to::<S>(bits, 7, AT), mask)),
        ]
    }
}

/// Moves bit `from` of each byte to bit `to`; other bits are for the caller to mask.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn shift_to<S: Isa>(v: S::B, from: u32, to: u32) -> S::B {
    // SAFETY: register operations.
    unsafe { if to >= from { S::b_shl(v, to - from) } else { S::b_shr(v, from - to) } }
}

/// Unpacks a plane of 2-bit quants.
///
/// # Safety
/// `plane` points to [`PAIR_PLANE`] bytes; the CPU has the instruction set.
#[inline(always)]
unsafe fn pairs<S: Isa>(plane: *const u8) -> [S::B; 8] {
    // SAFETY: two vectors, as the caller promises.
    unsafe {
        let (a, b) = (S::b_load(plane), S::b_load(plane.add(64)));
        [
            S::b_and(a, 3),
            S::b_and(S::b_shr(a, 2), 3),
            S::b_and(S::b_shr(a, 4), 3),
            S::b_and(S::b_shr(a, 6), 3),
            S::b_and(b, 3),
            S::b_and(S::b_shr(b, 2), 3),
            S::b_and(S::b_shr(b, 4), 3),
            S::b_and(S::b_shr(b, 6), 3),
        ]
    }
}

/// The values of a codebook as quants, which are unsigned.
const fn offset_table(values: [i8; 16], offset: i32) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (values[i] as i32 + offset) as u8;
        i += 1;
    }
    table
}

/// Puts every quant, below 16, through a table.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn looked_up<S: Isa>(table: &[u8; 16], mut q: [S::B; 8]) -> [S::B; 8] {
    for j in 0..8 {
        // SAFETY: register operations.
        q[j] = unsafe { S::b_lookup(table, q[j]) };
    }
    q
}

#[cfg(test)]
mod tests {
    use super::super::isa::scalar::Scalar;
    use super::*;
    use tandem_loader::{GgmlType, quant};

    /// Random blocks with finite scales.
    fn random_blocks(n: usize, bytes: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        (0..n * bytes).map(|_| next()).collect()
    }

    /// Decodes one row of 16 packed ones through the contract and compares with the file's decoder.
    fn check<P: Packed>(ty: GgmlType) {
        assert_eq!((P::BLOCK, P::FILE_BYTES), (ty.block_size(), ty.block_bytes()), "{ty}");
        let file: Vec<Vec<u8>> = (0..LANES).map(|r| random_blocks(1, P::FILE_BYTES, 77 * r as u64 + 5)).collect();
        let rows: [&[u8]; LANES] = std::array::from_fn(|r| file[r].as_slice());
        let mut packed = vec![0u8; LANES * P::FILE_BYTES];
        P::pack(&rows, &mut packed);
        let decode = quant::decode_fn(ty).unwrap();
        for (r, row) in rows.iter().enumerate() {
            let mut expected = vec![0.0; P::BLOCK];
            decode(row, &mut expected);
            for (k, want) in expected.iter().enumerate() {
                let (g, k) = (k / GROUP, k % GROUP);
                let (j, at) = if P::OCTETS { (k / 8 * 2 + r / 8, r % 8 * 8 + k % 8) } else { (k / 4, 4 * r + k % 4) };
                // SAFETY: `packed` is a whole block; scalar code runs everywhere.
                let (q, scales) =
                    unsafe { (P::quants::<Scalar>(packed.as_ptr(), g), P::scale_min::<Scalar>(packed.as_ptr(), g)) };
                let (scale, min) = scales[k / 16];
                let got = scale[r] * f32::from(q[j][at]) + min[r];
                // q and min are exact; one rounding of the product may differ from the decoder's order.
                let limit = 1e-6 * (scale[r] * 255.0).abs().max(min[r].abs());
                let same = (got - want).abs() <= limit || (got.is_nan() && want.is_nan()) || !want.is_finite();
                assert!(same, "{ty} row {r} k {k}: {got} against {want}");
            }
        }
    }

    #[test]
    fn packed_blocks_decode_to_the_files_weights() {
        check::<Q4_0>(GgmlType::Q4_0);
        check::<Q4_1>(GgmlType::Q4_1);
        check::<Q5_0>(GgmlType::Q5_0);
        check::<Q5_1>(GgmlType::Q5_1);
        check::<Q8_0>(GgmlType::Q8_0);
        check::<Q2K>(GgmlType::Q2_K);
        check::<Q3K>(GgmlType::Q3_K);
        check::<Q4K>(GgmlType::Q4_K);
        check::<Q5K>(GgmlType::Q5_K);
        check::<Q6K>(GgmlType::Q6_K);
        check::<Iq1S>(GgmlType::IQ1_S);
        check::<Iq1M>(GgmlType::IQ1_M);
        check::<Iq2Xxs>(GgmlType::IQ2_XXS);
        check::<Iq2Xs>(GgmlType::IQ2_XS);
        check::<Iq2S>(GgmlType::IQ2_S);
        check::<Iq3Xxs>(GgmlType::IQ3_XXS);
        check::<Iq3S>(GgmlType::IQ3_S);
        check::<Iq4Nl>(GgmlType::IQ4_NL);
        check::<Iq4Xs>(GgmlType::IQ4_XS);
        check::<Mxfp4>(GgmlType::MXFP4);
        check::<Nvfp4>(GgmlType::NVFP4);
        check::<Q1_0>(GgmlType::Q1_0);
        check::<Q2_0>(GgmlType::Q2_0);
        check::<Tq1_0>(GgmlType::TQ1_0);
        check::<Tq2Levels<3>>(GgmlType::TQ2_0);
        check::<Tq2Levels<4>>(GgmlType::TQ2_0);
    }
}
