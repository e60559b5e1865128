//! Cooperative matrices, which software devices do not have: the kernel as it is, but for its matrices, which are written out
//! in plain WGSL; and the check that decides whether it is used.

use tandem_loader::GgmlType;
use tandem_models::{Activation, Reg, Step};
use tandem_shaders::{Acts, Format, Kernel, Operands};

use super::super::coop::{Choice, LIMIT, Sample};
use super::super::kernels::Pipelines;
use super::super::layout::Layout;
use super::super::{GpuBackend, GpuOptions};
use super::bench::{Bench, Plan, has_device, nmse, options, round_int8, types};
use crate::backend::Backend;
use crate::model::Precision;

/// What stands for the matrices. Those that are multiplied are the places where they were loaded from, for nothing is written
/// there before they are used. Sums are places too, in what each thread holds: the threads of a subgroup share out the elements,
/// as those of a device do. (Passed on by value they take a software device long to compile.)
const PRETENDED: &str = "
// Number of this thread in its subgroup, threads of a subgroup, and whether what the subgroup multiplies is dropped.
var<private> me: u32;
var<private> size: u32;
var<private> is_dropped: bool;

// Of each sum: element size * i + me is number i.
var<private> held: array<f32, 256>;

fn part(at: u32) -> vec4<f32> {
    return vec4<f32>(halves[at]);
}

fn multiply_add(a: u32, b: u32, c: u32) -> u32 {
    for (var e = me; e < 256u && !is_dropped; e += size) {
        let w = a + e / 16u * STRIDE;
        let x = b + e % 16u * STRIDE;
        held[c + e / size] += dot(part(w), part(x)) + dot(part(w + 1u), part(x + 1u)) + dot(part(w + 2u), part(x + 2u))
            + dot(part(w + 3u), part(x + 3u));
    }
    return c;
}

fn store(c: u32, at: u32) {
    for (var e = me; e < 256u; e += size) {
        sums[at + e % 16u * SUM_STRIDE + e / 16u] = held[c + e / size];
    }
}
";

/// Replaces cooperative matrices by what stands for them.
fn pretend(file: &str, source: String) -> String {
    if file != "coopmat.wgsl" {
        return source;
    }
    let replaced = [
        ("enable wgpu_cooperative_matrix;", ""),
        ("main(", "main(@builtin(subgroup_invocation_id) my_number: u32, @builtin(subgroup_size) my_size: u32,"),
        (
            "let stores = subgroup < 4u;",
            "let stores = subgroup < 4u; me = my_number; size = my_size; is_dropped = !stores;",
        ),
        ("sum00 = coop_mat16x16<f32, C>()", "sum00 = 0u"),
        ("sum01 = coop_mat16x16<f32, C>()", "sum01 = 64u"),
        ("sum10 = coop_mat16x16<f32, C>()", "sum10 = 128u"),
        ("sum11 = coop_mat16x16<f32, C>()", "sum11 = 192u"),
        ("coopLoadT<coop_mat16x16<f16, A>>(&halves[", "("),
        ("coopLoad<coop_mat16x16<f16, B>>(&halves[", "("),
        ("k], STRIDE)", "k)"),
        ("coopMultiplyAdd(", "multiply_add("),
        ("coopStore(", "store("),
        (", &sums[", ", ("),
        ("], SUM_STRIDE)", "))"),
    ];
    let mut source = source;
    for (from, to) in replaced {
        assert!(source.contains(from), "{from}");
        source = source.replace(from, to);
    }
    assert!(!["coop_mat", "coopLoad", "coopMul", "coopStore"].iter().any(|word| source.contains(word)), "{source}");
    source + PRETENDED
}

/// The same with a kernel that forgets the last 16 rows' second half of k.
fn pretend_wrongly(file: &str, source: String) -> String {
    let source = pretend(file, source);
    source.replace("sum11 = multiply_add(w1, x1, sum11);", "if k == 0u { sum11 = multiply_add(w1, x1, sum11); }")
}

fn pretending(edit: fn(&str, String) -> String) -> GpuOptions {
    GpuOptions { cooperative: Some(true), edit_kernel: Some(edit), ..options(Precision::Fast) }
}

/// What ordinary kernels keep to: see `tests/products.rs`.
const ORDINARY: f64 = 1e-11;

