//! Norms, gated units, and what int8 activations are made of.

use tandem_loader::GgmlType;
use tandem_models::{Activation, Reg, Step};

use super::super::GpuOptions;
use super::bench::{Plan, has_device, nmse, options, round_int8};
use crate::model::Precision;

/// f32 sums of some hundred terms, and functions that may be off by some units in the last place.
const LIMIT: f64 = 1e-11;

#[test]
fn norms() {
    if !has_device() {
        return;
    }
    for n_embd in [1, 20, 33, 256, 300, 1000] {
        let mut plan = Plan::new(n_embd, 32, (1, 1, 32));
        for (input, output, add) in [(Reg::X, Reg::H, false), (Reg::H, Reg::X, true), (Reg::X, Reg::X, false)] {
            let norm = plan.norm(n_embd);
            plan.blocks.push(vec![Step::Norm { norm, input, output, add }]);
        }
        let mut bench = plan.bench(options(Precision::Exact));
        for (block, n) in [(0, 1), (0, 5), (1, 1), (1, 9), (2, 3), (2, 40)] {
            bench.check(block, n, None, LIMIT, &format!("norm of {n_embd}, block {block}"));
        }
    }
}

/// A norm whose result is multiplied also quantizes it: the product must be that of the rounded result.
#[test]
fn a_norm_that_quantizes() {
    if !has_device() {
        return;
    }
    for n_embd in [64, 352, 2080] {
        let mut plan = Plan::new(n_embd, 48, (1, 1, 32));
        let norm = plan.norm(n_embd);
        let linear = plan.linear(GgmlType::Q8_0, n_embd, 48, false);
        plan.blocks.push(vec![
            Step::Norm { norm, input: Reg::X, output: Reg::H, add: false },
            Step::Linear { linear, input: Reg::H, output: Reg::F, add: false },
        ]);
        let mut bench = plan.bench(options(Precision::Fast));
        for n in [1, 12, 70] {
            let mut regs = bench.registers(n);
            let (got, _) = bench.on_gpu(0, &regs, n, 0..n);
            bench.in_reference(0, &mut regs, n);
            let error = nmse(&regs[&Reg::H], &got[&Reg::H]);
            assert!(error <= LIMIT, "H of {n_embd}: {error:.1e}");
            // From the device's own H: a quant that falls on the other side of a tie is no error of the product.
            let mut rounded = got[&Reg::H].clone();
            round_int8(&mut rounded);
            regs.insert(Reg::H, rounded);
            let step = bench.program.blocks[0].steps[1].clone();
            bench.reference.step(&step, &vec![0; n], &mut regs, &mut Vec::new());
            let error = nmse(&regs[&Reg::F], &got[&Reg::F]);
            assert!(error <= LIMIT, "F of {n_embd}: {error:.1e}");
        }
    }
}

#[test]
fn gated_units() {
    if !has_device() {
        return;
    }
    use GgmlType::*;
    for act in [Activation::Silu, Activation::GeluTanh] {
        // The second of two layers is narrower: what the first left of F must not show.
        for (n_ff, gate, up, down) in
            [(288, Q8_0, Q8_0, Q8_0), (100, F32, F32, F32), (17, F16, BF16, F16), (256, Q4_K, Q6_K, Q5_K)]
        {
            for precision in [Precision::Exact, Precision::Fast] {
                let mut plan = Plan::new(256, 300, (1, 1, 32));
                for n_ff in [300, n_ff] {
                    let wide = n_ff == 300;
                    let (gate, up, down) = if wide { (F32, F32, F32) } else { (gate, up, down) };
                    let gate = plan.linear(gate, 256, n_ff, false);
                    let up = plan.linear(up, 256, n_ff, false);
                    let linear = plan.linear(down, n_ff, 256, false);
                    plan.blocks.push(vec![
                        Step::Glu { gate, up, act },
                        Step::Linear { linear, input: Reg::F, output: Reg::X, add: true },
                    ]);
                }
                let mut bench = plan.bench(GpuOptions { max_batch: 80, ..options(precision) });
                for n in [1, 6, 40] {
                    check_unit(&mut bench, 0, n, &format!("{act:?} of 300, {precision:?}"));
                    check_unit(&mut bench, 1, n, &format!("{act:?} of {n_ff}, {precision:?}"));
                }
            }
        }
    }
}

/// Only X is compared: F is as wide as its layer, not as its register. Int8 activations of 256 weights cost up to
/// 1/254 of a group's largest, squared and averaged about 2e-5 of the power, three times over.
fn check_unit(bench: &mut super::bench::Bench, block: usize, n: usize, what: &str) {
    let limit = if what.contains("Fast") { 3e-4 } else { LIMIT };
    let mut regs = bench.registers(n);
    let (got, _) = bench.on_gpu(block, &regs, n, 0..n);
    bench.in_reference(block, &mut regs, n);
    let error = nmse(&regs[&Reg::X], &got[&Reg::X]);
    assert!(error <= limit, "{what}, {n} tokens: {error:.1e}");
}

/// Zeros, tiny and huge values, infinities and NaN: none may turn into another.
#[test]
fn extreme_activations() {
    if !has_device() {
        return;
    }
    let mut plan = Plan::new(64, 32, (1, 1, 32));
    let linear = plan.linear(GgmlType::Q8_0, 64, 64, false);
    plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::X, add: false }]);
    let mut bench = plan.bench(options(Precision::Fast));
    for (value, wanted) in [
        (0.0, "zero"),
        (1e-38, "zero"),
        (1e-20, "finite"),
        (1e30, "finite"),
        (f32::INFINITY, "nan"),
        (f32::NEG_INFINITY, "nan"),
        (f32::NAN, "nan"),
    ] {
        let mut regs = bench.registers(1);
        let h = regs.get_mut(&Reg::H).unwrap();
        h.fill(0.0);
        h[40] = value;
        let (got, _) = bench.on_gpu(0, &regs, 1, 0..1);
        let fits = |x: &f32| match wanted {
            "zero" => *x == 0.0,
            "finite" => x.is_finite(),
            _ => x.is_nan(),
        };
        let x = &got[&Reg::X];
        assert!(x.iter().all(fits), "{value}: {x:?}");
        assert_eq!(x.iter().any(|x| *x != 0.0), wanted != "zero", "{value}");
    }
}
