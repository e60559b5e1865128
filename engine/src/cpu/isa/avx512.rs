//! AVX-512 with VNNI: one register per vector.

use std::arch::x86_64::*;

use super::{Bf16, F16, Isa};

/// AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

impl Isa for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    /// Which are not 0, and what their biased activations are taken from.
    type T = (__mmask64, __m512i);

    #[inline(always)]
    unsafe fn f_splat(x: f32) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn f_load(p: *const f32) -> __m512 {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn f_store(p: *mut f32, v: __m512) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn f_add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn f_max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_sum(v: __m512) -> f32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            // The order of the other instruction sets: halves, quarters, pairs.
            let half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn f_max_lane(v: __m512) -> f32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn f_abs(v: __m512) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_abs_ps(v) }
    }

    #[inline(always)]
    unsafe fn f_load_f16(p: *const u16) -> __m512 {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn f_load_bf16(p: *const u16) -> __m512 {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }

    #[inline(always)]
    unsafe fn i_splat(x: i32) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn i_load_u8(p: *const u8) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn i_load_i8(p: *const i8) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn i_and(a: __m512i, mask: i32) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_and_si512(a, _mm512_set1_epi32(mask)) }
    }
    #[inline(always)]
    unsafe fn i_or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn i_add(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_sub(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_shl(a: __m512i, n: u32) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    unsafe fn i_shr(a: __m512i, n: u32) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    unsafe fn i_sum(v: __m512i) -> i32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_reduce_add_epi32(v) }
    }
    #[inline(always)]
    unsafe fn i_to_f(v: __m512i) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn f_to_i(v: __m512) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_cvtps_epi32(v) }
    }
    #[inline(always)]
    unsafe fn i_as_f(v: __m512i) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_castsi512_ps(v) }
    }
    #[inline(always)]
    unsafe fn i_store_i8(p: *mut i8, v: __m512i) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v)) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: nothing is read or written, whatever the address; the caller's CPU has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn b_load(p: *const u8) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn b_store(p: *mut u8, v: __m512i) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn b_and(a: __m512i, mask: u8) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_and_si512(a, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn b_or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn b_shl(a: __m512i, n: u32) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_sll_epi16(a, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    unsafe fn b_shr(a: __m512i, n: u32) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_srl_epi16(a, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    unsafe fn dot4(acc: __m512i, w: __m512i, a: *const i8) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn dot4_wide(acc: __m512i, w: __m512i, a: *const i8) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { Self::dot4(acc, w, a) }
    }

    #[inline(always)]
    unsafe fn i_load(p: *const u8) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn i_load_u16(p: *const u8) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn i_xor(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn i_gather(table: *const u32, index: __m512i) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_i32gather_epi32::<4>(index, table.cast()) }
    }
    #[inline(always)]
    unsafe fn i_as_b(v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    unsafe fn b_lookup(table: &[u8; 16], index: __m512i) -> __m512i {
        // SAFETY: the table is as long as what is read of it; the caller's CPU has the instructions.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, index)
        }
    }

    #[inline(always)]
    unsafe fn b_add(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_add_epi8(a, b) }
    }
    #[inline(always)]
    unsafe fn b_at_least(v: __m512i, limit: u8) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_maskz_set1_epi8(_mm512_cmpge_epu8_mask(v, _mm512_set1_epi8(limit as i8)), 1) }
    }
    #[inline(always)]
    unsafe fn b_ternary(v: __m512i) -> Self::T {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let from = _mm512_set1_epi64(0x7f_fe); // 254, 127 and 0
            (_mm512_cmpneq_epi8_mask(v, _mm512_set1_epi8(1)), _mm512_shuffle_epi8(from, v))
        }
    }
    #[inline(always)]
    unsafe fn b_splat8(p: *const i8) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_set1_epi64(p.cast::<i64>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn i_add_ternary(acc: __m512i, (some, from): Self::T, a: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            // |a + 127 - 254|, |0 - 127| and |a + 127 - 0|.
            let bytes = _mm512_maskz_add_epi8(some, a, _mm512_set1_epi8(127));
            _mm512_add_epi32(acc, _mm512_sad_epu8(bytes, from))
        }
    }
    #[inline(always)]
    unsafe fn i_join_even(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_permutex2var_epi32(a, even, b)
        }
    }
}

/// 2^f for f in [0, 1) as a polynomial, highest power first: its relative errors are spread evenly, at most 7.5e-5.
const EXP2: [f32; 4] = [0.078_024_52, 0.226_067_16, 0.695_833_56, 0.999_925_2];
/// The same in f16's bits. With its steps rounded to f16 too, errors are at most 6e-4, their root mean square 2.3e-4.
const EXP2_IN_F16: [u16; 4] = [0x2cfe, 0x333c, 0x3991, 0x3c00];

/// 32 times this number.
#[inline(always)]
unsafe fn h_constant(bits: u16) -> __m512h {
    // SAFETY: register operations; the caller's CPU has AVX-512.
    unsafe { _mm512_castsi512_ph(_mm512_set1_epi16(bits as i16)) }
}

