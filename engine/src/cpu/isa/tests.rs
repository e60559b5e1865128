//! Every method of every instruction set against plain Rust, bit for bit where the contract leaves no choice.

use super::scalar::Scalar;
use super::{Isa, LANES};
use crate::cpu::IsaLevel;

/// Inputs of one round: bits of all kinds, and numbers of ordinary sizes.
struct Input {
    bytes: [u8; 64],
    other: [u8; 64],
    /// Signed bytes that are not -128.
    quants: [i8; 16],
    floats: [f32; LANES],
    others: [f32; LANES],
    table: Vec<u32>,
}

impl Input {
    fn new(seed: u64) -> Input {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let mut float = || (next() as i32 as f32) / (1 << 20) as f32;
        let (floats, others) = (std::array::from_fn(|_| float()), std::array::from_fn(|_| float()));
        // Some rounds have the largest sums.
        let (only_ends, only_least) = (seed.is_multiple_of(5), seed.is_multiple_of(10));
        let mut byte = || if only_ends { [0, 255][(next() >> 31) as usize] } else { next() as u8 };
        let (bytes, other) = (std::array::from_fn(|_| byte()), std::array::from_fn(|_| byte()));
        let quants = std::array::from_fn(|_| if only_least { -127 } else { (next() % 255) as i32 - 127 } as i8);
        Input { bytes, other, quants, floats, others, table: (0..256).map(|_| next()).collect() }
    }
}

