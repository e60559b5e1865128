//! Panels of the K-quants: f16 scales of scales, the packed sub-scales byte by byte, then planes of quants per 32.

use super::super::isa::{Isa, LANES};
use super::{BIT_PLANE, HALF_ROW, NIBBLE_PLANE, PAIR_PLANE, Packed, add_bits, dword, nibbles, pack_f16, pairs, put};

/// Groups of 32 in a super-block.
const GROUPS: usize = 8;

/// Copies `len` bytes at `from` of each row so that byte `i` of all 16 rows lies together.
pub(super) fn transpose_bytes(rows: &[&[u8]; LANES], from: usize, len: usize, out: &mut [u8]) {
    for i in 0..len {
        for (lane, row) in rows.iter().enumerate() {
            out[i * LANES + lane] = row[from + i];
        }
    }
}

/// Gathers the 4-bit quants of one group of 32 (bytes `from..from + 32` of each row, shifted by `shift`) in a nibble plane.
pub(super) fn pack_nibble_group(rows: &[&[u8]; LANES], from: usize, shift: u32, out: &mut [u8]) {
    const LOW: u32 = 0x0f0f_0f0f;
    for (lane, row) in rows.iter().enumerate() {
        for v in 0..4 {
            let low = dword(&row[from..], v) >> shift & LOW;
            let high = dword(&row[from..], v + 4) >> shift & LOW;
            put(out, v, lane, low | high << 4);
        }
    }
}

/// Gathers one bit per weight (bit `bit` of bytes `from..from + 32` of each row) in a bit plane.
fn pack_bit_group(rows: &[&[u8]; LANES], from: usize, bit: u32, out: &mut [u8]) {
    for (lane, row) in rows.iter().enumerate() {
        let plane = (0..8).fold(0, |plane, j| plane | (dword(&row[from..], j) >> bit & 0x0101_0101) << j);
        put(out, 0, lane, plane);
    }
}

/// Gathers two bits per weight (bits `shift..shift + 2` of bytes `from..from + 32` of each row) in a pair plane.
fn pack_pair_group(rows: &[&[u8]; LANES], from: usize, shift: usize, out: &mut [u8]) {
    for (lane, row) in rows.iter().enumerate() {
        for u in 0..2 {
            let plane =
                (0..4).fold(0, |plane, i| plane | (dword(&row[from..], 4 * u + i) >> shift & 0x0303_0303) << (2 * i));
            put(out, u, lane, plane);
        }
    }
}

/// Scale and min of group `g` of Q4_K and Q5_K: 6 bits each in 12 transposed bytes.
///
/// # Safety
/// `head` points to `[d][dmin][12 x 16 bytes]`; the CPU has the instruction set.
#[inline(always)]
unsafe fn scale_min_k4<S: Isa>(head: *const u8, g: usize) -> [(S::F, S::F); 2] {
    // SAFETY: offsets stay inside the head.
    unsafe {
        let bytes = head.add(2 * HALF_ROW);
        let (sc, m) = if g < 4 {
            (S::i_and(S::i_load_u8(bytes.add(LANES * g)), 63), S::i_and(S::i_load_u8(bytes.add(LANES * (g + 4))), 63))
        } else {
            let low = S::i_load_u8(bytes.add(LANES * (g + 4)));
            let sc_high = S::i_shl(S::i_shr(S::i_load_u8(bytes.add(LANES * (g - 4))), 6), 4);
            let m_high = S::i_shl(S::i_shr(S::i_load_u8(bytes.add(LANES * g)), 6), 4);
            (S::i_or(S::i_and(low, 15), sc_high), S::i_or(S::i_shr(low, 4), m_high))
        };
        let d = S::f_load_f16(head.cast());
        let dmin = S::f_mul(S::f_load_f16(head.add(HALF_ROW).cast()), S::f_splat(-1.0));
        [(S::f_mul(d, S::i_to_f(sc)), S::f_mul(dmin, S::i_to_f(m))); 2]
    }
}

/// Scale and min of 16 weights, the `j`-th of a block, of Q2_K. Its scales of scales are given.
///
/// # Safety
/// `block` points to a packed block; the CPU has the instruction set.
#[inline(always)]
unsafe fn scale_min_k2<S: Isa>(block: *const u8, (d, minus_dmin): (S::F, S::F), j: usize) -> (S::F, S::F) {
    // SAFETY: offsets stay inside the block.
    unsafe {
        let bytes = S::i_load_u8(block.add(2 * HALF_ROW + LANES * j));
        (S::f_mul(d, S::i_to_f(S::i_and(bytes, 15))), S::f_mul(minus_dmin, S::i_to_f(S::i_shr(bytes, 4))))
    }
}