/// `e^x` for x up to 0.
#[inline(always)]
unsafe fn exp(x: __m512) -> __m512 {
    // SAFETY: register operations; the caller's CPU has AVX-512.
    unsafe {
        let t = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
        // What is left above the next lower integer, which is the exponent; 0 for minus infinity, whose exponent makes 0.
        let f = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(t);
        let mut p = _mm512_set1_ps(EXP2[0]);
        for c in &EXP2[1..] {
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(*c));
        }
        _mm512_scalef_ps(p, t)
    }
}

impl Bf16 for Avx512 {
    #[inline(always)]
    unsafe fn bf_pack(low: __m512, high: __m512) -> __m512i {
        // SAFETY: register operations that the caller's CPU has, and a constant of the length that is read.
        unsafe {
            // The conversion puts one vector after the other: take from each by turns.
            const ORDER: [u16; 32] = {
                let mut order = [0; 32];
                let mut i = 0;
                while i < 32 {
                    order[i] = (i / 2 + i % 2 * 16) as u16;
                    i += 1;
                }
                order
            };
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
            _mm512_permutexvar_epi16(order, both)
        }
    }
    #[inline(always)]
    unsafe fn bf_store(p: *mut u16, v: __m512) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe { _mm256_storeu_si256(p.cast(), std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))) }
    }
    #[inline(always)]
    unsafe fn bf_exp(x: __m512) -> __m512 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { exp(x) }
    }
    #[inline(always)]
    unsafe fn bf_dot(acc: __m512, v: __m512i, pair: *const u16) -> __m512 {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            let pair = _mm512_set1_epi32(pair.cast::<i32>().read_unaligned());
            _mm512_dpbf16_ps(
                acc,
                std::mem::transmute::<__m512i, __m512bh>(v),
                std::mem::transmute::<__m512i, __m512bh>(pair),
            )
        }
    }
}

/// Rounding of a conversion: to nearest, ties to even.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl F16 for Avx512 {
    #[inline(always)]
    unsafe fn h_zero() -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn h_pack(low: __m512, high: __m512) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let (low, high) = (_mm512_cvtps_ph::<NEAREST>(low), _mm512_cvtps_ph::<NEAREST>(high));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
    #[inline(always)]
    unsafe fn h_join(low: *const u16, high: *const u16) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.cast()));
            _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.cast()))
        }
    }
    #[inline(always)]
    unsafe fn h_widen(v: __m512i) -> (__m512, __m512) {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { (_mm512_cvtph_ps(_mm512_castsi512_si256(v)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(v))) }
    }
    #[inline(always)]
    unsafe fn h_store_twice(p: *mut u16, v: __m512) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe {
            let once = _mm512_cvtps_ph::<NEAREST>(v);
            let low = _mm512_cvtepu16_epi32(once);
            _mm512_storeu_si512(p.cast(), _mm512_or_si512(low, _mm512_slli_epi32::<16>(low)));
        }
    }
    #[inline(always)]
    unsafe fn h_splat(twice: *const u16) -> __m512i {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { _mm512_set1_epi32(twice.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn h_fma(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let sum = _mm512_fmadd_ph(_mm512_castsi512_ph(a), _mm512_castsi512_ph(b), _mm512_castsi512_ph(c));
            _mm512_castph_si512(sum)
        }
    }
    #[inline(always)]
    unsafe fn h_max_abs(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { _mm512_castph_si512(_mm512_max_ph(_mm512_castsi512_ph(a), _mm512_abs_ph(_mm512_castsi512_ph(b)))) }
    }
    #[inline(always)]
    unsafe fn h_exp(low: __m512, high: __m512) -> __m512i {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let log2_e = _mm512_set1_ps(std::f32::consts::LOG2_E);
            let low = _mm512_castsi256_si512(_mm512_cvtps_ph::<NEAREST>(_mm512_mul_ps(low, log2_e)));
            let high = _mm512_castsi256_si512(_mm512_cvtps_ph::<NEAREST>(_mm512_mul_ps(high, log2_e)));
            // Fours of both by turns: doubling the numbers of each 128 bits' halves brings them into order.
            let turns = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
            let t = _mm512_castsi512_ph(_mm512_permutex2var_epi64(low, turns, high));
            // As in `exp`.
            let f = _mm512_reduce_ph::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(t);
            let mut p = h_constant(EXP2_IN_F16[0]);
            for c in &EXP2_IN_F16[1..] {
                p = _mm512_fmadd_ph(p, f, h_constant(*c));
            }
            _mm512_castph_si512(_mm512_scalef_ph(p, t))
        }
    }
    #[inline(always)]
    unsafe fn h_store_exp(p: *mut u16, v: __m512i) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe {
            _mm512_storeu_si512(p.cast(), _mm512_unpacklo_epi16(v, v));
            _mm512_storeu_si512(p.add(32).cast(), _mm512_unpackhi_epi16(v, v));
        }
    }
}
