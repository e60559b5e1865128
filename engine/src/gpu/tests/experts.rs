//! Mixtures of experts.

use tandem_loader::GgmlType;
use tandem_models::{Activation, Reg, Step};

use super::super::GpuOptions;
use super::bench::{Bench, Plan, has_device, nmse, options};
use crate::model::Precision;

/// f32 sums of some hundred terms, and exponentials that may be off by some units in the last place.
const LIMIT: f64 = 1e-11;

/// Tokens that go to their experts one by one, in narrow tiles and in wide ones.
const TOKENS: [usize; 5] = [1, 4, 5, 23, 75];

struct Shape {
    /// Experts, and how many of them a token uses.
    experts: (usize, usize),
    n_embd: usize,
    n_ff: usize,
    types: [GgmlType; 3],
    /// Whether the router has a bias.
    bias: bool,
}

/// One layer's experts: routing, hidden, and sum.
fn plan(shape: &Shape, normalize: bool) -> Plan {
    let (n_expert, n_used) = shape.experts;
    let mut plan = Plan::new(shape.n_embd, n_used * shape.n_ff, (1, 1, 32));
    plan.hparams.n_expert = n_expert;
    plan.hparams.n_expert_used = n_used;
    let [gate, up, down] = shape.types;
    let router = plan.linear(GgmlType::F32, shape.n_embd, n_expert, shape.bias);
    let gate = plan.experts(gate, shape.n_embd, shape.n_ff);
    let up = plan.experts(up, shape.n_embd, shape.n_ff);
    let down = plan.experts(down, shape.n_ff, shape.n_embd);
    let route = Step::Route { router, normalize };
    plan.blocks.push(vec![route.clone()]);
    for add in [false, true] {
        let glu = Step::ExpertGlu { gate, up, act: Activation::Silu };
        plan.blocks.push(vec![route.clone(), glu, Step::ExpertDown { down, output: Reg::X, add }]);
    }
    plan
}

fn check(bench: &mut Bench, block: usize, reg: Reg, n: usize, limit: f64, what: &str) {
    let mut regs = bench.registers(n);
    let (got, _) = bench.on_gpu(block, &regs, n, 0..n);
    bench.in_reference(block, &mut regs, n);
    let error = nmse(&regs[&reg], &got[&reg]);
    assert!(error <= limit, "{what}, {n} tokens: {reg:?} is off by {error:.1e}");
}

#[test]
fn experts() {
    if !has_device() {
        return;
    }
    use GgmlType::*;
    for (experts, n_embd, n_ff, types) in [
        ((1, 1), 20, 17, [F32, F32, F32]),
        ((5, 2), 33, 40, [F16, F32, BF16]),
        ((8, 2), 64, 96, [Q4_0, Q4_0, Q8_0]),
        ((16, 4), 256, 256, [Q4_K, Q4_K, Q6_K]),
        ((70, 8), 256, 64, [Q4_K, Q5_K, Q5_1]),
    ] {
        let shape = Shape { experts, n_embd, n_ff, types, bias: true };
        for precision in [Precision::Exact, Precision::Fast] {
            // Int8 activations: up to 1/254 of a group's largest, squared and averaged about 2e-5 of the power, twice.
            let limit = if precision == Precision::Fast { 3e-4 } else { LIMIT };
            for normalize in [false, true] {
                let mut bench = plan(&shape, normalize).bench(options(precision));
                let what = format!("{experts:?} experts of {types:?}, {precision:?}, normalized: {normalize}");
                for n in TOKENS {
                    check(&mut bench, 0, Reg::R, n, LIMIT, &what);
                    check(&mut bench, 1, Reg::X, n, limit, &what);
                    check(&mut bench, 2, Reg::X, n, limit, &what);
                }
            }
        }
    }
}

/// Experts that do not all fit in one binding.
#[test]
fn experts_in_parts() {
    if !has_device() {
        return;
    }
    let shape = Shape { experts: (7, 3), n_embd: 32, n_ff: 64, types: [GgmlType::Q8_0; 3], bias: false };
    let limit = GpuOptions { binding_limit: Some(13_000), ..options(Precision::Exact) };
    let mut bench = plan(&shape, true).bench(limit);
    assert!(bench.gpu.buffers.matrices.iter().any(|parts| parts.len() == 4));
    for n in TOKENS {
        check(&mut bench, 2, Reg::X, n, LIMIT, "experts in parts");
    }
}

/// Of equal logits the first; what is no number is chosen and seen.
#[test]
fn routing_of_ties_and_of_nan() {
    if !has_device() {
        return;
    }
    let shape = Shape { experts: (70, 3), n_embd: 20, n_ff: 17, types: [GgmlType::F32; 3], bias: false };
    let mut bench = plan(&shape, true).bench(options(Precision::Exact));
    let mut regs = bench.registers(2);
    // Without input all logits are 0; with NaN all of them are NaN.
    let h = regs.get_mut(&Reg::H).unwrap();
    h[..20].fill(0.0);
    h[20..].fill(f32::NAN);
    let (got, _) = bench.on_gpu(0, &regs, 2, 0..2);
    bench.in_reference(0, &mut regs, 2);
    assert!(nmse(&regs[&Reg::R][..70], &got[&Reg::R][..70]) <= LIMIT);
    let nan = |weights: &[f32]| weights.iter().map(|w| w.is_nan()).collect::<Vec<_>>();
    assert_eq!(nan(&regs[&Reg::R][70..]), nan(&got[&Reg::R][70..]));
    assert_eq!(nan(&got[&Reg::R][70..]).iter().position(|nan| !nan), Some(3));
}

/// A shared expert: a gated unit whose hidden is scaled by each token's share.
#[test]
fn shared_experts() {
    if !has_device() {
        return;
    }
    for (ty, n_ff, limit) in [(GgmlType::F32, 40, LIMIT), (GgmlType::Q8_0, 64, 3e-4)] {
        let mut plan = Plan::new(64, 80, (1, 1, 32));
        let (gate, up) = (plan.linear(ty, 64, n_ff, false), plan.linear(ty, 64, n_ff, false));
        let weight = plan.vector(64);
        let linear = plan.linear(ty, n_ff, 64, false);
        plan.blocks.push(vec![
            Step::Glu { gate, up, act: Activation::Silu },
            Step::SigmoidGate { weight, n_ff },
            Step::Linear { linear, input: Reg::F, output: Reg::X, add: true },
        ]);
        let mut bench = plan.bench(options(Precision::Fast));
        for n in [1, 6, 40] {
            check(&mut bench, 0, Reg::X, n, limit, &format!("a shared expert of {ty}"));
        }
    }
}
