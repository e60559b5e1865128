//! Every instruction set x weight type x shape against plain f64 arithmetic on the file's own decoder.

use std::io::Write;

use proptest::prelude::*;
use tandem_loader::{GgmlType, quant};

use super::isa::LANES;
use super::kernels::{IsaLevel, Kernels};
use super::matmul::{ActGroup, Acts};
use super::matrix::Matrix;

/// A small generator: the tests must be repeatable from one number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// What the quants and activations look like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Values {
    Random,
    /// All bits set and all activations equal: the largest sums, where 16-bit intermediates would saturate.
    Saturating,
    /// Scales and activations of very different sizes.
    Extreme,
}

/// Blocks of `ty` with finite scales. The scales' bytes are found by trying: f16 fields that decode to huge weights are
/// replaced by cleaner bits.
fn blocks(ty: GgmlType, n: usize, values: Values, random: &mut Random) -> Vec<u8> {
    let decode = quant::decode_fn(ty).unwrap();
    let mut out = Vec::new();
    let mut weights = vec![0.0; ty.block_size()];
    while out.len() < n * ty.block_bytes() {
        let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| (random.next() >> 32) as u8).collect();
        if values == Values::Saturating {
            block.fill(if random.next().is_multiple_of(2) { 0xff } else { 0x7f });
        }
        for at in scale_fields(ty) {
            let size = if values == Values::Extreme { random.float() * 1000.0 } else { random.float() };
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(size).to_le_bytes());
        }
        if matches!(ty, GgmlType::F32) {
            block = random.float().to_le_bytes().to_vec();
        } else if matches!(ty, GgmlType::BF16) {
            block = half::bf16::from_f32(random.float()).to_le_bytes().to_vec();
        }
        if matches!(ty, GgmlType::IQ1_M) {
            let d = half::f16::from_f32(random.float()).to_bits();
            for i in 0..4 {
                block[49 + 2 * i] = block[49 + 2 * i] & 15 | ((d >> (4 * i)) as u8) << 4;
            }
        } else if matches!(ty, GgmlType::MXFP4) {
            // Exponents of 2^-10 to 2^6.
            block[0] = 118 + block[0] % 16;
        }
        // TQ2_0 has kernels for ternary weights, and for all that its blocks can hold.
        if ty == GgmlType::TQ2_0 && !matches!(values, Values::Extreme) {
            block[..64].iter_mut().for_each(|byte| *byte &= !(*byte >> 1 & 0x55));
        }
        decode(&block, &mut weights);
        assert!(weights.iter().all(|w| w.is_finite()), "{ty}");
        out.extend(block);
    }
    out
}

/// Byte offsets of the f16 fields of a block.
fn scale_fields(ty: GgmlType) -> Vec<usize> {
    use GgmlType::*;
    match ty {
        F16 | Q4_0 | Q5_0 | Q8_0 | Q1_0 | Q2_0 => vec![0],
        IQ1_S | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_NL | IQ4_XS => vec![0],
        Q4_1 | Q5_1 | Q4_K | Q5_K => vec![0, 2],
        Q2_K => vec![80, 82],
        Q3_K => vec![108],
        Q6_K => vec![208],
        TQ1_0 => vec![52],
        TQ2_0 => vec![64],
        F32 | BF16 | IQ1_M | MXFP4 | NVFP4 => vec![],
        other => unreachable!("say where the f16 fields of {other} are"),
    }
}

fn activations(n: usize, values: Values, random: &mut Random) -> Vec<f32> {
    let value = |random: &mut Random| match values {
        Values::Random => random.float(),
        Values::Saturating => 1.0,
        Values::Extreme => random.float() * 10f32.powi((random.next() % 9) as i32 - 4),
    };
    (0..n).map(|_| value(random)).collect()
}

fn quantize(kernels: &Kernels, x: &[f32]) -> Vec<ActGroup> {
    let mut out = vec![ActGroup::default(); x.len() / 32];
    // SAFETY: 32 floats per group.
    unsafe { (kernels.quantize)(x.as_ptr(), 0.0, &mut out) };
    out
}

