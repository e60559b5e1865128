//! Matrix products of every weight type.

use tandem_loader::GgmlType;
use tandem_models::{Reg, Step};

use super::super::GpuOptions;
use super::bench::{Plan, has_device, nmse, options, types};
use crate::model::Precision;

/// f32 sums of some hundred terms, in an order of their own: what was seen is below 1e-13. An element that is off by a
/// quant is an error of 1e-5 and more.
const LIMIT: f64 = 1e-11;

/// Rows of the matrices: two tiles of 64, and a part of one.
const N_OUT: usize = 131;

/// Tokens that go through each kernel: one, few, narrow tiles, wide tiles; whole tiles and parts of them.
const TOKENS: [usize; 7] = [1, 2, 5, 9, 33, 64, 70];

/// Products of one type, from H to F: with and without a bias, written and added. What decodes weights knows nothing of
/// that, so the two types that do everything else differently stand for all.
fn check(ty: GgmlType, precisions: &[Precision], tokens: &[usize], subgroups: bool, binding_limit: Option<u64>) {
    for &precision in precisions {
        // A row length that is a whole number of blocks; for plain numbers one that is odd.
        let n_in = if ty.block_size() == 1 { 75 } else { (3 * ty.block_size()).max(192) };
        let mut plan = Plan::new(n_in, N_OUT, (1, 1, 32));
        let all = [(false, false), (true, false), (false, true), (true, true)];
        let is_example = matches!(ty, GgmlType::F16 | GgmlType::Q4_1);
        for &(bias, add) in if is_example { &all[..] } else { &all[3..] } {
            let linear = plan.linear(ty, n_in, N_OUT, bias);
            plan.blocks.push(vec![Step::Linear { linear, input: Reg::H, output: Reg::F, add }]);
        }
        let subgroups = Some(subgroups);
        let mut bench = plan.bench(GpuOptions { subgroups, binding_limit, ..options(precision) });
        let int8 = (precision == Precision::Fast && ty.block_size() > 1).then_some(Reg::H);
        if binding_limit.is_some() {
            assert!(bench.gpu.buffers.matrices.iter().all(|parts| parts.len() > 1), "{ty} is in one part");
        }
        for block in 0..bench.program.blocks.len() {
            for &n in tokens {
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

const BOTH: [Precision; 2] = [Precision::Exact, Precision::Fast];

#[test]
fn every_type() {
    if has_device() {
        types().into_iter().for_each(|ty| check(ty, &BOTH, &TOKENS, true, None));
    }
}

/// Only the kernel for few tokens sums across threads.
#[test]
fn every_type_without_subgroups() {
    if has_device() {
        types().into_iter().for_each(|ty| check(ty, &BOTH, &TOKENS[..3], false, None));
    }
}

#[test]
fn every_type_split_by_rows() {
    if has_device() {
        let split = |ty, limit| check(ty, &[Precision::Fast], &[1, 9, 70], true, Some(limit));
        let table = |ty| tandem_shaders::Format::of(ty).map_or(0, |format| format.table.n_bytes() as u64);
        types().into_iter().for_each(|ty| split(ty, table(ty) + 6000));
        // Parts that are smaller than a tile.
        split(GgmlType::Q6_K, 3000);
        split(GgmlType::F16, 1000);
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

/// The head's int8 input has a remainder, so that it is as good as 15 bits: quantized by the norm before it, and by itself.
#[test]
fn the_head_reads_what_int8_leaves_over() {
    if !has_device() {
        return;
    }
    for (ty, n_in, n_out) in [(GgmlType::Q8_0, 96, 301), (GgmlType::Q4_K, 256, 70), (GgmlType::IQ2_XS, 512, 64)] {
        let mut plan = Plan::new(n_in, 32, (1, 1, 32));
        plan.hparams.n_vocab = n_out;
        let linear = plan.linear(ty, n_in, n_out, true);
        let norm = plan.norm(n_in);
        let head = Step::Logits { linear, soft_cap: None };
        plan.blocks.push(vec![head.clone()]);
        plan.blocks.push(vec![Step::Norm { norm, input: Reg::X, output: Reg::H, add: false }, head]);
        let mut bench = plan.bench(options(Precision::Fast));
        // Each through a kernel of its own: one token, few, narrow tiles, wide tiles.
        for rows in [4..5, 3..9, 1..21, 0..70] {
            for block in 0..2 {
                let mut regs = bench.registers(70);
                let (_, got) = bench.on_gpu(block, &regs, 70, rows.clone());
                let want = bench.in_reference(block, &mut regs, 70);
                let error = nmse(&want[rows.start * n_out..rows.end * n_out], &got[..rows.len() * n_out]);
                // Of numbers spread evenly, int8 twice loses (1 / 254 / 127)^2 / 12 of a third: 2.4e-10; a norm's
                // weights spread them less evenly. Int8 once loses 1.5e-5.
                assert!(error <= 2e-9, "{ty}, block {block}, rows {rows:?}: {error:.1e}");
            }
        }
    }
}
