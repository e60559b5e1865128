//! One scale for a whole matrix, in every step that has plain matrices.

use tandem_loader::GgmlType;
use tandem_models::{Activation, Linear, Reg, Step};

use super::super::GpuOptions;
use super::bench::{Plan, has_device, nmse, options};
use crate::model::Precision;

/// f32 sums of some hundred terms, and functions that may be off by some units in the last place. A scale that is left out
/// is an error of 0.1 and more.
const LIMIT: f64 = 1e-11;

/// Tokens that go through each kernel: one, few, narrow tiles, wide tiles.
const TOKENS: [usize; 4] = [1, 5, 17, 70];

impl Plan {
    fn biased_and_scaled(&mut self, ty: GgmlType, n_in: usize, n_out: usize, (bias, scale): (bool, f32)) -> Linear {
        Linear { scale, ..self.linear(ty, n_in, n_out, bias) }
    }
}

/// Compares each block's registers; those of products that read int8 are given rounded H.
fn check(plan: Plan, options: GpuOptions, what: &str) {
    let int8 = (options.precision == Precision::Fast).then_some(Reg::H);
    let mut bench = plan.bench(options);
    for block in 0..bench.program.blocks.len() {
        for n in TOKENS {
            bench.check(block, n, int8, LIMIT, &format!("{what}, block {block}"));
        }
    }
}

/// Of stacked matrices each has its own scale, some have none; biases are not scaled.
#[test]
fn of_projections() {
    if !has_device() {
        return;
    }
    use GgmlType::{F16, Q4_K, TQ2_0};
    for (types, precision) in [
        ([TQ2_0; 3], Precision::Exact),
        ([TQ2_0; 3], Precision::Fast),
        ([F16; 3], Precision::Exact),
        ([Q4_K, Q4_K, F16], Precision::Exact),
    ] {
        for [q, k, v] in [
            [(false, 0.3), (false, -2.5), (false, 1.0)],
            [(true, 1.0), (false, 7.0), (true, 0.5)],
            [(false, 1.0), (false, 1.0), (true, 3.0)],
        ] {
            let mut plan = Plan::new(256, 32, (6, 2, 10));
            let [q, k, v] = [(types[0], 60, q), (types[1], 20, k), (types[2], 20, v)]
                .map(|(ty, n_out, rest)| plan.biased_and_scaled(ty, 256, n_out, rest));
            plan.blocks.push(vec![Step::Qkv { q, k, v }]);
            check(plan, options(precision), &format!("{types:?}, {precision:?}, {q:?} {k:?} {v:?}"));
        }
    }
}

/// Written and added, with and without bias, in one part and in several.
#[test]
fn of_one_matrix() {
    if !has_device() {
        return;
    }
    for binding_limit in [None, Some(6000)] {
        let mut plan = Plan::new(256, 131, (1, 1, 32));
        for (bias, add) in [(false, false), (true, false), (false, true), (true, true)] {
            let linear = plan.biased_and_scaled(GgmlType::TQ2_0, 256, 131, (bias, 0.02));
            plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::F, add }]);
        }
        // The same matrix without its scale is another one.
        let Step::Linear { linear, .. } = plan.blocks[0][0] else { panic!("a linear step was pushed") };
        let linear = Linear { scale: 1.0, ..linear };
        plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::F, add: false }]);
        check(
            plan,
            GpuOptions { binding_limit, ..options(Precision::Fast) },
            &format!("a matrix, split {binding_limit:?}"),
        );
    }
}

#[test]
fn of_gated_units() {
    if !has_device() {
        return;
    }
    for act in [Activation::Silu, Activation::GeluTanh] {
        let mut plan = Plan::new(64, 96, (1, 1, 32));
        let gate = plan.biased_and_scaled(GgmlType::Q8_0, 64, 96, (false, 0.7));
        let up = plan.biased_and_scaled(GgmlType::Q8_0, 64, 96, (true, 4.0));
        plan.blocks.push(vec![Step::Glu { gate, up, act }]);
        check(plan, options(Precision::Exact), &format!("{act:?}"));
    }
}

#[test]
fn of_routers() {
    if !has_device() {
        return;
    }
    let mut plan = Plan::new(64, 2 * 32, (1, 1, 32));
    plan.hparams.n_expert = 6;
    plan.hparams.n_expert_used = 2;
    for bias in [false, true] {
        let router = plan.biased_and_scaled(GgmlType::F32, 64, 6, (bias, 0.4));
        plan.blocks.push(vec![Step::Route { router, normalize: bias }]);
    }
    let mut bench = plan.bench(options(Precision::Exact));
    for (block, n) in [(0, 1), (0, 9), (1, 1), (1, 40)] {
        let mut regs = bench.registers(n);
        let (got, _) = bench.on_gpu(block, &regs, n, 0..n);
        bench.in_reference(block, &mut regs, n);
        let error = nmse(&regs[&Reg::R], &got[&Reg::R]);
        assert!(error <= LIMIT, "block {block}, {n} tokens: {error:.1e}");
    }
}

/// The scale comes before the soft cap.
#[test]
fn of_the_head() {
    if !has_device() {
        return;
    }
    for soft_cap in [None, Some(0.7)] {
        let mut plan = Plan::new(64, 32, (1, 1, 32));
        plan.hparams.n_vocab = 301;
        let linear = plan.biased_and_scaled(GgmlType::Q8_0, 64, 301, (soft_cap.is_some(), 1.9));
        plan.blocks.push(vec![Step::Logits { linear, soft_cap }]);
        let mut bench = plan.bench(GpuOptions { binding_limit: Some(9000), ..options(Precision::Exact) });
        for rows in [0..1, 3..12] {
            let mut regs = bench.registers(12);
            let (_, got) = bench.on_gpu(0, &regs, 12, rows.clone());
            let want = bench.in_reference(0, &mut regs, 12);
            let error = nmse(&want[rows.start * 301..rows.end * 301], &got[..rows.len() * 301]);
            // tanh may be off by some units in the last place.
            assert!(error <= 1e-10, "rows {rows:?}, cap {soft_cap:?}: {error:.1e}");
        }
    }
}
