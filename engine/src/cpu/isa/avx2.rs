//! AVX2 with FMA and F16C: two registers per vector.

use std::arch::x86_64::*;

use super::Isa;

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Applies an operation to both halves.
macro_rules! both {
    (|$i:ident| $e:expr) => {
        [
            {
                let $i = 0;
                $e
            },
            {
                let $i = 1;
                $e
            },
        ]
    };
}

/// The even lanes.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn even_lanes(x: [__m256i; 2]) -> __m256i {
    // SAFETY: register operations that the caller's CPU has.
    unsafe {
        let even = _mm256_shuffle_ps::<0b10_00_10_00>(_mm256_castsi256_ps(x[0]), _mm256_castsi256_ps(x[1]));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_castps_si256(even))
    }
}

impl Isa for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    type T = [__m256i; 2];

    #[inline(always)]
    unsafe fn f_splat(x: f32) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn f_load(p: *const f32) -> Self::F {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { both!(|i| _mm256_loadu_ps(p.add(8 * i))) }
    }
    #[inline(always)]
    unsafe fn f_store(p: *mut f32, v: Self::F) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe { both!(|i| _mm256_storeu_ps(p.add(8 * i), v[i])) };
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_add_ps(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_mul_ps(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_div_ps(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_fmadd_ps(a[i], b[i], c[i])) }
    }
    #[inline(always)]
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_max_ps(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_min_ps(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_sum(v: Self::F) -> f32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let half = _mm256_add_ps(v[0], v[1]);
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn f_max_lane(v: Self::F) -> f32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let half = _mm256_max_ps(v[0], v[1]);
            let quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn f_abs(v: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_andnot_ps(_mm256_set1_ps(-0.0), v[i])) }
    }

    #[inline(always)]
    unsafe fn f_load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { both!(|i| _mm256_cvtph_ps(_mm_loadu_si128(p.add(8 * i).cast()))) }
    }
    #[inline(always)]
    unsafe fn f_load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            both!(|i| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8 * i).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            })
        }
    }

    #[inline(always)]
    unsafe fn i_splat(x: i32) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn i_load_u8(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { both!(|i| _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()))) }
    }
    #[inline(always)]
    unsafe fn i_load_i8(p: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { both!(|i| _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()))) }
    }
    #[inline(always)]
    unsafe fn i_and(a: Self::I, mask: i32) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_and_si256(a[i], _mm256_set1_epi32(mask))) }
    }
    #[inline(always)]
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_or_si256(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_add_epi32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_sub_epi32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn i_shl(a: Self::I, n: u32) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_sll_epi32(a[i], _mm_cvtsi32_si128(n as i32))) }
    }
    #[inline(always)]
    unsafe fn i_shr(a: Self::I, n: u32) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_sra_epi32(a[i], _mm_cvtsi32_si128(n as i32))) }
    }
    #[inline(always)]
    unsafe fn i_sum(v: Self::I) -> i32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let half = _mm256_add_epi32(v[0], v[1]);
            let quarter = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            let pair = _mm_add_epi32(quarter, _mm_unpackhi_epi64(quarter, quarter));
            _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32::<1>(pair)))
        }
    }
    #[inline(always)]
    unsafe fn i_to_f(v: Self::I) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_cvtepi32_ps(v[i])) }
    }
    #[inline(always)]
    unsafe fn f_to_i(v: Self::F) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_cvtps_epi32(v[i])) }
    }
    #[inline(always)]
    unsafe fn i_as_f(v: Self::I) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_castsi256_ps(v[i])) }
    }
    #[inline(always)]
    unsafe fn i_store_i8(p: *mut i8, v: Self::I) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe {
            // Packing works within 128-bit halves; the permutation puts the 4-byte groups back in order.
            let words = _mm256_packs_epi32(v[0], v[1]);
            let bytes = _mm256_packs_epi16(words, words);
            let ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(ordered));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: nothing is read or written, whatever the address; the caller's CPU has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn b_load(p: *const u8) -> Self::B {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { both!(|i| _mm256_loadu_si256(p.add(32 * i).cast())) }
    }
    #[inline(always)]
    unsafe fn b_store(p: *mut u8, v: Self::B) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe { both!(|i| _mm256_storeu_si256(p.add(32 * i).cast(), v[i])) };
    }
    #[inline(always)]
    unsafe fn b_and(a: Self::B, mask: u8) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_and_si256(a[i], _mm256_set1_epi8(mask as i8))) }
    }
    #[inline(always)]
    unsafe fn b_or(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_or_si256(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn b_shl(a: Self::B, n: u32) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_sll_epi16(a[i], _mm_cvtsi32_si128(n as i32))) }
    }
    #[inline(always)]
    unsafe fn b_shr(a: Self::B, n: u32) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_srl_epi16(a[i], _mm_cvtsi32_si128(n as i32))) }
    }
    #[inline(always)]
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            // 127 * 127 * 2 fits 16 bits, so that maddubs cannot saturate.
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            let ones = _mm256_set1_epi16(1);
            both!(|i| _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(w[i], a), ones)))
        }
    }
    #[inline(always)]
    unsafe fn dot4_wide(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            // Even and odd bytes apart, in 16 bits: bytes up to 255 would saturate maddubs.
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            let a_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
            let a_odd = _mm256_srai_epi16::<8>(a);
            both!(|i| {
                let even = _mm256_madd_epi16(_mm256_and_si256(w[i], _mm256_set1_epi16(255)), a_even);
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w[i]), a_odd);
                _mm256_add_epi32(acc[i], _mm256_add_epi32(even, odd))
            })
        }
    }

    #[inline(always)]
    unsafe fn i_load(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { both!(|i| _mm256_loadu_si256(p.add(32 * i).cast())) }
    }
    #[inline(always)]
    unsafe fn i_load_u16(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { both!(|i| _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16 * i).cast()))) }
    }
    #[inline(always)]
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_xor_si256(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { both!(|i| _mm256_i32gather_epi32::<4>(table.cast(), index[i])) }
    }
    #[inline(always)]
    unsafe fn i_as_b(v: Self::I) -> Self::B {
        v
    }
    #[inline(always)]
    unsafe fn b_lookup(table: &[u8; 16], index: Self::B) -> Self::B {
        // SAFETY: the table is as long as what is read of it; the caller's CPU has the instructions.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            both!(|i| _mm256_shuffle_epi8(table, index[i]))
        }
    }

    #[inline(always)]
    unsafe fn b_add(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_add_epi8(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn b_at_least(v: Self::B, limit: u8) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let limit = _mm256_set1_epi8(limit as i8);
            both!(|i| _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_max_epu8(v[i], limit), v[i]), _mm256_set1_epi8(1)))
        }
    }
    #[inline(always)]
    unsafe fn b_ternary(v: Self::B) -> Self::T {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { both!(|i| _mm256_sub_epi8(v[i], _mm256_set1_epi8(1))) }
    }
    #[inline(always)]
    unsafe fn b_splat8(p: *const i8) -> Self::B {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { [_mm256_set1_epi64x(p.cast::<i64>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn i_add_ternary(acc: Self::I, w: Self::T, a: Self::B) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            both!(|i| {
                let bytes = _mm256_add_epi8(_mm256_sign_epi8(a[i], w[i]), _mm256_set1_epi8(127));
                _mm256_add_epi32(acc[i], _mm256_sad_epu8(bytes, _mm256_setzero_si256()))
            })
        }
    }
    #[inline(always)]
    unsafe fn i_join_even(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { [even_lanes(a), even_lanes(b)] }
    }
}