/// Rounding two factors to f16, to the nearest, costs up to 1.6e-7: see [`LIMIT`], which allows for drivers that round otherwise.
const ROUNDING: f64 = 2e-7;

/// Products of one type, with bias, added.
fn bench(ty: GgmlType, n_in: usize, n_out: usize, gpu: GpuOptions) -> Bench {
    let mut plan = Plan::new(n_in, n_out, (1, 1, 32));
    let linear = plan.linear(ty, n_in, n_out, true);
    plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::F, add: true }]);
    plan.bench(gpu)
}

fn int8(ty: GgmlType) -> Option<Reg> {
    (ty.block_size() > 1).then_some(Reg::H)
}

#[test]
fn every_type() {
    if !has_device() {
        return;
    }
    for ty in types() {
        // For plain numbers a row length that is odd.
        let n_in = if ty.block_size() == 1 { 75 } else { (3 * ty.block_size()).max(96) };
        let mut bench = bench(ty, n_in, 131, pretending(pretend));
        assert_eq!(bench.gpu.warnings(), [""; 0]);
        // A part of a tile, a whole one and a part.
        for n in [33, 70] {
            let worst = bench.errors(0, n, int8(ty)).iter().fold(0.0f64, |worst, (_, error)| worst.max(*error));
            // Without any rounding it would be another kernel.
            assert!((1e-9..=ROUNDING).contains(&worst), "{ty}, {n} tokens: {worst:.1e}");
        }
        bench.check(0, 32, int8(ty), ORDINARY, &format!("{ty}, few tokens"));
    }
}

/// Sizes in which little is a multiple of anything, and matrices in several parts.
#[test]
fn odd_shapes() {
    if !has_device() {
        return;
    }
    for (ty, n_in, n_out) in [
        (GgmlType::F32, 1, 1),
        (GgmlType::BF16, 33, 65),
        (GgmlType::Q8_0, 32, 1),
        (GgmlType::Q4_1, 576, 67),
        (GgmlType::Q6_K, 256, 130),
    ] {
        let split = GpuOptions { binding_limit: Some(20_000), ..pretending(pretend) };
        for gpu in [pretending(pretend), split] {
            let mut bench = bench(ty, n_in, n_out, gpu);
            assert_eq!(bench.gpu.warnings(), [""; 0]);
            // Few numbers do not average.
            let limit = if n_out == 1 { 2.0 * ROUNDING } else { ROUNDING };
            bench.check(0, 64, int8(ty), limit, &format!("{ty} [{n_out}, {n_in}]"));
        }
    }
}

/// Weights beyond f16 in both directions, next to each other in one product.
#[test]
fn weights_that_f16_does_not_hold() {
    if !has_device() {
        return;
    }
    for scale in [1e-12, 3e-6, 1.0, 5e5, 1e20] {
        let mut plan = Plan::new(96, 70, (1, 1, 32));
        let linear = plan.scaled(96, 70, scale);
        plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::F, add: false }]);
        let mut bench = plan.bench(pretending(pretend));
        assert_eq!(bench.gpu.warnings(), [""; 0]);
        bench.check(0, 40, None, ROUNDING, &format!("weights around {scale}"));
    }
    // A weight that is no number is no reason for a warning; it must show in its row, and in no other.
    let mut plan = Plan::new(96, 70, (1, 1, 32));
    let linear = plan.scaled(96, 70, f32::INFINITY);
    plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::F, add: false }]);
    let mut bench = plan.bench(pretending(pretend));
    assert_eq!(bench.gpu.warnings(), [""; 0]);
    let before = bench.registers(40);
    let (got, _) = bench.on_gpu(0, &before, 40, 0..40);
    assert!(got[&Reg::F].iter().all(|x| x.is_nan()));
}