/// The same of Q3_K, whose scales have 4 bits in one byte and 2 in another.
///
/// # Safety
/// As for [`scale_min_k2`].
#[inline(always)]
unsafe fn scale_min_k3<S: Isa>(block: *const u8, d: S::F, j: usize) -> (S::F, S::F) {
    // SAFETY: offsets stay inside the block.
    unsafe {
        let bytes = block.add(HALF_ROW);
        let low = S::i_load_u8(bytes.add(LANES * (j % 8)));
        let low = if j < 8 { S::i_and(low, 15) } else { S::i_shr(low, 4) };
        let high = S::i_and(S::i_shr(S::i_load_u8(bytes.add(LANES * (8 + j % 4))), 2 * (j / 4) as u32), 3);
        let sc = S::i_add(S::i_or(low, S::i_shl(high, 4)), S::i_splat(-32));
        let scale = S::f_mul(d, S::i_to_f(sc));
        (scale, S::f_mul(scale, S::f_splat(-4.0)))
    }
}

/// The same of Q6_K.
///
/// # Safety
/// As for [`scale_min_k2`].
#[inline(always)]
unsafe fn scale_min_k6<S: Isa>(block: *const u8, d: S::F, j: usize) -> (S::F, S::F) {
    // SAFETY: offsets stay inside the block.
    unsafe {
        let sc = S::i_load_i8(block.add(HALF_ROW + LANES * j).cast());
        let scale = S::f_mul(d, S::i_to_f(sc));
        (scale, S::f_mul(scale, S::f_splat(-32.0)))
    }
}

/// `[d][dmin][scales 16][pairs x 8]`.
pub(crate) struct Q2K;
/// `[d][scales 12][(third bits, pairs) x 8]`, quants offset by 4.
pub(crate) struct Q3K;
/// `[d][dmin][scales 12][nibbles x 8]`.
pub(crate) struct Q4K;
/// `[d][dmin][scales 12][(fifth bits, nibbles) x 8]`.
pub(crate) struct Q5K;
/// `[d][scales 16][(high pairs, nibbles) x 8]`, quants offset by 32.
pub(crate) struct Q6K;

impl Packed for Q2K {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 84;
    const HALVES: usize = 2;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (head, quants) = out.split_at_mut(2 * HALF_ROW + 16 * LANES);
        pack_f16(rows, 80, &mut head[..HALF_ROW]);
        pack_f16(rows, 82, &mut head[HALF_ROW..2 * HALF_ROW]);
        transpose_bytes(rows, 0, 16, &mut head[2 * HALF_ROW..]);
        for (g, out) in quants.chunks_exact_mut(PAIR_PLANE).enumerate() {
            pack_pair_group(rows, 16 + 32 * (g / 4), 2 * (g % 4), out);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { pairs::<S>(block.add(2 * HALF_ROW + 16 * LANES + PAIR_PLANE * g)) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let minus_dmin = S::f_mul(S::f_load_f16(block.add(HALF_ROW).cast()), S::f_splat(-1.0));
            let scales = (S::f_load_f16(block.cast()), minus_dmin);
            [scale_min_k2::<S>(block, scales, 2 * g), scale_min_k2::<S>(block, scales, 2 * g + 1)]
        }
    }
}

impl Packed for Q3K {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 110;
    const HALVES: usize = 2;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (head, quants) = out.split_at_mut(HALF_ROW + 12 * LANES);
        pack_f16(rows, 108, &mut head[..HALF_ROW]);
        transpose_bytes(rows, 96, 12, &mut head[HALF_ROW..]);
        for (g, out) in quants.chunks_exact_mut(BIT_PLANE + PAIR_PLANE).enumerate() {
            pack_bit_group(rows, 0, g as u32, &mut out[..BIT_PLANE]);
            pack_pair_group(rows, 32 + 32 * (g / 4), 2 * (g % 4), &mut out[BIT_PLANE..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 12 * LANES + (BIT_PLANE + PAIR_PLANE) * g);
            add_bits::<S, 2>(pairs::<S>(group.add(BIT_PLANE)), group)
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let d = S::f_load_f16(block.cast());
            [scale_min_k3::<S>(block, d, 2 * g), scale_min_k3::<S>(block, d, 2 * g + 1)]
        }
    }
}

