//! The instruction sets: one trait, one thin file each.
//!
//! Kernels are written once over [`Isa`], in vectors of 16 lanes, and compiled for each instruction set inside a function
//! that enables its target features. Everything here is `#[inline(always)]`, so that it melts into that function.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;

/// Lanes of a vector, and rows of a weight panel.
pub(crate) const LANES: usize = 16;

/// Vector operations on 16 lanes.
///
/// # Safety
/// All methods require that the CPU has the instruction set, and that pointers are valid for 16 elements (64 bytes for
/// `B`, 4 for the activations of a dot product). No pointer needs alignment.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 64 bytes: 4 for each of 16 lanes.
    type B: Copy;
    /// 64 ternary weights.
    type T: Copy;

    unsafe fn f_splat(x: f32) -> Self::F;
    unsafe fn f_load(p: *const f32) -> Self::F;
    unsafe fn f_store(p: *mut f32, v: Self::F);
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the instruction set can.
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` where one of them is NaN.
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where one of them is NaN.
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes, in a fixed order.
    unsafe fn f_sum(v: Self::F) -> f32;
    /// Largest lane; NaN where all are NaN.
    unsafe fn f_max_lane(v: Self::F) -> f32;
    /// Absolute values.
    unsafe fn f_abs(v: Self::F) -> Self::F;

    unsafe fn f_load_f16(p: *const u16) -> Self::F;
    unsafe fn f_load_bf16(p: *const u16) -> Self::F;

    unsafe fn i_splat(x: i32) -> Self::I;
    unsafe fn i_load_u8(p: *const u8) -> Self::I;
    unsafe fn i_load_i8(p: *const i8) -> Self::I;
    unsafe fn i_and(a: Self::I, mask: i32) -> Self::I;
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_shl(a: Self::I, n: u32) -> Self::I;
    unsafe fn i_shr(a: Self::I, n: u32) -> Self::I;
    unsafe fn i_sum(v: Self::I) -> i32;
    unsafe fn i_to_f(v: Self::I) -> Self::F;
    /// Rounds to nearest, ties to even.
    unsafe fn f_to_i(v: Self::F) -> Self::I;
    /// Reinterprets bits.
    unsafe fn i_as_f(v: Self::I) -> Self::F;
    /// The low byte of each lane (the lanes hold -128..=127).
    unsafe fn i_store_i8(p: *mut i8, v: Self::I);

    /// Asks for the cache line at any address; does nothing where there is no such instruction.
    unsafe fn prefetch(p: *const u8);
    unsafe fn b_load(p: *const u8) -> Self::B;
    unsafe fn b_store(p: *mut u8, v: Self::B);
    unsafe fn b_and(a: Self::B, mask: u8) -> Self::B;
    unsafe fn b_or(a: Self::B, b: Self::B) -> Self::B;
    /// Shifts 16-bit words: the caller masks off what crosses between bytes.
    unsafe fn b_shl(a: Self::B, n: u32) -> Self::B;
    /// Shifts 16-bit words: the caller masks off what crosses between bytes.
    unsafe fn b_shr(a: Self::B, n: u32) -> Self::B;
    /// Adds to each lane the dot product of its 4 unsigned bytes (below 128) with the same 4 signed bytes at `a`, which are
    /// not -128.
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I;
    /// As [`Isa::dot4`], for unsigned bytes up to 255.
    unsafe fn dot4_wide(acc: Self::I, w: Self::B, a: *const i8) -> Self::I;

    /// `e^x`, relative error below 2e-7 for x in [-87, 88]; smaller x give 0, larger ones the value at 88, NaN gives NaN.
    #[inline(always)]
    unsafe fn f_exp(x: Self::F) -> Self::F {
        // SAFETY: register operations only.
        unsafe {
            // e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts keeps r exact.
            let clamped = Self::f_max(Self::f_splat(-88.0), Self::f_min(Self::f_splat(88.0), x));
            let n = Self::f_to_i(Self::f_mul(clamped, Self::f_splat(std::f32::consts::LOG2_E)));
            let nf = Self::i_to_f(n);
            let r = Self::f_fma(nf, Self::f_splat(-0.693_359_4), clamped);
            let r = Self::f_fma(nf, Self::f_splat(2.121_944_4e-4), r);
            // Taylor with minimax-adjusted tail (Cephes expf coefficients).
            let mut p = Self::f_splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::f_fma(p, r, Self::f_splat(c));
            }
            let r2 = Self::f_mul(r, r);
            let p = Self::f_add(Self::f_fma(p, r2, r), Self::f_splat(1.0));
            // n is at least -127, which makes the exponent field, and with it the result, 0.
            let exponent = Self::i_shl(Self::i_add(Self::i_splat(127), n), 23);
            Self::f_mul(p, Self::i_as_f(exponent))
        }
    }

    // Tables. Indices and table entries are in the lanes.

    /// 16 dwords.
    unsafe fn i_load(p: *const u8) -> Self::I;
    /// 16 words, zero-extended.
    unsafe fn i_load_u16(p: *const u8) -> Self::I;
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I;
    /// `table[index]` in each lane; the table is valid for every index.
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I;
    /// Reinterprets bits: lowest byte first.
    unsafe fn i_as_b(v: Self::I) -> Self::B;
    /// `table[index]` in each byte; indices are below 16.
    unsafe fn b_lookup(table: &[u8; 16], index: Self::B) -> Self::B;

    // Sums without products.

    unsafe fn b_add(a: Self::B, b: Self::B) -> Self::B;
    /// 1 where the (unsigned) byte is at least `limit`, else 0.
    unsafe fn b_at_least(v: Self::B, limit: u8) -> Self::B;
    /// Bytes 0, 1 and 2 as the weights -1, 0 and 1.
    unsafe fn b_ternary(v: Self::B) -> Self::T;
    /// 8 signed bytes, repeated 8 times.
    unsafe fn b_splat8(p: *const i8) -> Self::B;
    /// Adds to lane `2 i` the sum of `w a + 127` over bytes `8 i .. 8 i + 8`, by selecting, adding and subtracting; no `a`
    /// is -128.
    unsafe fn i_add_ternary(acc: Self::I, w: Self::T, a: Self::B) -> Self::I;
    /// The even lanes of `a`, then those of `b`.
    unsafe fn i_join_even(a: Self::I, b: Self::I) -> Self::I;
}

/// Products of pairs of bf16, for instruction sets that have them: so far, of x86-64.
///
/// # Safety
/// As for [`Isa`]; the CPU has the bf16 instructions too.
#[allow(clippy::missing_safety_doc)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) trait Bf16: Isa {
    /// Lane `i` becomes `low[i]` and `high[i]`, rounded to nearest, ties to even.
    unsafe fn bf_pack(low: Self::F, high: Self::F) -> Self::B;
    /// Stores 16 rounded numbers.
    unsafe fn bf_store(p: *mut u16, v: Self::F);
    /// `e^x` for x from -87 to 0, relative error below 2e-4, a twentieth of what rounding to bf16 does; below that, nearly 0.
    unsafe fn bf_exp(x: Self::F) -> Self::F;
    /// Adds to each lane the products of its two numbers with the two at `pair`.
    unsafe fn bf_dot(acc: Self::F, v: Self::B, pair: *const u16) -> Self::F;
}

/// Arithmetic in f16, for instruction sets that have it: so far, of x86-64. A `B` holds 32 numbers.
///
/// # Safety
/// As for [`Isa`]; the CPU has the f16 instructions too.
#[allow(clippy::missing_safety_doc)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) trait F16: Isa {
    /// 32 zeros.
    unsafe fn h_zero() -> Self::B;
    /// 16 numbers, then 16 more, rounded to nearest, ties to even.
    unsafe fn h_pack(low: Self::F, high: Self::F) -> Self::B;
    /// The 16 numbers at `low`, then those at `high`.
    unsafe fn h_join(low: *const u16, high: *const u16) -> Self::B;
    /// What [`F16::h_pack`] packed.
    unsafe fn h_widen(v: Self::B) -> (Self::F, Self::F);
    /// Stores 16 rounded numbers, each twice.
    unsafe fn h_store_twice(p: *mut u16, v: Self::F);
    /// In all lanes, a number that [`F16::h_store_twice`] stored.
    unsafe fn h_splat(twice: *const u16) -> Self::B;
    /// `a * b + c`, rounded once.
    unsafe fn h_fma(a: Self::B, b: Self::B, c: Self::B) -> Self::B;
    /// The larger of `a` and the magnitude of `b`; either where one is NaN.
    unsafe fn h_max_abs(a: Self::B, b: Self::B) -> Self::B;
    /// `e^x` of 16 numbers up to 0, then of 16 more, in an order of its own. The exponent is rounded to f16 and so, in steps, is the
    /// result.
    unsafe fn h_exp(low: Self::F, high: Self::F) -> Self::B;
    /// Stores what [`F16::h_exp`] made in the order of its arguments, each number twice.
    unsafe fn h_store_exp(p: *mut u16, v: Self::B);
}
