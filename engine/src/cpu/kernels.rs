//! The kernels compiled for one instruction set, as a table of functions chosen once per model load.

use std::ops::Range;

use tandem_loader::GgmlType;
use tandem_models::Activation;

use super::attention::{AttentionWork, HeadCache, QueryRow};
use super::isa::LANES;
use super::matmul::{ActGroup, Acts};
use super::outer::OuterFn;
use super::pack;
use crate::model::KvType;

/// Multiplies one panel with some columns; see [`super::matmul::panel`].
pub(crate) type PanelFn = unsafe fn(panel: *const u8, acts: &Acts, cols: Range<usize>, work: *mut u8, out: *mut f32);
/// Interleaves 16 rows' blocks.
pub(crate) type PackFn = fn(rows: &[&[u8]; LANES], out: &mut [u8]);

/// Adds one chunk's share to some queries, in the order of their positions; see [`super::attention::chunk`] and
/// [`super::attention::chunk_mixed`].
pub(crate) type AttendFn = unsafe fn(&HeadCache, &mut [QueryRow], f32, usize, &mut AttentionWork);

/// How one weight type is packed and multiplied.
#[derive(Clone, Copy)]
pub(crate) struct MatrixKernel {
    /// Weights along k packed at a time (whole rows for plain numbers).
    pub(crate) block: usize,
    /// Whether activations are quantized to int8.
    pub(crate) quantized: bool,
    pub(crate) pack: PackFn,
    pub(crate) panel: PanelFn,
}

/// All kernels of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Name for people.
    pub(crate) name: &'static str,
    /// The kernel of a weight type, where there is one.
    pub(crate) matrix: fn(GgmlType) -> Option<MatrixKernel>,
    /// For matrices of TQ2_0 with weights that are not ternary.
    pub(crate) four_levels: MatrixKernel,
    pub(crate) quantize: unsafe fn(*const f32, f32, &mut [ActGroup]),
    pub(crate) absmax: unsafe fn(*const f32, usize) -> f32,
    pub(crate) quantize_twice: unsafe fn(*const f32, &mut [ActGroup], &mut [ActGroup]),
    pub(crate) dot_f32: unsafe fn(*const f32, *const f32, usize) -> f32,
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32], bool),
    pub(crate) head_norm: unsafe fn(&mut [f32], &[f32], f32),
    pub(crate) glu: unsafe fn(Activation, &mut [f32], &[f32]),
    pub(crate) write_tiles: unsafe fn(*const f32, usize, *mut f32, usize, bool),
    /// Attention over a cache of a type.
    pub(crate) attend: fn(KvType) -> AttendFn,
    pub(crate) merge: unsafe fn(&mut QueryRow, (f32, f32), *const f32, usize),
    pub(crate) outer: OuterFn,
}

impl Kernels {
    /// The kernel for a matrix: its type's, or one that can do more where that cannot say all its weights.
    pub(crate) fn of(&self, ty: GgmlType, file: &[u8]) -> Option<MatrixKernel> {
        if ty == GgmlType::TQ2_0 && !pack::is_ternary(file) { Some(self.four_levels) } else { (self.matrix)(ty) }
    }
}

/// An instruction set that the CPU backend can be limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsaLevel {
    /// Plain Rust.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// The same and AVX-512 BF16.
    Avx512Bf16,
    /// [`Avx512`](IsaLevel::Avx512) and AVX-512 FP16.
    Avx512Fp16,
    /// NEON, which every 64-bit ARM CPU has.
    Neon,
    /// The same and the dot product instructions.
    NeonDotprod,
}

impl IsaLevel {
    /// All levels; of one architecture, lowest first.
    pub const ALL: [IsaLevel; 7] = [
        IsaLevel::Scalar,
        IsaLevel::Avx2,
        IsaLevel::Avx512,
        IsaLevel::Avx512Bf16,
        IsaLevel::Avx512Fp16,
        IsaLevel::Neon,
        IsaLevel::NeonDotprod,
    ];