impl Packed for Q4K {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 144;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (head, quants) = out.split_at_mut(2 * HALF_ROW + 12 * LANES);
        pack_f16(rows, 0, &mut head[..HALF_ROW]);
        pack_f16(rows, 2, &mut head[HALF_ROW..2 * HALF_ROW]);
        transpose_bytes(rows, 4, 12, &mut head[2 * HALF_ROW..]);
        for (g, out) in quants.chunks_exact_mut(NIBBLE_PLANE).enumerate() {
            pack_nibble_group(rows, 16 + 32 * (g / 2), 4 * (g % 2) as u32, out);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { nibbles::<S>(block.add(2 * HALF_ROW + 12 * LANES + NIBBLE_PLANE * g)) }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { scale_min_k4::<S>(block, g) }
    }
}

impl Packed for Q5K {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 176;
    const HALVES: usize = 1;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (head, quants) = out.split_at_mut(2 * HALF_ROW + 12 * LANES);
        pack_f16(rows, 0, &mut head[..HALF_ROW]);
        pack_f16(rows, 2, &mut head[HALF_ROW..2 * HALF_ROW]);
        transpose_bytes(rows, 4, 12, &mut head[2 * HALF_ROW..]);
        for (g, out) in quants.chunks_exact_mut(BIT_PLANE + NIBBLE_PLANE).enumerate() {
            pack_bit_group(rows, 16, g as u32, &mut out[..BIT_PLANE]);
            pack_nibble_group(rows, 48 + 32 * (g / 2), 4 * (g % 2) as u32, &mut out[BIT_PLANE..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(2 * HALF_ROW + 12 * LANES + (BIT_PLANE + NIBBLE_PLANE) * g);
            add_bits::<S, 4>(nibbles::<S>(group.add(BIT_PLANE)), group)
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe { scale_min_k4::<S>(block, g) }
    }
}

impl Packed for Q6K {
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 210;
    const HALVES: usize = 2;

    fn pack(rows: &[&[u8]; LANES], out: &mut [u8]) {
        let (head, quants) = out.split_at_mut(HALF_ROW + 16 * LANES);
        pack_f16(rows, 208, &mut head[..HALF_ROW]);
        transpose_bytes(rows, 192, 16, &mut head[HALF_ROW..]);
        for (g, out) in quants.chunks_exact_mut(PAIR_PLANE + NIBBLE_PLANE).enumerate() {
            pack_pair_group(rows, 128 + 32 * (g / 4), 2 * (g % 4), &mut out[..PAIR_PLANE]);
            let from = 64 * (g / 4) + 32 * (g % 2);
            pack_nibble_group(rows, from, 4 * (g % 4 / 2) as u32, &mut out[PAIR_PLANE..]);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(block: *const u8, g: usize) -> [S::B; 8] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let group = block.add(HALF_ROW + 16 * LANES + (PAIR_PLANE + NIBBLE_PLANE) * g);
            let mut quants = nibbles::<S>(group.add(PAIR_PLANE));
            let (a, b) = (S::b_load(group), S::b_load(group.add(64)));
            let high =
                [S::b_shl(a, 4), S::b_shl(a, 2), a, S::b_shr(a, 2), S::b_shl(b, 4), S::b_shl(b, 2), b, S::b_shr(b, 2)];
            for j in 0..8 {
                quants[j] = S::b_or(quants[j], S::b_and(high[j], 0x30));
            }
            quants
        }
    }
    #[inline(always)]
    unsafe fn scale_min<S: Isa>(block: *const u8, g: usize) -> [(S::F, S::F); 2] {
        // SAFETY: inside the packed block that the caller points to.
        unsafe {
            let d = S::f_load_f16(block.cast());
            [scale_min_k6::<S>(block, d, 2 * g), scale_min_k6::<S>(block, d, 2 * g + 1)]
        }
    }
}

const _: () = assert!(GROUPS * NIBBLE_PLANE + 2 * HALF_ROW + 12 * LANES == LANES * Q4K::FILE_BYTES);
const _: () = assert!(GROUPS * (PAIR_PLANE + NIBBLE_PLANE) + HALF_ROW + 16 * LANES == LANES * Q6K::FILE_BYTES);