/// Tokens of very different sizes, zeros, infinity and NaN: each token's results are its own.
#[test]
fn extreme_activations() {
    if !has_device() {
        return;
    }
    let n = 40;
    for ty in [GgmlType::F16, GgmlType::Q8_0] {
        let mut bench = bench(ty, 64, 64, pretending(pretend));
        let mut regs = bench.registers(n);
        regs.get_mut(&Reg::F).unwrap().fill(0.0);
        let scales = [1.0, 0.0, 1e-20, 1e-6, 1e6, 1e30, f32::INFINITY, f32::NAN];
        for (t, row) in regs.get_mut(&Reg::H).unwrap().chunks_exact_mut(64).enumerate() {
            let scale = scales[t % scales.len()];
            if scale.is_finite() {
                row.iter_mut().for_each(|x| *x *= scale);
            } else {
                row[40] = scale;
            }
        }
        let mut want = regs.clone();
        if ty == GgmlType::Q8_0 {
            let rows = want.get_mut(&Reg::H).unwrap().chunks_exact_mut(64);
            rows.filter(|row| row[0] != 0.0).for_each(round_int8);
        }
        let (got, _) = bench.on_gpu(0, &regs, n, 0..n);
        bench.in_reference(0, &mut want, n);
        for t in 0..n {
            let (want, got) = (&want[&Reg::F][t * 64..][..64], &got[&Reg::F][t * 64..][..64]);
            let scale = scales[t % scales.len()];
            if scale.is_finite() {
                let error = nmse(want, got);
                // Of a bias of its own size, and 64 numbers.
                assert!(error <= 4.0 * ROUNDING, "{ty}, {scale}: {error:.1e}");
            } else {
                assert!(got.iter().all(|x| !x.is_finite()), "{ty}, {scale}: {got:?}");
            }
        }
    }
}

#[test]
fn experts() {
    if !has_device() {
        return;
    }
    use GgmlType::*;
    let split = GpuOptions { binding_limit: Some(32_000), ..pretending(pretend) };
    // Int8 hidden of both may fall to different sides: see `tests/experts.rs`.
    for (gpu, types, limit) in [
        (pretending(pretend), [F16, F32, BF16], 4.0 * ROUNDING),
        (pretending(pretend), [Q4_0, Q4_0, Q8_0], 3e-4),
        (split, [Q8_0, Q8_0, Q8_0], 3e-4),
    ] {
        let mut plan = Plan::new(64, 2 * 96, (1, 1, 32));
        (plan.hparams.n_expert, plan.hparams.n_expert_used) = (5, 2);
        let router = plan.linear(F32, 64, 5, true);
        let [gate, up, down] = types;
        let (gate, up, down) = (plan.experts(gate, 64, 96), plan.experts(up, 64, 96), plan.experts(down, 96, 64));
        let glu = Step::ExpertGlu { gate, up, act: Activation::Silu };
        let down = Step::ExpertDown { down, output: Reg::X, add: true };
        plan.blocks.push(vec![Step::Route { router, normalize: true }, glu, down]);
        let mut bench = plan.bench(gpu);
        assert_eq!(bench.gpu.warnings(), [""; 0]);
        let is_split = bench.gpu.buffers.matrices.iter().any(|parts| parts.len() > 1);
        assert_eq!(is_split, bench.gpu.options.binding_limit.is_some());
        for n in [50, 75] {
            let mut regs = bench.registers(n);
            let (got, _) = bench.on_gpu(0, &regs, n, 0..n);
            bench.in_reference(0, &mut regs, n);
            let error = nmse(&regs[&Reg::X], &got[&Reg::X]);
            assert!((1e-9..=limit).contains(&error), "experts of {types:?}, {n} tokens: {error:.1e}");
            // The router is not rounded.
            let error = nmse(&regs[&Reg::R], &got[&Reg::R]);
            assert!(error <= ORDINARY, "router, {n} tokens: {error:.1e}");
        }
    }
}

/// Exact precision and the output head do without.
#[test]
fn what_is_not_rounded() {
    if !has_device() {
        return;
    }
    let mut exact = bench(GgmlType::F16, 75, 70, GpuOptions { precision: Precision::Exact, ..pretending(pretend) });
    exact.check(0, 70, None, ORDINARY, "exact");
    let mut plan = Plan::new(64, 32, (1, 1, 32));
    plan.hparams.n_vocab = 70;
    let linear = plan.linear(GgmlType::F16, 64, 70, false);
    plan.blocks.push(vec![Step::Logits { linear, soft_cap: None }]);
    let mut bench = plan.bench(pretending(pretend));
    let mut regs = bench.registers(70);
    let (_, got) = bench.on_gpu(0, &regs, 70, 0..70);
    let want = bench.in_reference(0, &mut regs, 70);
    assert!(nmse(&want, &got[..want.len()]) <= ORDINARY);
}

