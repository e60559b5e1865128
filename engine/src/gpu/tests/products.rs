//! Matrix products of every weight type.

use tandem_loader::GgmlType;
use tandem_models::{Reg, Step};

use super::super::GpuOptions;
use super::bench::{Plan, has_device, nmse, options, types};
use crate::model::Precision;

/// f32 sums of some hundred terms, in an order of their own: what was seen is below 1e-13. An element that is off by a
/// quant is an error of 1e-5 and more.
const LIMIT: f64 = 1e-11;

/// Tokens that go through each kernel: one, few, narrow tiles, wide tiles; whole tiles and parts of them.
const TOKENS: [usize; 7] = [1, 2, 5, 9, 33, 64, 70];

/// Products of one type, from H to X, of several shapes: exact and int8, by both ways to sum, whole and split.
fn check(ty: GgmlType, subgroups: bool, binding_limit: Option<u64>) {
    for precision in [Precision::Exact, Precision::Fast] {
        // A row length that is a whole number of blocks; for plain numbers one that is odd.
        let n_in = if ty.block_size() == 1 { 75 } else { 3 * ty.block_size().max(64) };
        let mut plan = Plan::new(n_in, 32, (1, 1, 32));
        for bias in [false, true] {
            for add in [false, true] {
                let linear = plan.linear(ty, n_in, n_in, bias);
                plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::X, add }]);
            }
        }
        let subgroups = Some(subgroups);
        let mut bench = plan.bench(GpuOptions { subgroups, binding_limit, ..options(precision) });
        let int8 = (precision == Precision::Fast && ty.block_size() > 1).then_some(Reg::H);
        for block in 0..4 {
            for n in TOKENS {
                bench.check(
                    block,
                    n,
                    int8,
                    LIMIT,
                    &format!("{ty}, {precision:?}, block {block}, split {binding_limit:?}"),
                );
            }
        }
    }
}

#[test]
fn every_type_with_subgroups() {
    if has_device() {
        types().into_iter().for_each(|ty| check(ty, true, None));
    }
}

#[test]
fn every_type_without_subgroups() {
    if has_device() {
        types().into_iter().for_each(|ty| check(ty, false, None));
    }
}

#[test]
fn every_type_split_by_rows() {
    if has_device() {
        types().into_iter().for_each(|ty| check(ty, true, Some(40 << 10)));
        // Parts that are smaller than a tile.
        check(GgmlType::Q6_K, true, Some(10_000));
        check(GgmlType::F16, true, Some(3000));
    }
}

/// Row lengths and row counts in which little is a multiple of anything.
#[test]
fn odd_shapes() {
    if !has_device() {
        return;
    }
    for (ty, n_in, n_out) in [
        (GgmlType::F32, 1, 1),
        (GgmlType::F32, 33, 5),
        (GgmlType::F16, 31, 131),
        (GgmlType::BF16, 2047, 3),
        (GgmlType::Q8_0, 32, 1),
        (GgmlType::Q4_1, 576, 67),
        (GgmlType::Q5_0, 1056, 130),
        (GgmlType::Q4_K, 256, 2),
        (GgmlType::Q6_K, 2560, 65),
    ] {
        for precision in [Precision::Exact, Precision::Fast] {
            let mut plan = Plan::new(n_in, n_out, (1, 1, 32));
            let linear = plan.linear(ty, n_in, n_out, true);
            plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::F, add: false }]);
            let mut bench = plan.bench(options(precision));
            let int8 = (precision == Precision::Fast && ty.block_size() > 1).then_some(Reg::H);
            for n in [1, 3, 17, 40] {
                bench.check(0, n, int8, LIMIT, &format!("{ty} [{n_out}, {n_in}], {precision:?}"));
            }
        }
    }
}

/// Q, K and V of the same type are one product, of different types several.
#[test]
fn projections_of_mixed_types() {
    if !has_device() {
        return;
    }
    use GgmlType::*;
    for (q, k, v) in [(Q4_K, Q4_K, Q4_K), (Q4_K, Q4_K, Q6_K), (F16, Q8_0, Q8_0), (Q4_0, Q5_1, F32)] {
        for bias in [false, true] {
            let mut plan = Plan::new(256, 32, (6, 2, 10));
            let (q, k, v) =
                (plan.linear(q, 256, 60, bias), plan.linear(k, 256, 20, !bias), plan.linear(v, 256, 20, bias));
            plan.blocks.push(vec![Step::Qkv { q, k, v }]);
            let mut bench = plan.bench(options(Precision::Exact));
            for n in [1, 7, 40] {
                bench.check(0, n, None, LIMIT, &format!("Q, K, V, bias {bias}"));
            }
        }
    }
}

/// Logits: only of the rows asked for, from the first row of the output on, with and without soft cap.
#[test]
fn logits_of_some_rows() {
    if !has_device() {
        return;
    }
    for soft_cap in [None, Some(0.7)] {
        let mut plan = Plan::new(64, 32, (1, 1, 32));
        plan.hparams.n_vocab = 301;
        let linear = plan.linear(GgmlType::Q8_0, 64, 301, soft_cap.is_some());
        plan.blocks.push(vec![Step::Logits { linear, soft_cap }]);
        let mut bench = plan.bench(GpuOptions { binding_limit: Some(9000), ..options(Precision::Exact) });
        for rows in [0..1, 11..12, 3..12, 0..12] {
            let mut regs = bench.registers(12);
            let (_, got) = bench.on_gpu(0, &regs, 12, rows.clone());
            let want = bench.in_reference(0, &mut regs, 12);
            let error = nmse(&want[rows.start * 301..rows.end * 301], &got[..rows.len() * 301]);
            // tanh may be off by some units in the last place.
            assert!(error <= 1e-10, "rows {rows:?}, cap {soft_cap:?}: {error:.1e}");
        }
    }
}