    /// Name for people and flags.
    pub fn name(self) -> &'static str {
        match self {
            IsaLevel::Scalar => "scalar",
            IsaLevel::Avx2 => "avx2",
            IsaLevel::Avx512 => "avx512",
            IsaLevel::Avx512Bf16 => "avx512bf16",
            IsaLevel::Avx512Fp16 => "avx512fp16",
            IsaLevel::Neon => "neon",
            IsaLevel::NeonDotprod => "neon-dotprod",
        }
    }

    /// The next lower level.
    fn below(self) -> Option<IsaLevel> {
        match self {
            IsaLevel::Scalar => None,
            IsaLevel::Avx2 | IsaLevel::Neon => Some(IsaLevel::Scalar),
            IsaLevel::Avx512 => Some(IsaLevel::Avx2),
            IsaLevel::Avx512Bf16 => Some(IsaLevel::Avx512),
            IsaLevel::Avx512Fp16 => Some(IsaLevel::Avx512Bf16),
            IsaLevel::NeonDotprod => Some(IsaLevel::Neon),
        }
    }

    /// Whether CPUs of the architecture that this was compiled for can have it.
    pub fn is_of_this_architecture(self) -> bool {
        match self {
            IsaLevel::Scalar => true,
            IsaLevel::Avx2 | IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => {
                cfg!(target_arch = "x86_64")
            }
            IsaLevel::Neon | IsaLevel::NeonDotprod => cfg!(target_arch = "aarch64"),
        }
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            IsaLevel::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
                    && IsaLevel::Avx2.is_available()
            }
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512Bf16 => is_x86_feature_detected!("avx512bf16") && IsaLevel::Avx512.is_available(),
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512Fp16 => is_x86_feature_detected!("avx512fp16") && IsaLevel::Avx512.is_available(),
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            IsaLevel::NeonDotprod => {
                std::arch::is_aarch64_feature_detected!("dotprod") && IsaLevel::Neon.is_available()
            }
            #[cfg(not(target_arch = "x86_64"))]
            IsaLevel::Avx2 | IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => false,
            #[cfg(not(target_arch = "aarch64"))]
            IsaLevel::Neon | IsaLevel::NeonDotprod => false,
        }
    }

    /// Whether it is faster than the level below it where both are available. bf16 dot products were on an AMD CPU and were
    /// not on an Intel one (docs/performance.md). Which CPU it is decides, and not a measurement, so that results stay the
    /// same from run to run.
    fn pays(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512Bf16 => {
                let vendor = std::arch::x86_64::__cpuid(0);
                [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() != b"GenuineIntel"
            }
            #[cfg(not(target_arch = "x86_64"))]
            IsaLevel::Avx512Bf16 => true,
            IsaLevel::Scalar | IsaLevel::Avx2 | IsaLevel::Avx512 | IsaLevel::Avx512Fp16 => true,
            IsaLevel::Neon | IsaLevel::NeonDotprod => true,
        }
    }

    /// The best level of this CPU, at most `cap`; without a cap one that [pays](IsaLevel::pays). Plain Rust where that is a level of another architecture.
    pub fn best(cap: Option<IsaLevel>) -> IsaLevel {
        let best = match cap {
            None => IsaLevel::ALL.into_iter().rfind(|level| level.is_available() && level.pays()),
            Some(cap) => std::iter::successors(Some(cap), |level| level.below()).find(|level| level.is_available()),
        };
        best.unwrap_or(IsaLevel::Scalar)
    }

    /// The level's kernels. The level must be available.
    pub(crate) fn kernels(self) -> Kernels {
        assert!(self.is_available(), "this CPU has no {}", self.name());
        match self {
            IsaLevel::Scalar => scalar::kernels(),
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx2 => avx2::kernels(),
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512 => avx512::kernels(),
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512Bf16 => Kernels { name: self.name(), attend: avx512_bf16::attend_for, ..avx512::kernels() },
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512Fp16 => Kernels { name: self.name(), attend: avx512_fp16::attend_for, ..avx512::kernels() },
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon => neon::kernels(),
            #[cfg(target_arch = "aarch64")]
            IsaLevel::NeonDotprod => neon_dotprod::kernels(),
            #[cfg(not(target_arch = "x86_64"))]
            IsaLevel::Avx2 | IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => {
                unreachable!("not available on this architecture")
            }
            #[cfg(not(target_arch = "aarch64"))]
            IsaLevel::Neon | IsaLevel::NeonDotprod => unreachable!("not available on this architecture"),
        }
    }
}