/// What the check says of a kernel, for a matrix of a loaded model.
fn error_of(bench: &Bench, edit: Option<fn(&str, String) -> String>, kernel: Kernel) -> f64 {
    let backend = &bench.gpu;
    let layout = layout_of(bench);
    let spec = &layout.matrices[0];
    let operands = Operands { ty: spec.format.ty, acts: spec.acts(Precision::Fast, false) };
    let sample = Sample::new(&backend.gpu, &backend.buffers, spec, 0, operands, 10);
    sample.error_of(&mut Pipelines::new(&backend.gpu, None, edit), kernel).unwrap()
}

fn layout_of(bench: &Bench) -> Layout {
    let backend = &bench.gpu;
    let whole = 0..backend.program.blocks.len();
    let binding = backend.options.binding_limit.unwrap_or(1 << 27);
    Layout::new(&backend.gguf, &backend.program, &[whole], &backend.options, binding).unwrap()
}

/// The check passes kernels that are right, and only those.
#[test]
fn the_check() {
    if !has_device() {
        return;
    }
    for (ty, acts) in [(GgmlType::F32, Acts::F32), (GgmlType::Q4_K, Acts::Int8), (GgmlType::IQ2_XS, Acts::Int8)] {
        let operands = Operands { ty, acts };
        let bench = bench(ty, 512, 100, GpuOptions { cooperative: Some(false), ..options(Precision::Fast) });
        let ordinary = |wide| Kernel::MatMat { operands, wide, experts: false };
        assert_eq!(error_of(&bench, None, ordinary(true)), 0.0, "{ty}");
        // It does 16 of 64 tokens.
        assert!(error_of(&bench, None, ordinary(false)) > 0.1, "{ty}");
        for subgroup in [8, 64] {
            let coop = Kernel::CoopMat { operands, threads: Kernel::coop_threads(subgroup), experts: false };
            let right = error_of(&bench, Some(pretend), coop);
            assert!((1e-9..LIMIT).contains(&right), "{ty}: {right:.1e}");
            let wrong = error_of(&bench, Some(pretend_wrongly), coop);
            assert!(wrong > 1e-3, "{ty}: {wrong:.1e}");
        }
    }
}

/// A kernel that does not pass, or is not compiled, is not used; people are told.
#[test]
fn a_kernel_that_does_not_pass_is_not_used() {
    if !has_device() {
        return;
    }
    fn broken(file: &str, source: String) -> String {
        if file == "coopmat.wgsl" { source.replace("find_peaks(lane, tile);", "find_nothing();") } else { source }
    }
    for (edit, why) in [(pretend_wrongly as fn(&str, String) -> String, "off by"), (broken, "coopmat.wgsl")] {
        for ty in [GgmlType::F16, GgmlType::Q4_0] {
            let mut bench = bench(ty, 96, 70, pretending(edit));
            let warnings = bench.gpu.warnings();
            assert!(matches!(warnings, [one] if one.contains("cooperative") && one.contains(why)), "{warnings:?}");
            bench.check(0, 70, int8(ty), ORDINARY, &format!("{ty}, not by cooperative matrices"));
        }
    }
}

/// The largest weight, of every type and in all parts.
#[test]
fn the_largest_weight() {
    if !has_device() {
        return;
    }
    for ty in types() {
        let n_in = if ty.block_size() == 1 { 75 } else { 2 * ty.block_size().max(96) };
        let table = Format::of(ty).map_or(0, |format| format.table.n_bytes() as u64);
        let limit = Some(table + 20_000);
        let bench = bench(ty, n_in, 600, GpuOptions { binding_limit: limit, ..options(Precision::Fast) });
        let layout = layout_of(&bench);
        let GpuBackend { gpu, program, buffers, options, gguf, .. } = &bench.gpu;
        let choice = Choice { gpu, program, layout: &layout, buffers, options };
        let matrices = [(0, Operands { ty, acts: Acts::F32 })];
        let found = choice.peaks(&mut Pipelines::new(gpu, None, None), &matrices).unwrap();
        let weights = gguf.dequantize(gguf.tensor("w0").unwrap()).unwrap();
        let want = weights.iter().fold(0.0f32, |peak, w| peak.max(w.abs()));
        // Scales and minimums may be multiplied in another order.
        assert!((found[0].1 / want - 1.0).abs() < 1e-6, "{ty}: {} for {want}", found[0].1);
    }
}