/// What a method gave.
#[derive(Debug, PartialEq)]
enum Output {
    Bits(&'static str, Vec<u32>),
    /// Numbers whose last bits may differ: both are within 2e-7 of what is meant.
    Near(&'static str, Vec<f32>),
}

fn floats<S: Isa>(v: S::F) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: 16 floats; the level is available.
    unsafe { S::f_store(out.as_mut_ptr(), v) };
    out
}

fn bytes<S: Isa>(v: S::B) -> [u8; 64] {
    let mut out = [0; 64];
    // SAFETY: 64 bytes; the level is available.
    unsafe { S::b_store(out.as_mut_ptr(), v) };
    out
}

/// All methods on one input.
///
/// # Safety
/// The CPU has the instruction set.
unsafe fn outputs<S: Isa>(x: &Input) -> Vec<Output> {
    let mut out = Vec::new();
    // SAFETY: as the caller promises; every pointer is to arrays of the lengths asked for.
    unsafe {
        numbers::<S>(x, &mut out);
        integers::<S>(x, &mut out);
        byte_methods::<S>(x, &mut out);
    }
    out
}

/// # Safety
/// As for [`outputs`].
unsafe fn numbers<S: Isa>(x: &Input, out: &mut Vec<Output>) {
    let mut exact = |name, v: S::F| out.push(Output::Bits(name, floats::<S>(v).iter().map(|x| x.to_bits()).collect()));
    // SAFETY: as for [`outputs`].
    unsafe {
        let (a, b) = (S::f_load(x.floats.as_ptr()), S::f_load(x.others.as_ptr()));
        let with_nan = |lane: usize, v: &[f32; LANES]| {
            let mut v = *v;
            v[lane] = f32::NAN;
            S::f_load(v.as_ptr())
        };
        exact("splat", S::f_splat(x.floats[3]));
        exact("add", S::f_add(a, b));
        exact("mul", S::f_mul(a, b));
        exact("div", S::f_div(a, b));
        exact("max", S::f_max(a, b));
        exact("min", S::f_min(a, b));
        exact("max, NaN first", S::f_max(with_nan(5, &x.floats), b));
        exact("max, NaN last", S::f_max(a, with_nan(6, &x.others)));
        exact("min, NaN first", S::f_min(with_nan(11, &x.floats), b));
        exact("min, NaN last", S::f_min(a, with_nan(15, &x.others)));
        exact("abs", S::f_abs(a));
        // Integers, of which nothing is rounded.
        let small = |at: usize| S::i_to_f(S::i_load_i8(x.bytes.as_ptr().add(at).cast()));
        exact("fma", S::f_fma(small(0), small(16), small(32)));
        // Finite f16: no exponent of all ones, which NaN has, whose bits may change.
        let halves: [u16; 2 * LANES] =
            std::array::from_fn(|i| u16::from_le_bytes([x.bytes[2 * i], x.bytes[2 * i + 1]]) & 0xbfff);
        exact("f16", S::f_load_f16(halves.as_ptr()));
        exact("bf16", S::f_load_bf16(halves.as_ptr()));
        exact("i_as_f", S::i_as_f(S::f_to_i(a)));
        let near = [
            Output::Near("exp", floats::<S>(S::f_exp(S::f_mul(a, S::f_splat(0.04)))).to_vec()),
            Output::Bits("sum", vec![S::f_sum(a).to_bits()]),
            Output::Bits("largest", vec![S::f_max_lane(a).to_bits()]),
            Output::Bits("NaN only", vec![u32::from(S::f_max_lane(S::f_splat(f32::NAN)).is_nan())]),
        ];
        out.extend(near);
    }
}

/// # Safety
/// As for [`outputs`].
unsafe fn integers<S: Isa>(x: &Input, out: &mut Vec<Output>) {
    // SAFETY: as for [`outputs`].
    unsafe {
        let mut exact = |name, v: S::I| {
            let lanes = bytes::<S>(S::i_as_b(v)).as_chunks().0.iter().map(|lane| u32::from_le_bytes(*lane)).collect();
            out.push(Output::Bits(name, lanes));
        };
        let (a, b) = (S::i_load(x.bytes.as_ptr()), S::i_load(x.other.as_ptr()));
        exact("splat", S::i_splat(x.table[0] as i32));
        exact("u8", S::i_load_u8(x.bytes.as_ptr()));
        exact("i8", S::i_load_i8(x.bytes.as_ptr().cast()));
        exact("u16", S::i_load_u16(x.bytes.as_ptr()));
        exact("and", S::i_and(a, 0x00f0_f00f));
        exact("or", S::i_or(a, b));
        exact("xor", S::i_xor(a, b));
        exact("add", S::i_add(a, b));
        exact("sub", S::i_sub(a, b));
        exact("shl 0", S::i_shl(a, 0));
        exact("shl 7", S::i_shl(a, 7));
        exact("shr 5", S::i_shr(a, 5));
        exact("gather", S::i_gather(x.table.as_ptr(), S::i_load_u8(x.other.as_ptr())));
        exact("join_even", S::i_join_even(a, b));
        // Numbers halfway between integers too.
        exact("f_to_i", S::f_to_i(S::f_load(x.floats.map(|x| (x * 4.0).trunc() / 2.0).as_ptr())));
        for (name, w) in [("dot4, below 128", x.bytes.map(|b| b & 127)), ("dot4, all below 4", x.other.map(|b| b & 3))]
        {
            exact(name, S::dot4(a, S::b_load(w.as_ptr()), x.quants.as_ptr().add(4)));
        }
        exact("dot4_wide", S::dot4_wide(b, S::b_load(x.bytes.as_ptr()), x.quants.as_ptr().add(1)));
        // What the odd lanes hold is not said.
        let w = S::b_ternary(S::b_load(x.other.map(|b| b % 3).as_ptr()));
        let quants = x.quants.map(|a| a.max(-127));
        let sums = S::i_add_ternary(S::i_splat(1000), w, S::b_splat8(quants.as_ptr().add(3)));
        exact("add_ternary", S::i_join_even(sums, sums));
        let mut stored = [0i8; LANES];
        S::i_store_i8(stored.as_mut_ptr(), S::i_load_i8(x.other.as_ptr().cast()));
        out.push(Output::Bits("store_i8", stored.map(|b| b as u32).to_vec()));
        out.push(Output::Bits("sum", vec![S::i_sum(a) as u32]));
        let as_floats = floats::<S>(S::i_to_f(S::i_shr(a, 8))).map(f32::to_bits);
        out.push(Output::Bits("i_to_f", as_floats.to_vec()));
    }
}

/// # Safety
/// As for [`outputs`].
unsafe fn byte_methods<S: Isa>(x: &Input, out: &mut Vec<Output>) {
    let mut exact = |name, v: S::B| out.push(Output::Bits(name, bytes::<S>(v).map(u32::from).to_vec()));
    // SAFETY: as for [`outputs`].
    unsafe {
        let (a, b) = (S::b_load(x.bytes.as_ptr()), S::b_load(x.other.as_ptr()));
        let table: [u8; 16] = std::array::from_fn(|i| x.bytes[i]);
        exact("and", S::b_and(a, 0x5a));
        exact("or", S::b_or(a, b));
        exact("add", S::b_add(a, b));
        exact("shl 4", S::b_and(S::b_shl(a, 4), 0xf0));
        exact("shl 0", S::b_shl(a, 0));
        exact("shr 2", S::b_and(S::b_shr(a, 2), 0x3f));
        exact("lookup", S::b_lookup(&table, S::b_and(b, 15)));
        exact("splat8", S::b_splat8(x.quants.as_ptr().add(5)));
        for limit in [0, 1, 86, 128, 255] {
            exact("at_least", S::b_at_least(a, limit));
        }
        // Any address will do.
        S::prefetch(std::ptr::without_provenance(x.table[0] as usize));
    }
}

fn check<S: Isa>(level: IsaLevel) {
    for seed in 0..200 {
        let x = Input::new(seed);
        // SAFETY: the caller looks whether the level is available.
        let (got, want) = unsafe { (outputs::<S>(&x), outputs::<Scalar>(&x)) };
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            match (got, want) {
                (Output::Near(name, got), Output::Near(_, want)) => {
                    let near = |(got, want): (&f32, &f32)| (got - want).abs() <= 4e-7 * want;
                    assert!(got.iter().zip(want).all(near), "{} {seed} {name}: {got:?} {want:?}", level.name());
                }
                (got, want) => assert_eq!(got, want, "{} {seed}", level.name()),
            }
        }
    }
}

