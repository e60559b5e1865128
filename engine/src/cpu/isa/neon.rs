//! NEON: four registers per vector. What differs between 64-bit ARM CPUs is how they multiply bytes ([`Dot`]).

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::Isa;

/// NEON, which every 64-bit ARM CPU has, and the dot products of `D`.
#[derive(Clone, Copy)]
pub(crate) struct Neon<D>(PhantomData<D>);

/// Dot products of bytes.
///
/// # Safety
/// The CPU has the instructions.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Dot: Copy + Send + Sync + 'static {
    /// Adds to each of 4 lanes the dot product of its 4 bytes of `w` with those of `a`, which are not -128.
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t;
}

/// Products in 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Widening;

impl Dot for Widening {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: register operations of every 64-bit ARM CPU.
        unsafe {
            // 128 * 127 * 2 fits 16 bits, so that no pair overflows.
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
            let high = vmull_high_s8(w, a);
            vpadalq_s16(acc, vpaddq_s16(low, high))
        }
    }
}

/// `sdot`, of ARMv8.4 and many CPUs of ARMv8.2.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod;

impl Dot for Dotprod {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the CPU has the instruction, as the caller promises.
        unsafe { sdot(acc, w, a) }
    }
}

/// What `vdotq_s32` is, which Rust 1.95 does not have yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn sdot(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: an operation on registers, of an enabled feature.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Applies an operation to all four registers.
macro_rules! four {
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
            {
                let $i = 2;
                $e
            },
            {
                let $i = 3;
                $e
            },
        ]
    };
}

/// The same 4 bytes in every lane.
#[inline(always)]
unsafe fn splat4(p: *const i8) -> int8x16_t {
    // SAFETY: valid for 4 bytes, as the caller promises.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(p.cast::<i32>().read_unaligned())) }
}

/// 16-bit numbers to 32 bits: the halves of both registers, in order.
#[inline(always)]
unsafe fn widen(v: [uint16x8_t; 2]) -> [int32x4_t; 4] {
    // SAFETY: register operations that the caller's CPU has.
    unsafe {
        let v =
            [vmovl_u16(vget_low_u16(v[0])), vmovl_high_u16(v[0]), vmovl_u16(vget_low_u16(v[1])), vmovl_high_u16(v[1])];
        four!(|i| vreinterpretq_s32_u32(v[i]))
    }
}

