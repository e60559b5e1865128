//! Heads, the cache, and attention.

use half::f16;
use tandem_loader::GgmlType;
use tandem_models::{Reg, Rope, RopePairing, Step};

use super::super::GpuOptions;
use super::bench::{Bench, Plan, has_device, nmse, options};
use crate::model::{KvType, Precision};

/// f32 sums of some hundred terms, with exponentials that may be off by some units in the last place.
const LIMIT: f64 = 1e-11;

/// Sizes of heads: n_head, n_head_kv, head_dim.
const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 8), (9, 3, 10), (4, 1, 64), (9, 1, 40), (2, 2, 80), (8, 2, 128), (2, 1, 256), (3, 3, 300)];

fn ropes(head_dim: usize) -> Vec<Rope> {
    let freqs = |n: usize| (0..n).map(|i| 100f64.powf(-(i as f64) / n as f64)).collect();
    vec![
        Rope { pairing: RopePairing::Normal, freqs: freqs(head_dim / 2), magnitude: 1.0 },
        Rope { pairing: RopePairing::NeoX, freqs: freqs(head_dim / 4), magnitude: 0.8 },
    ]
}

/// Norm and rotation of heads, each by itself and together.
#[test]
fn norms_and_rotations_of_heads() {
    if !has_device() {
        return;
    }
    for shape in SHAPES {
        let mut plan = Plan::new(32, 32, shape);
        plan.ropes = ropes(shape.2);
        let (q, k) = (plan.norm(shape.2), plan.norm(shape.2));
        let norm = Step::HeadNorm { q, k };
        let (first, second) = (Step::Rope { rope: 0 }, Step::Rope { rope: 1 });
        plan.blocks.push(vec![norm.clone()]);
        plan.blocks.push(vec![first.clone()]);
        plan.blocks.push(vec![norm.clone(), second.clone()]);
        // Not the kernel's order: three operations.
        plan.blocks.push(vec![second, norm, first]);
        let mut bench = plan.bench(options(Precision::Exact));
        for block in 0..4 {
            for n in [1, 13] {
                bench.check(block, n, None, LIMIT, &format!("heads {shape:?}, block {block}"));
            }
        }
    }
}

/// What a cache of this type keeps of a key or value.
fn rounded(kv_type: KvType, head: &[f32]) -> Vec<f32> {
    let quantized = |x: &[f32], largest: f32| {
        let absmax = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let d = f16::from_f32(absmax / largest).to_f32();
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        x.iter().map(|x| (x * inverse).round_ties_even().clamp(-largest, largest) * d).collect::<Vec<_>>()
    };
    match kv_type {
        KvType::F32 => head.to_vec(),
        KvType::F16 => head.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
        KvType::Q8_0 => head.chunks(32).flat_map(|x| quantized(x, 127.0)).collect(),
        KvType::Q4_0 => head.chunks(32).flat_map(|x| quantized(x, 7.0)).collect(),
    }
}

/// A block that stores and attends, with heads of this shape.
fn attention(shape: (usize, usize, usize), kv_type: KvType) -> Bench {
    let mut plan = Plan::new(32, 32, shape);
    let attend = Step::Attend { layer: 0, scale: 0.7, window: None };
    plan.blocks.push(vec![Step::StoreKv { layer: 0 }, attend]);
    plan.bench(GpuOptions { kv_type, ..options(Precision::Exact) })
}

/// Stores and attends `n` tokens after those before them; both sides keep their caches.
fn step(bench: &mut Bench, block: usize, n: usize, kv_type: KvType, what: &str) {
    let regs = bench.registers(n);
    let (got, _) = bench.on_gpu(block, &regs, n, 0..n);
    let hd = bench.program.hparams.head_dim;
    let mut want = regs;
    for reg in [Reg::K, Reg::V] {
        let kept = want[&reg].chunks(hd).flat_map(|head| rounded(kv_type, head)).collect();
        want.insert(reg, kept);
    }
    bench.in_reference(block, &mut want, n);
    let error = nmse(&want[&Reg::A], &got[&Reg::A]);
    assert!(error <= LIMIT, "{what}, {n} tokens at {}: A is off by {error:.1e}", bench.start);
    bench.start += n;
}