/// Multiplies through one instruction set; `[n_cols, n_out]`.
fn multiply(level: IsaLevel, ty: GgmlType, file: &[u8], n_in: usize, n_out: usize, x: &[f32]) -> Vec<f32> {
    let kernels = level.kernels();
    let kernel = kernels.of(ty, file).unwrap();
    let matrix = Matrix::packed(kernel, n_in, n_out, 1, file.len() / n_out, 0);
    let mut arena = vec![0u8; file.len() / n_out * n_out.next_multiple_of(LANES)];
    matrix.pack_panels(file, 0..matrix.n_panels(), &mut arena);
    let quantized = quantize(&kernels, x);
    let acts = Acts { n_in, x: x.as_ptr(), groups: quantized.as_ptr(), rows: std::ptr::null() };
    let n_cols = x.len() / n_in;
    let mut work = vec![0.0; matrix.work_len()];
    let mut tile = vec![0.0; n_cols * LANES];
    let mut out = vec![0.0; n_cols * n_out];
    for p in 0..matrix.n_panels() {
        // SAFETY: all buffers have the sizes asked for.
        unsafe { matrix.multiply(&arena, p, &acts, 0..n_cols, &mut work, &mut tile) };
        for (col, tile) in tile.chunks_exact(LANES).enumerate() {
            for (r, y) in tile.iter().enumerate().take(n_out - (p * LANES).min(n_out)) {
                out[col * n_out + p * LANES + r] = *y;
            }
        }
    }
    out
}

/// Checks every element against f64, within f32 rounding of the sum of magnitudes.
fn check(level: IsaLevel, ty: GgmlType, (n_in, n_out, n_cols): (usize, usize, usize), values: Values, seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let file = blocks(ty, n_in / ty.block_size() * n_out, values, &mut random);
    let x = activations(n_in * n_cols, values, &mut random);
    let mut weights = vec![0.0; n_in * n_out];
    quant::decode_fn(ty).unwrap()(&file, &mut weights);
    let kernels = level.kernels();
    let is_quantized = (kernels.matrix)(ty).unwrap().quantized;
    let inputs: Vec<f64> = match is_quantized {
        false => x.iter().map(|x| f64::from(*x)).collect(),
        true => {
            let quantized = quantize(&kernels, &x);
            quantized.iter().flat_map(|g| g.q.map(|q| f64::from(g.d) * f64::from(q))).collect()
        }
    };
    let got = multiply(level, ty, &file, n_in, n_out, &x);
    for col in 0..n_cols {
        for r in 0..n_out {
            let terms = (0..n_in).map(|k| f64::from(weights[r * n_in + k]) * inputs[col * n_in + k]);
            let want: f64 = terms.clone().sum();
            // A symmetric type is computed as scale q + min, whose two parts are up to 256 times the weight.
            let size: f64 = terms.map(f64::abs).sum::<f64>() + f64::from(weights[r * n_in].abs());
            let spread: f64 = (0..n_in).map(|k| inputs[col * n_in + k].abs()).sum::<f64>()
                * f64::from(weights[r * n_in..(r + 1) * n_in].iter().fold(0.0f32, |m, w| m.max(w.abs())));
            let limit = 4e-6 * (size + spread);
            let y = f64::from(got[col * n_out + r]);
            assert!(
                (y - want).abs() <= limit,
                "{level:?} {ty} {values:?} [{n_in}, {n_out}] col {col} row {r}: {y} {want}"
            );
        }
    }
    // One column by itself takes another path (GEMV) and must give the same bits.
    let last = &x[(n_cols - 1) * n_in..];
    let alone = multiply(level, ty, &file, n_in, n_out, last);
    let together = &got[(n_cols - 1) * n_out..];
    assert!(
        alone.iter().zip(together).all(|(a, b)| a.to_bits() == b.to_bits()),
        "{level:?} {ty}: GEMV and GEMM differ"
    );
}

fn levels() -> impl Iterator<Item = IsaLevel> {
    IsaLevel::ALL.into_iter().filter(|level| {
        let here = level.is_available();
        if !here {
            let _ = writeln!(std::io::stderr(), "SKIPPED: this CPU has no {}", level.name());
        }
        here
    })
}

fn types() -> Vec<GgmlType> {
    let table = IsaLevel::Scalar.kernels().matrix;
    GgmlType::ALL.iter().copied().filter(|ty| table(*ty).is_some()).collect()
}