/// Compiles the generic kernels for one instruction set: thin functions that enable its features around generic bodies.
macro_rules! kernels_for {
    ($module:ident, $isa:ty, $level:expr, tile $tile:literal, sums $sums:literal, outer $outer:literal, $(#[$feature:meta])?) => {
        mod $module {
            use super::super::attention::{self, AttentionWork, HeadCache, QueryRow};
            use super::super::kv_format::{KvF16, KvF32, KvFormat, KvQ4, KvQ8};
            use super::super::isa;
            use super::super::matmul::{self, ActGroup, Acts};
            use super::super::ops;
            use super::super::outer::{self, Rows};
            use super::super::pack::{self, Packed, PackedFloat};
            use super::{Activation, AttendFn, GgmlType, Kernels, KvType, MatrixKernel, Range};

            // SAFETY (all functions): the callers' promises are those of the generic bodies; `IsaLevel::kernels` has
            // checked that the CPU has the features.
            $(#[$feature])?
            unsafe fn panel<P: Packed>(p: *const u8, acts: &Acts, cols: Range<usize>, work: *mut u8, out: *mut f32) {
                // SAFETY: see above.
                unsafe { matmul::panel::<$isa, P, $tile>(p, acts, cols, work, out) }
            }
            $(#[$feature])?
            unsafe fn sums<P: Packed>(p: *const u8, acts: &Acts, cols: Range<usize>, work: *mut u8, out: *mut f32) {
                // SAFETY: see above.
                unsafe { matmul::panel::<$isa, P, $sums>(p, acts, cols, work, out) }
            }
            $(#[$feature])?
            unsafe fn float<P: PackedFloat>(p: *const u8, acts: &Acts, cols: Range<usize>, _: *mut u8, out: *mut f32) {
                // SAFETY: see above.
                unsafe { matmul::float_panel::<$isa, P, $tile>(p, acts, cols, out) }
            }
            $(#[$feature])?
            unsafe fn quantize(x: *const f32, least: f32, out: &mut [ActGroup]) {
                // SAFETY: see above.
                unsafe { matmul::quantize::<$isa>(x, least, out) }
            }
            $(#[$feature])?
            unsafe fn absmax(x: *const f32, n: usize) -> f32 {
                // SAFETY: see above.
                unsafe { matmul::absmax::<$isa>(x, n) }
            }
            $(#[$feature])?
            unsafe fn quantize_twice(x: *const f32, main: &mut [ActGroup], rest: &mut [ActGroup]) {
                // SAFETY: see above.
                unsafe { matmul::quantize_twice::<$isa>(x, main, rest) }
            }
            $(#[$feature])?
            unsafe fn dot_f32(a: *const f32, b: *const f32, n: usize) -> f32 {
                // SAFETY: see above.
                unsafe { matmul::dot_f32::<$isa>(a, b, n) }
            }
            $(#[$feature])?
            unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], add: bool) {
                // SAFETY: see above.
                unsafe { ops::rms_norm::<$isa>(x, weight, eps, out, add) }
            }
            $(#[$feature])?
            unsafe fn head_norm(head: &mut [f32], weight: &[f32], eps: f32) {
                // SAFETY: see above.
                unsafe { ops::head_norm::<$isa>(head, weight, eps) }
            }
            $(#[$feature])?
            unsafe fn glu(act: Activation, gate: &mut [f32], up: &[f32]) {
                // SAFETY: see above.
                unsafe { ops::glu::<$isa>(act, gate, up) }
            }
            $(#[$feature])?
            unsafe fn write_tiles(tiles: *const f32, n: usize, out: *mut f32, stride: usize, add: bool) {
                // SAFETY: see above.
                unsafe { ops::write_tiles::<$isa>(tiles, n, out, stride, add) }
            }
            $(#[$feature])?
            unsafe fn attend<K: KvFormat>(
                cache: &HeadCache,
                rows: &mut [QueryRow],
                scale: f32,
                chunk: usize,
                work: &mut AttentionWork,
            ) {
                // SAFETY: see above.
                unsafe { attention::chunk::<$isa, K, attention::InF32>(cache, rows, scale, chunk, work) }
            }

            $(#[$feature])?
            unsafe fn merge(row: &mut QueryRow, share: (f32, f32), partial: *const f32, stride: usize) {
                // SAFETY: see above.
                unsafe { attention::merge::<$isa>(row, share, partial, stride) }
            }

            $(#[$feature])?
            unsafe fn outer(n: usize, a: Rows, b: Rows, c: (*mut f32, usize), m: usize) {
                // SAFETY: see above.
                unsafe { outer::outer::<$isa, $outer>(n, a, b, c, m) }
            }

            pub(super) fn attend_for(kv_type: KvType) -> AttendFn {
                match kv_type {
                    KvType::F32 => attend::<KvF32>,
                    KvType::F16 => attend::<KvF16>,
                    KvType::Q8_0 => attend::<KvQ8>,
                    KvType::Q4_0 => attend::<KvQ4>,
                }
            }

            fn by_dot_products<P: Packed>() -> MatrixKernel {
                MatrixKernel { block: P::BLOCK, quantized: true, pack: P::pack, panel: panel::<P> }
            }

            fn quantized<P: Packed>() -> Option<MatrixKernel> {
                Some(by_dot_products::<P>())
            }

            fn ternary<P: Packed>() -> Option<MatrixKernel> {
                Some(MatrixKernel { block: P::BLOCK, quantized: true, pack: P::pack, panel: sums::<P> })
            }

            fn plain<P: PackedFloat>() -> Option<MatrixKernel> {
                Some(MatrixKernel { block: 1, quantized: false, pack: P::pack, panel: float::<P> })
            }

            fn matrix(ty: GgmlType) -> Option<MatrixKernel> {
                use GgmlType::*;
                match ty {
                    F32 => plain::<pack::F32>(),
                    F16 => plain::<pack::F16>(),
                    BF16 => plain::<pack::BF16>(),
                    Q4_0 => quantized::<pack::Q4_0>(),
                    Q4_1 => quantized::<pack::Q4_1>(),
                    Q5_0 => quantized::<pack::Q5_0>(),
                    Q5_1 => quantized::<pack::Q5_1>(),
                    Q8_0 => quantized::<pack::Q8_0>(),
                    Q2_K => quantized::<pack::Q2K>(),
                    Q3_K => quantized::<pack::Q3K>(),
                    Q4_K => quantized::<pack::Q4K>(),
                    Q5_K => quantized::<pack::Q5K>(),
                    Q6_K => quantized::<pack::Q6K>(),
                    IQ1_S => quantized::<pack::Iq1S>(),
                    IQ1_M => quantized::<pack::Iq1M>(),
                    IQ2_XXS => quantized::<pack::Iq2Xxs>(),
                    IQ2_XS => quantized::<pack::Iq2Xs>(),
                    IQ2_S => quantized::<pack::Iq2S>(),
                    IQ3_XXS => quantized::<pack::Iq3Xxs>(),
                    IQ3_S => quantized::<pack::Iq3S>(),
                    IQ4_NL => quantized::<pack::Iq4Nl>(),
                    IQ4_XS => quantized::<pack::Iq4Xs>(),
                    MXFP4 => quantized::<pack::Mxfp4>(),
                    NVFP4 => quantized::<pack::Nvfp4>(),
                    Q1_0 => quantized::<pack::Q1_0>(),
                    Q2_0 => quantized::<pack::Q2_0>(),
                    TQ1_0 => ternary::<pack::Tq1_0>(),
                    TQ2_0 => ternary::<pack::Tq2Levels<3>>(),
                    Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => None,
                }
            }

            pub(super) fn kernels() -> Kernels {
                Kernels {
                    name: $level.name(),
                    matrix,
                    four_levels: by_dot_products::<pack::Tq2Levels<4>>(),
                    quantize,
                    absmax,
                    quantize_twice,
                    dot_f32,
                    rms_norm,
                    head_norm,
                    glu,
                    write_tiles,
                    attend: attend_for,
                    merge,
                    outer,
                }
            }
        }
    };
}

kernels_for!(scalar, isa::scalar::Scalar, super::IsaLevel::Scalar, tile 2, sums 1, outer 4,);
#[cfg(target_arch = "x86_64")]
kernels_for!(avx2, isa::avx2::Avx2, super::IsaLevel::Avx2, tile 2, sums 1, outer 4,
    #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
kernels_for!(avx512, isa::avx512::Avx512, super::IsaLevel::Avx512, tile 12, sums 4, outer 16,
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
kernels_for!(neon, isa::neon::Neon<isa::neon::Widening>, super::IsaLevel::Neon, tile 4, sums 1, outer 4,
    #[target_feature(enable = "neon")]);
#[cfg(target_arch = "aarch64")]
kernels_for!(neon_dotprod, isa::neon::Neon<isa::neon::Dotprod>, super::IsaLevel::NeonDotprod, tile 4, sums 1, outer 4,
    #[target_feature(enable = "neon,dotprod")]);

/// What instructions of less than f32's precision add to AVX-512: attention over long contexts. An f32 cache is for exact
/// results and stays in f32.
#[cfg(target_arch = "x86_64")]
macro_rules! reduced_attention {
    ($module:ident, $scheme:ident, $features:literal) => {
        mod $module {
            use super::super::attention::{self, AttentionWork, HeadCache, QueryRow};
            use super::super::isa::avx512::Avx512;
            use super::super::kv_format::{KvF16, KvFormat, KvQ4, KvQ8};
            use super::{AttendFn, KvType};

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            #[target_feature(enable = $features)]
            unsafe fn attend<K: KvFormat>(
                cache: &HeadCache,
                rows: &mut [QueryRow],
                scale: f32,
                chunk: usize,
                work: &mut AttentionWork,
            ) {
                // SAFETY: the caller's promises are those of the generic body; `IsaLevel::kernels` has checked the features.
                unsafe { attention::chunk_mixed::<Avx512, K, attention::$scheme>(cache, rows, scale, chunk, work) }
            }

            pub(super) fn attend_for(kv_type: KvType) -> AttendFn {
                match kv_type {
                    KvType::F32 => super::avx512::attend_for(kv_type),
                    KvType::F16 => attend::<KvF16>,
                    KvType::Q8_0 => attend::<KvQ8>,
                    KvType::Q4_0 => attend::<KvQ4>,
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
reduced_attention!(avx512_bf16, InBf16, "avx512bf16");
#[cfg(target_arch = "x86_64")]
reduced_attention!(avx512_fp16, InF16, "avx512fp16");

#[cfg(test)]
mod tests {
    use super::IsaLevel;

    #[test]
    fn a_cap_bounds_the_level() {
        for cap in IsaLevel::ALL {
            let best = IsaLevel::best(Some(cap));
            assert!(best.is_available() && best.is_of_this_architecture());
            assert!(!cap.is_available() || best == cap, "{cap:?}: {best:?}");
            assert!(cap.is_of_this_architecture() || best == IsaLevel::Scalar, "{cap:?}: {best:?}");
        }
        assert!(IsaLevel::ALL.iter().all(|level| level.is_of_this_architecture() || !level.is_available()));
        assert!(IsaLevel::best(None).is_available());
    }
}
