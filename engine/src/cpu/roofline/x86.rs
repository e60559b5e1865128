//! The loops for AVX2 and AVX-512. Values stay in registers.

use std::arch::x86_64::*;

use super::Loop;

/// Sums that do not wait for each other: more than the latency of these instructions (4 or 5 cycles) times those begun
/// per cycle (2). With the operands they fit the 16 registers of AVX2.
const CHAINS: usize = 12;

/// `vpdpbusd`: 64 products.
pub(super) const INT8_AVX512: Loop = Loop { run: int8_avx512, ops: 2 * 64 * CHAINS as u64 };
/// `vpmaddubsw`, `vpmaddwd` and an addition: 32 products.
pub(super) const INT8_AVX2: Loop = Loop { run: int8_avx2, ops: 2 * 32 * CHAINS as u64 };
/// `vfmadd` of 16 lanes.
pub(super) const F32_AVX512: Loop = Loop { run: f32_avx512, ops: 2 * 16 * CHAINS as u64 };
/// `vfmadd` of 8 lanes.
pub(super) const F32_AVX2: Loop = Loop { run: f32_avx2, ops: 2 * 8 * CHAINS as u64 };

#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_avx512(iterations: u64) {
    let (w, a) = (_mm512_set1_epi8(3), _mm512_set1_epi8(5));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, w, a);
            opaque!(zmm_reg, *sum);
        }
    }
}

#[target_feature(enable = "avx2")]
fn int8_avx2(iterations: u64) {
    let (mut w, a, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi8(5), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_si256(); CHAINS];
    for _ in 0..iterations {
        for sum in &mut sums {
            // The same product for each sum, were it not for this.
            opaque!(ymm_reg, w);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones));
            opaque!(ymm_reg, *sum);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn f32_avx512(iterations: u64) {
    // The sums approach 2: no overflow, and no denormal numbers, which some CPUs take longer for.
    let (half, one) = (_mm512_set1_ps(0.5), _mm512_set1_ps(1.0));
    let mut sums = [one; CHAINS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, half, one);
            opaque!(zmm_reg, *sum);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn f32_avx2(iterations: u64) {
    let (half, one) = (_mm256_set1_ps(0.5), _mm256_set1_ps(1.0));
    let mut sums = [one; CHAINS];
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, half, one);
            opaque!(ymm_reg, *sum);
        }
    }
}