#[test]
fn every_decodable_type_has_a_kernel() {
    let decodable: Vec<GgmlType> = GgmlType::ALL.iter().copied().filter(|ty| quant::decode_fn(*ty).is_some()).collect();
    assert_eq!(types(), decodable);
}

#[test]
fn every_type_on_every_instruction_set() {
    for level in levels() {
        for ty in types() {
            for values in [Values::Random, Values::Saturating, Values::Extreme] {
                // More columns than two tiles and a remainder; rows that do not fill a panel.
                for n_cols in [1, 2, 3, 5, 29] {
                    check(level, ty, (512, 35, n_cols), values, 7 + n_cols as u64);
                }
            }
        }
    }
}

#[test]
fn groups_of_a_token_can_share_a_scale() {
    let mut random = Random(5);
    for level in levels() {
        let kernels = level.kernels();
        let x: Vec<f32> = (0..320).map(|i| random.float() * (1 + i / 32) as f32).collect();
        let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let mut out = vec![ActGroup::default(); 10];
        // SAFETY: 320 floats, 32 for each group; `levels` are those of this CPU.
        unsafe {
            assert_eq!((kernels.absmax)(x.as_ptr(), x.len()), largest);
            (kernels.quantize)(x.as_ptr(), largest, &mut out);
        }
        for (i, x) in x.iter().enumerate() {
            let ActGroup { d, q, .. } = out[i / 32];
            assert_eq!(d, largest / 127.0);
            assert!((x - d * f32::from(q[i % 32])).abs() <= 0.5001 * d);
        }
    }
}

/// `main + rest` misses a value by at most half a step of the remainder, which is at most half a step of the whole.
#[test]
fn quantizing_twice_leaves_almost_nothing() {
    let mut random = Random(77);
    for level in levels() {
        let x: Vec<f32> = (0..320).map(|_| random.float() * 8.0).collect();
        let (mut main, mut rest) = (vec![ActGroup::default(); 10], vec![ActGroup::default(); 10]);
        // SAFETY: 32 floats for each group; `levels` are those of this CPU.
        unsafe { (level.kernels().quantize_twice)(x.as_ptr(), &mut main, &mut rest) };
        assert_eq!(main, quantize(&level.kernels(), &x));
        for (i, x) in x.iter().enumerate() {
            let value = |g: &ActGroup| g.d * f32::from(g.q[i % 32]);
            let (main, rest) = (&main[i / 32], &rest[i / 32]);
            assert!((x - value(main) - value(rest)).abs() <= main.d * 0.5 / 127.0 * 0.5001 + x.abs() * 2e-7);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shape(blocks in 1usize..40, n_out in 1usize..50, n_cols in 1usize..40, ty: usize, seed: u64) {
        let types = types();
        let ty = types[ty % types.len()];
        // At least the 32 columns a group of activations needs, and a few of the largest blocks.
        let n_in = if ty.block_size() > 32 { blocks.min(5) * ty.block_size() } else { 32 * blocks };
        for level in levels() {
            check(level, ty, (n_in, n_out, n_cols), Values::Random, seed);
        }
    }

    #[test]
    fn quantized_activations_are_within_half_a_step(seed: u64, scale in -6i32..6) {
        let mut random = Random(seed | 1);
        let x: Vec<f32> = (0..160).map(|_| random.float() * 10f32.powi(scale)).collect();
        for level in levels() {
            let out = quantize(&level.kernels(), &x);
            for (i, x) in x.iter().enumerate() {
                let ActGroup { d, q, .. } = out[i / 32];
                // Half a step, and the rounding of the product with the inverse scale.
                prop_assert!((x - d * f32::from(q[i % 32])).abs() <= 0.5001 * d);
            }
            for group in out {
                let sum = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
                prop_assert_eq!(group.sum, group.d * sum(&group.q) as f32);
                let halves = [&group.q[..16], &group.q[16..]].map(|q| group.d * sum(q) as f32);
                prop_assert_eq!(group.halves, halves);
            }
        }
    }
}

#[test]
fn quantizing_zeros_and_tiny_values_gives_no_nan() {
    for level in levels() {
        for x in [0.0, 1e-44, -1e-40] {
            let out = quantize(&level.kernels(), &[x; 32]);
            assert!(out[0].d.is_finite() && out[0].sum.is_finite(), "{level:?} {x}");
        }
    }
}