#[test]
fn every_method_does_what_plain_rust_does() {
    for level in IsaLevel::ALL.into_iter().filter(|level| level.is_available()) {
        match level {
            IsaLevel::Scalar => check::<Scalar>(level),
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx2 => check::<super::avx2::Avx2>(level),
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => check::<super::avx512::Avx512>(level),
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon => check::<super::neon::Neon<super::neon::Widening>>(level),
            #[cfg(target_arch = "aarch64")]
            IsaLevel::NeonDotprod => check::<super::neon::Neon<super::neon::Dotprod>>(level),
            #[cfg(not(target_arch = "x86_64"))]
            IsaLevel::Avx2 | IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => {
                unreachable!("not available")
            }
            #[cfg(not(target_arch = "aarch64"))]
            IsaLevel::Neon | IsaLevel::NeonDotprod => unreachable!("not available"),
        }
    }
}

/// The exponentials that the weights of attention are made with, where these are rounded anyway.
#[test]
#[cfg(target_arch = "x86_64")]
fn short_exponentials_are_as_exact_as_they_say() {
    use super::Bf16;
    use super::avx512::Avx512;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn in_bf16(x: &[f32; LANES]) -> [f32; LANES] {
        // SAFETY: 16 floats; the CPU has AVX-512, which is all that these methods use.
        unsafe { floats::<Avx512>(Avx512::bf_exp(Avx512::f_load(x.as_ptr()))) }
    }
    if !IsaLevel::Avx512.is_available() {
        eprintln!("skipped: no AVX-512");
        return;
    }
    for i in 0..20_000 {
        let x: [f32; LANES] = std::array::from_fn(|lane| -((LANES * i + lane) as f32) * 2.7e-4);
        // SAFETY: it was asked for above.
        let got = unsafe { in_bf16(&x) };
        for (got, x) in got.iter().zip(x) {
            let want = f64::from(x).exp();
            assert!((f64::from(*got) - want).abs() <= 2e-4 * want, "{x}: {got}, not {want}");
        }
    }
    // SAFETY: it was asked for above.
    assert_eq!(unsafe { in_bf16(&[f32::NEG_INFINITY; LANES]) }, [0.0; LANES]);
}

/// Those in f16, and that they are stored in order.
#[test]
#[cfg(target_arch = "x86_64")]
fn exponentials_in_f16() {
    use super::F16;
    use super::avx512::Avx512;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512fp16")]
    unsafe fn in_f16(x: &[f32; 2 * LANES]) -> [[u16; 2]; 2 * LANES] {
        let mut out = [[0; 2]; 2 * LANES];
        // SAFETY: 32 floats, 32 pairs; the CPU has what these methods use.
        unsafe {
            let (low, high) = (Avx512::f_load(x.as_ptr()), Avx512::f_load(x.as_ptr().add(LANES)));
            Avx512::h_store_exp(out.as_mut_ptr().cast(), Avx512::h_exp(low, high));
        }
        out
    }
    if !IsaLevel::Avx512Fp16.is_available() {
        eprintln!("skipped: no AVX-512 FP16");
        return;
    }
    for i in 0..20_000 {
        let x: [f32; 2 * LANES] = std::array::from_fn(|lane| -((2 * LANES * i + lane) as f32) * 4e-5);
        // SAFETY: it was asked for above.
        let got = unsafe { in_f16(&x) };
        for ([got, same], x) in got.into_iter().zip(x) {
            let (got, want) = (half::f16::from_bits(got).to_f64(), f64::from(x).exp());
            // The polynomial with its steps (6e-4) and a margin; half a unit in the exponent's last place, 2^-11 of it; half of
            // the smallest f16 below its normal numbers.
            let limit = (7e-4 + f64::from(x).abs() * 4.9e-4) * want + 3e-8;
            assert!(
                got == half::f16::from_bits(same).to_f64() && (got - want).abs() <= limit,
                "{x}: {got}, not {want}"
            );
        }
    }
    for x in [f32::NEG_INFINITY, f32::MIN, -1e5] {
        // SAFETY: it was asked for above.
        assert_eq!(unsafe { in_f16(&[x; 2 * LANES]) }, [[0; 2]; 2 * LANES], "{x}");
    }
    // SAFETY: it was asked for above.
    let nan = unsafe { in_f16(&[f32::NAN; 2 * LANES]) };
    assert!(nan.iter().flatten().all(|bits| half::f16::from_bits(*bits).is_nan()));
}
