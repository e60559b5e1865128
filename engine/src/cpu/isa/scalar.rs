//! Plain Rust: runs everywhere, and is the yardstick of the others.

use super::{Isa, LANES};

/// No instruction set beyond the target's own.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn lanes<T>(f: impl FnMut(usize) -> T) -> [T; LANES] {
    std::array::from_fn(f)
}

impl Isa for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];
    type T = [u8; 64];

    #[inline(always)]
    unsafe fn f_splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn f_load(p: *const f32) -> Self::F {
        // SAFETY: the caller points to what is read.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn f_store(p: *mut f32, v: Self::F) {
        // SAFETY: the caller points to room for what is written.
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn f_sum(v: Self::F) -> f32 {
        let half: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let quarter: [f32; 4] = std::array::from_fn(|i| half[i] + half[i + 4]);
        (quarter[0] + quarter[2]) + (quarter[1] + quarter[3])
    }
    #[inline(always)]
    unsafe fn f_max_lane(v: Self::F) -> f32 {
        v.iter().copied().fold(f32::NAN, f32::max)
    }
    #[inline(always)]
    unsafe fn f_abs(v: Self::F) -> Self::F {
        lanes(|i| v[i].abs())
    }

    #[inline(always)]
    unsafe fn f_load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller points to what is read.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        lanes(|i| half::f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn f_load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the caller points to what is read.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        lanes(|i| f32::from_bits(u32::from(bits[i]) << 16))
    }

    #[inline(always)]
    unsafe fn i_splat(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn i_load_u8(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read.
        let bytes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        lanes(|i| bytes[i].into())
    }
    #[inline(always)]
    unsafe fn i_load_i8(p: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read.
        let bytes = unsafe { p.cast::<[i8; LANES]>().read_unaligned() };
        lanes(|i| bytes[i].into())
    }
    #[inline(always)]
    unsafe fn i_and(a: Self::I, mask: i32) -> Self::I {
        lanes(|i| a[i] & mask)
    }
    #[inline(always)]
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I {
        lanes(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I {
        lanes(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I {
        lanes(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn i_shl(a: Self::I, n: u32) -> Self::I {
        lanes(|i| a[i] << n)
    }
    #[inline(always)]
    unsafe fn i_shr(a: Self::I, n: u32) -> Self::I {
        lanes(|i| a[i] >> n)
    }
    #[inline(always)]
    unsafe fn i_sum(v: Self::I) -> i32 {
        v.iter().fold(0, |sum, x| sum.wrapping_add(*x))
    }
    #[inline(always)]
    unsafe fn i_to_f(v: Self::I) -> Self::F {
        lanes(|i| v[i] as f32)
    }
    #[inline(always)]
    unsafe fn f_to_i(v: Self::F) -> Self::I {
        lanes(|i| v[i].round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn i_as_f(v: Self::I) -> Self::F {
        lanes(|i| f32::from_bits(v[i] as u32))
    }
    #[inline(always)]
    unsafe fn i_store_i8(p: *mut i8, v: Self::I) {
        // SAFETY: the caller points to room for what is written.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(lanes(|i| v[i] as i8)) }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn b_load(p: *const u8) -> Self::B {
        // SAFETY: the caller points to what is read.
        unsafe { p.cast::<Self::B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn b_store(p: *mut u8, v: Self::B) {
        // SAFETY: the caller points to room for what is written.
        unsafe { p.cast::<Self::B>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn b_and(a: Self::B, mask: u8) -> Self::B {
        std::array::from_fn(|i| a[i] & mask)
    }
    #[inline(always)]
    unsafe fn b_or(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn b_shl(a: Self::B, n: u32) -> Self::B {
        std::array::from_fn(|i| a[i] << n)
    }
    #[inline(always)]
    unsafe fn b_shr(a: Self::B, n: u32) -> Self::B {
        std::array::from_fn(|i| a[i] >> n)
    }
    #[inline(always)]
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read.
        let a = unsafe { a.cast::<[i8; 4]>().read_unaligned() };
        lanes(|i| acc[i].wrapping_add((0..4).map(|t| i32::from(w[4 * i + t]) * i32::from(a[t])).sum::<i32>()))
    }
    #[inline(always)]
    unsafe fn dot4_wide(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read.
        unsafe { Self::dot4(acc, w, a) }
    }

    #[inline(always)]
    unsafe fn i_load(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read.
        let words = unsafe { p.cast::<[[u8; 4]; LANES]>().read_unaligned() };
        lanes(|i| i32::from_le_bytes(words[i]))
    }
    #[inline(always)]
    unsafe fn i_load_u16(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read.
        let words = unsafe { p.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        lanes(|i| u16::from_le_bytes(words[i]).into())
    }
    #[inline(always)]
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I {
        lanes(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I {
        // SAFETY: the caller points to what is read.
        lanes(|i| unsafe { *table.add(index[i] as usize) as i32 })
    }
    #[inline(always)]
    unsafe fn i_as_b(v: Self::I) -> Self::B {
        std::array::from_fn(|i| v[i / 4].to_le_bytes()[i % 4])
    }
    #[inline(always)]
    unsafe fn b_lookup(table: &[u8; 16], index: Self::B) -> Self::B {
        std::array::from_fn(|i| table[usize::from(index[i] & 15)])
    }

    #[inline(always)]
    unsafe fn b_add(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn b_at_least(v: Self::B, limit: u8) -> Self::B {
        v.map(|b| u8::from(b >= limit))
    }
    #[inline(always)]
    unsafe fn b_ternary(v: Self::B) -> Self::T {
        v
    }
    #[inline(always)]
    unsafe fn b_splat8(p: *const i8) -> Self::B {
        // SAFETY: the caller points to what is read.
        let bytes = unsafe { p.cast::<[u8; 8]>().read_unaligned() };
        std::array::from_fn(|i| bytes[i % 8])
    }
    #[inline(always)]
    unsafe fn i_add_ternary(acc: Self::I, w: Self::T, a: Self::B) -> Self::I {
        let term = |i: usize| match w[i] {
            0 => 127 - i32::from(a[i] as i8),
            1 => 127,
            _ => 127 + i32::from(a[i] as i8),
        };
        lanes(|i| if i % 2 == 0 { acc[i] + (4 * i..4 * i + 8).map(term).sum::<i32>() } else { acc[i] })
    }
    #[inline(always)]
    unsafe fn i_join_even(a: Self::I, b: Self::I) -> Self::I {
        lanes(|i| if i < 8 { a[2 * i] } else { b[2 * i - LANES] })
    }
}

/// The yardstick of the bf16 products: rounded the same, summed in another order.
#[cfg(test)]
impl super::Bf16 for Scalar {
    unsafe fn bf_pack(low: Self::F, high: Self::F) -> Self::B {
        let bytes = |x: f32| half::bf16::from_f32(x).to_le_bytes();
        std::array::from_fn(|i| bytes(if i % 4 < 2 { low[i / 4] } else { high[i / 4] })[i % 2])
    }
    unsafe fn bf_store(p: *mut u16, v: Self::F) {
        // SAFETY: the caller points to room for what is written.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(v.map(|x| half::bf16::from_f32(x).to_bits())) }
    }
    unsafe fn bf_exp(x: Self::F) -> Self::F {
        x.map(f32::exp)
    }
    unsafe fn bf_dot(acc: Self::F, v: Self::B, pair: *const u16) -> Self::F {
        let number = |at: usize| half::bf16::from_le_bytes([v[at], v[at + 1]]).to_f32();
        // SAFETY: the caller points to what is read.
        let [a, b] = unsafe { pair.cast::<[u16; 2]>().read_unaligned() }.map(|x| half::bf16::from_bits(x).to_f32());
        lanes(|i| acc[i] + number(4 * i) * a + number(4 * i + 2) * b)
    }
}

/// The yardstick of the arithmetic in f16.
#[cfg(test)]
impl super::F16 for Scalar {
    unsafe fn h_zero() -> Self::B {
        [0; 64]
    }
    unsafe fn h_pack(low: Self::F, high: Self::F) -> Self::B {
        halves(|i| if i < LANES { low[i] } else { high[i - LANES] })
    }
    unsafe fn h_join(low: *const u16, high: *const u16) -> Self::B {
        // SAFETY: the caller points to what is read.
        unsafe { Self::h_pack(Self::f_load_f16(low), Self::f_load_f16(high)) }
    }
    unsafe fn h_widen(v: Self::B) -> (Self::F, Self::F) {
        (lanes(|i| half_at(&v, i)), lanes(|i| half_at(&v, i + LANES)))
    }
    unsafe fn h_store_twice(p: *mut u16, v: Self::F) {
        let twice = v.map(|x| [half::f16::from_f32(x).to_bits(); 2]);
        // SAFETY: the caller points to room for what is written.
        unsafe { p.cast::<[[u16; 2]; LANES]>().write_unaligned(twice) }
    }
    unsafe fn h_splat(twice: *const u16) -> Self::B {
        // SAFETY: the caller points to what is read.
        let [x, same] = unsafe { twice.cast::<[u16; 2]>().read_unaligned() };
        assert_eq!(x, same);
        halves(|_| half::f16::from_bits(x).to_f32())
    }
    unsafe fn h_fma(a: Self::B, b: Self::B, c: Self::B) -> Self::B {
        // In f64 hardly anything is rounded before the end.
        let fma = |i| f64::from(half_at(&a, i)) * f64::from(half_at(&b, i)) + f64::from(half_at(&c, i));
        let bytes: [[u8; 2]; 32] = std::array::from_fn(|i| half::f16::from_f64(fma(i)).to_le_bytes());
        std::array::from_fn(|i| bytes[i / 2][i % 2])
    }
    unsafe fn h_max_abs(a: Self::B, b: Self::B) -> Self::B {
        halves(|i| half_at(&a, i).max(half_at(&b, i).abs()))
    }
    unsafe fn h_exp(low: Self::F, high: Self::F) -> Self::B {
        halves(|i| if i < LANES { low[i] } else { high[i - LANES] }.exp())
    }
    unsafe fn h_store_exp(p: *mut u16, v: Self::B) {
        let twice: [[u16; 2]; 32] = std::array::from_fn(|i| [half::f16::from_f32(half_at(&v, i)).to_bits(); 2]);
        // SAFETY: the caller points to room for what is written.
        unsafe { p.cast::<[[u16; 2]; 32]>().write_unaligned(twice) }
    }
}

#[cfg(test)]
fn half_at(v: &[u8; 64], i: usize) -> f32 {
    half::f16::from_le_bytes([v[2 * i], v[2 * i + 1]]).to_f32()
}

#[cfg(test)]
fn halves(number: impl Fn(usize) -> f32) -> [u8; 64] {
    let bytes: [[u8; 2]; 32] = std::array::from_fn(|i| half::f16::from_f32(number(i)).to_le_bytes());
    std::array::from_fn(|i| bytes[i / 2][i % 2])
}