impl<D: Dot> Isa for Neon<D> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];
    /// Which are -1, and which are not 0.
    type T = [[uint8x16_t; 2]; 4];

    #[inline(always)]
    unsafe fn f_splat(x: f32) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn f_load(p: *const f32) -> Self::F {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { four!(|i| vld1q_f32(p.add(4 * i))) }
    }
    #[inline(always)]
    unsafe fn f_store(p: *mut f32, v: Self::F) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe { four!(|i| vst1q_f32(p.add(4 * i), v[i])) };
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vaddq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vmulq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vdivq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F {
        // The maximum instructions treat NaN in other ways.
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn f_sum(v: Self::F) -> f32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            let quarter = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            vpadds_f32(vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter)))
        }
    }
    #[inline(always)]
    unsafe fn f_max_lane(v: Self::F) -> f32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(v[0], v[1]), vmaxnmq_f32(v[2], v[3]))) }
    }
    #[inline(always)]
    unsafe fn f_abs(v: Self::F) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vabsq_f32(v[i])) }
    }

    #[inline(always)]
    unsafe fn f_load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { four!(|i| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(4 * i))))) }
    }
    #[inline(always)]
    unsafe fn f_load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { four!(|i| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(p.add(4 * i)))))) }
    }

    #[inline(always)]
    unsafe fn i_splat(x: i32) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn i_load_u8(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            let bytes = vld1q_u8(p);
            widen([vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)])
        }
    }
    #[inline(always)]
    unsafe fn i_load_i8(p: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
        }
    }
    #[inline(always)]
    unsafe fn i_and(a: Self::I, mask: i32) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vandq_s32(a[i], vdupq_n_s32(mask))) }
    }
    #[inline(always)]
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vorrq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vaddq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vsubq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn i_shl(a: Self::I, n: u32) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vshlq_s32(a[i], vdupq_n_s32(n as i32))) }
    }
    #[inline(always)]
    unsafe fn i_shr(a: Self::I, n: u32) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vshlq_s32(a[i], vdupq_n_s32(-(n as i32)))) }
    }
    #[inline(always)]
    unsafe fn i_sum(v: Self::I) -> i32 {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3]))) }
    }
    #[inline(always)]
    unsafe fn i_to_f(v: Self::I) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vcvtq_f32_s32(v[i])) }
    }
    #[inline(always)]
    unsafe fn f_to_i(v: Self::F) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vcvtnq_s32_f32(v[i])) }
    }
    #[inline(always)]
    unsafe fn i_as_f(v: Self::I) -> Self::F {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vreinterpretq_f32_s32(v[i])) }
    }
    #[inline(always)]
    unsafe fn i_store_i8(p: *mut i8, v: Self::I) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe {
            // The even ones of smaller numbers are the low parts.
            let first = vuzp1q_s16(vreinterpretq_s16_s32(v[0]), vreinterpretq_s16_s32(v[1]));
            let second = vuzp1q_s16(vreinterpretq_s16_s32(v[2]), vreinterpretq_s16_s32(v[3]));
            vst1q_s8(p, vuzp1q_s8(vreinterpretq_s8_s16(first), vreinterpretq_s8_s16(second)));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // The intrinsic is not stable.
        // SAFETY: every 64-bit ARM CPU has the instruction, which touches nothing whatever the address.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn b_load(p: *const u8) -> Self::B {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { four!(|i| vld1q_u8(p.add(16 * i))) }
    }
    #[inline(always)]
    unsafe fn b_store(p: *mut u8, v: Self::B) {
        // SAFETY: the caller points to room for what is written; its CPU has the instructions.
        unsafe { four!(|i| vst1q_u8(p.add(16 * i), v[i])) };
    }
    #[inline(always)]
    unsafe fn b_and(a: Self::B, mask: u8) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vandq_u8(a[i], vdupq_n_u8(mask))) }
    }
    #[inline(always)]
    unsafe fn b_or(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vorrq_u8(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn b_shl(a: Self::B, n: u32) -> Self::B {
        // Bytes can be shifted, so that nothing crosses between them.
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vshlq_u8(a[i], vdupq_n_s8(n as i8))) }
    }
    #[inline(always)]
    unsafe fn b_shr(a: Self::B, n: u32) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vshlq_u8(a[i], vdupq_n_s8(-(n as i8)))) }
    }
    #[inline(always)]
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            let a = splat4(a);
            four!(|i| D::dot(acc[i], vreinterpretq_s8_u8(w[i]), a))
        }
    }
    #[inline(always)]
    unsafe fn dot4_wide(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            // Signed bytes are w - 128: the sum of a, 128 times, is what that lacks.
            let (a, half) = (splat4(a), vdupq_n_s8(64));
            let lacking = D::dot(D::dot(vdupq_n_s32(0), half, a), half, a);
            four!(|i| {
                let w = vreinterpretq_s8_u8(veorq_u8(w[i], vdupq_n_u8(128)));
                D::dot(vaddq_s32(acc[i], lacking), w, a)
            })
        }
    }

    #[inline(always)]
    unsafe fn i_load(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { four!(|i| vreinterpretq_s32_u8(vld1q_u8(p.add(16 * i)))) }
    }
    #[inline(always)]
    unsafe fn i_load_u16(p: *const u8) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { widen([vreinterpretq_u16_u8(vld1q_u8(p)), vreinterpretq_u16_u8(vld1q_u8(p.add(16)))]) }
    }
    #[inline(always)]
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| veorq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe {
            four!(|i| {
                let v = vdupq_n_u32(*table.add(vgetq_lane_s32::<0>(index[i]) as usize));
                let v = vld1q_lane_u32::<1>(table.add(vgetq_lane_s32::<1>(index[i]) as usize), v);
                let v = vld1q_lane_u32::<2>(table.add(vgetq_lane_s32::<2>(index[i]) as usize), v);
                let v = vld1q_lane_u32::<3>(table.add(vgetq_lane_s32::<3>(index[i]) as usize), v);
                vreinterpretq_s32_u32(v)
            })
        }
    }
    #[inline(always)]
    unsafe fn i_as_b(v: Self::I) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vreinterpretq_u8_s32(v[i])) }
    }
    #[inline(always)]
    unsafe fn b_lookup(table: &[u8; 16], index: Self::B) -> Self::B {
        // SAFETY: the table is as long as what is read of it; the caller's CPU has the instructions.
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            four!(|i| vqtbl1q_u8(table, index[i]))
        }
    }

    #[inline(always)]
    unsafe fn b_add(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vaddq_u8(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn b_at_least(v: Self::B, limit: u8) -> Self::B {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| vandq_u8(vcgeq_u8(v[i], vdupq_n_u8(limit)), vdupq_n_u8(1))) }
    }
    #[inline(always)]
    unsafe fn b_ternary(v: Self::B) -> Self::T {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { four!(|i| [vceqzq_u8(v[i]), vmvnq_u8(vceqq_u8(v[i], vdupq_n_u8(1)))]) }
    }
    #[inline(always)]
    unsafe fn b_splat8(p: *const i8) -> Self::B {
        // SAFETY: the caller points to what is read; its CPU has the instructions.
        unsafe { [vreinterpretq_u8_u64(vdupq_n_u64(p.cast::<u64>().read_unaligned())); 4] }
    }
    #[inline(always)]
    unsafe fn i_add_ternary(acc: Self::I, w: Self::T, a: Self::B) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe {
            four!(|i| {
                let [minus, some] = w[i];
                let signed = vsubq_u8(veorq_u8(a[i], minus), minus);
                let bytes = vaddq_u8(vandq_u8(signed, some), vdupq_n_u8(127));
                let sums = vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(bytes)));
                vaddq_s32(acc[i], vreinterpretq_s32_u64(sums))
            })
        }
    }
    #[inline(always)]
    unsafe fn i_join_even(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: register operations that the caller's CPU has.
        unsafe { [vuzp1q_s32(a[0], a[1]), vuzp1q_s32(a[2], a[3]), vuzp1q_s32(b[0], b[1]), vuzp1q_s32(b[2], b[3])] }
    }
}