/// Batches and single tokens in turn, of every cache type, up to where attention is shared out.
#[test]
fn attention_over_every_cache() {
    if !has_device() {
        return;
    }
    for kv_type in KvType::ALL {
        for shape in SHAPES {
            let mut bench = attention(shape, kv_type);
            for n in [1, 2, 30, 1, 80, 5, 1, 70, 1, 17] {
                step(&mut bench, 0, n, kv_type, &format!("{} heads {shape:?}", kv_type.name()));
            }
        }
    }
}

/// Results that a product reads as int8 are those of quantizing A by itself, with and without shares of the positions.
#[test]
fn attention_for_an_int8_product() {
    if !has_device() {
        return;
    }
    for (n_head, n_head_kv, head_dim) in [(4, 2, 32), (9, 3, 64), (2, 1, 256), (3, 3, 96)] {
        let mut plan = Plan::new(64, 32, (n_head, n_head_kv, head_dim));
        let linear = plan.linear(GgmlType::Q8_0, n_head * head_dim, 64, false);
        let attend = Step::Attend { layer: 0, scale: 0.7, window: None };
        let product = Step::Linear { linear, input: Reg::A, output: Reg::X, add: false };
        plan.blocks.push(vec![Step::StoreKv { layer: 0 }, attend, product.clone()]);
        // The same product, of the A that the block before it left.
        plan.blocks.push(vec![product]);
        let mut bench = plan.bench(GpuOptions { kv_type: KvType::F32, ..options(Precision::Fast) });
        assert_eq!(bench.gpu.ops[0].as_ref().map(Vec::len), Some(3), "storing, attention, the product");
        for n in [1, 3, 60, 1, 80, 1] {
            let regs = bench.registers(n);
            let (fused, _) = bench.on_gpu(0, &regs, n, 0..n);
            let (apart, _) = bench.on_gpu(1, &fused.clone(), n, 0..n);
            assert_eq!(fused[&Reg::X], apart[&Reg::X], "{n} tokens at {}, {n_head} heads of {head_dim}", bench.start);
            bench.start += n;
        }
    }
}

/// Numbers that are none reach what is made of the cache, whatever it holds them in.
#[test]
fn broken_numbers_are_not_lost() {
    if !has_device() {
        return;
    }
    for kv_type in KvType::ALL {
        for reg in [Reg::K, Reg::V] {
            let mut bench = attention((1, 1, 32), kv_type);
            let mut regs = bench.registers(3);
            regs.get_mut(&reg).unwrap()[5] = f32::NAN;
            let (got, _) = bench.on_gpu(0, &regs, 3, 0..3);
            let is_broken = |row: &[f32]| row.iter().any(|x| x.is_nan());
            assert!(got[&Reg::A].chunks(32).all(is_broken), "{} {reg:?}", kv_type.name());
        }
    }
}

#[test]
fn windows() {
    if !has_device() {
        return;
    }
    for window in [1, 2, 31, 64, 65, 100, 250] {
        let mut plan = Plan::new(32, 32, (4, 2, 16));
        let attend = Step::Attend { layer: 0, scale: 0.4, window: Some(window) };
        plan.blocks.push(vec![Step::StoreKv { layer: 0 }, attend]);
        let mut bench = plan.bench(GpuOptions { kv_type: KvType::F32, ..options(Precision::Exact) });
        for n in [1, 70, 1, 3, 80, 1, 60] {
            step(&mut bench, 0, n, KvType::F32, &format!("window {window}"));
        }
    }
}

/// A cache whose heads do not all fit in one binding.
#[test]
fn a_cache_in_parts() {
    if !has_device() {
        return;
    }
    let mut plan = Plan::new(32, 32, (10, 5, 16));
    plan.ropes = ropes(16);
    let attend = Step::Attend { layer: 0, scale: 0.4, window: None };
    plan.blocks.push(vec![Step::Rope { rope: 0 }, Step::StoreKv { layer: 0 }, attend]);
    // A head takes 16 KiB of keys.
    let limit = GpuOptions { binding_limit: Some(40 << 10), kv_type: KvType::F32, ..options(Precision::Exact) };
    let mut bench = plan.bench(limit);
    assert_eq!(bench.gpu.buffers.caches[0].len(), 3);
    for n in [3, 1, 60, 1] {
        bench.check(0, n, None, LIMIT, "a cache in parts");
        bench.start += n;
    }
}
