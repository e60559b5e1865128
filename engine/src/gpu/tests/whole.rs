//! What is not a step: sampling support, submissions, the cache of kernels, and errors.

use std::ops::Range;

use tandem_loader::GgmlType;
use tandem_models::{Reg, Rope, RopePairing, Step};

use super::super::exec::Output;
use super::super::op::Pass;
use super::super::{GpuError, GpuOptions, Selector};
use super::bench::{Bench, Plan, has_device, options};
use crate::backend::{Backend, Batch, Hidden};
use crate::error::Error;
use crate::model::Precision;

/// A head whose logits are the rows of its matrix times H; X is not used.
fn head(n_vocab: usize) -> Plan {
    let mut plan = Plan::new(64, 32, (1, 1, 32));
    plan.hparams.n_vocab = n_vocab;
    let norm = plan.norm(64);
    let linear = plan.linear(GgmlType::F32, 64, n_vocab, false);
    let norm = Step::Norm { norm, input: Reg::X, output: Reg::H, add: false };
    plan.blocks.push(vec![norm, Step::Logits { linear, soft_cap: None }]);
    plan.is_head = true;
    plan
}

fn run(bench: &mut Bench, x: &[f32], enough: Option<usize>) -> Hidden {
    let mut hidden = Hidden { x: x.to_vec(), enough, ..Hidden::default() };
    let n = x.len() / 64;
    let batch = Batch { tokens: &vec![0; n], start: 0, outputs: (n - 1, n) };
    bench.gpu.run(0..1, &batch, &mut hidden).unwrap();
    hidden
}

#[test]
fn the_most_likely_tokens() {
    if !has_device() {
        return;
    }
    for n_vocab in [1, 7, 300, 1024, 5000, 33_333] {
        let mut bench = head(n_vocab).bench(options(Precision::Exact));
        let x = bench.random.floats(3 * 64);
        let all = run(&mut bench, &x, None);
        assert_eq!((all.logits.len(), all.best.len()), (n_vocab, 0));
        let mut order: Vec<u32> = (0..n_vocab as u32).collect();
        order.sort_by(|a, b| all.logits[*b as usize].total_cmp(&all.logits[*a as usize]).then(a.cmp(b)));
        for k in [1, 2, 40, 256] {
            let got = run(&mut bench, &x, Some(k));
            let want: Vec<(u32, f32)> = order.iter().take(k).map(|id| (*id, all.logits[*id as usize])).collect();
            let best: Vec<(u32, f32)> = got.best.iter().map(|c| (c.id, c.logit)).collect();
            assert_eq!(best, want, "{k} of {n_vocab}");
            assert!(got.logits.is_empty());
        }
        // More than the device finds: all logits.
        let got = run(&mut bench, &x, Some(257));
        assert_eq!((got.logits, got.best.len()), (all.logits, 0), "257 of {n_vocab}");
    }
}

/// Where more logits are equal than there is room for, or none is a number, all are read.
#[test]
fn ties_and_nan_fall_back_to_all_logits() {
    if !has_device() {
        return;
    }
    let mut bench = head(5000).bench(options(Precision::Exact));
    let zero = run(&mut bench, &[0.0; 64], Some(40));
    assert_eq!((zero.logits, zero.best.len()), (vec![0.0; 5000], 0));
    let nan = run(&mut bench, &[f32::NAN; 64], Some(40));
    assert!(nan.logits.len() == 5000 && nan.logits.iter().all(|x| x.is_nan()) && nan.best.is_empty());
}

/// Some layers of attention.
fn layers(n_layer: usize) -> Plan {
    let mut plan = Plan::new(64, 32, (1, 1, 32));
    plan.hparams.n_layer = n_layer;
    plan.ropes = vec![Rope { pairing: RopePairing::NeoX, freqs: vec![0.7; 16], magnitude: 1.0 }];
    for layer in 0..n_layer {
        let [q, k, v] = [0; 3].map(|_| plan.linear(GgmlType::Q8_0, 64, 32, false));
        let linear = plan.linear(GgmlType::Q4_0, 32, 64, false);
        let norm = plan.norm(64);
        plan.blocks.push(vec![
            Step::Norm { norm, input: Reg::X, output: Reg::H, add: false },
            Step::Qkv { q, k, v },
            Step::Rope { rope: 0 },
            Step::StoreKv { layer },
            Step::Attend { layer, scale: 0.7, window: None },
            Step::Linear { linear, input: Reg::A, output: Reg::X, add: true },
        ]);
    }
    plan
}

/// Much work goes to the device in parts, and comes to the same.
#[test]
fn much_work_is_submitted_in_parts() {
    const N: usize = 40;
    if !has_device() {
        return;
    }
    let result = |max_work: u64| {
        let mut bench = layers(3).bench(GpuOptions { max_work, ..options(Precision::Exact) });
        let mut hidden = Hidden { x: bench.random.floats(N * 64), ..Hidden::default() };
        bench.gpu.run(0..3, &Batch { tokens: &[0; N], start: 0, outputs: (N, N) }, &mut hidden).unwrap();
        let pass = Pass { start: 0, rows: 0..N, shares: 1, angles: vec![] };
        let blocks: Vec<usize> = bench.gpu.parts(&[(0..3, pass)]).iter().map(Vec::len).collect();
        (hidden.x, blocks)
    };
    let (whole, blocks) = result(u64::MAX);
    assert_eq!(blocks, [3]);
    // Blocks of these tests list no weights: what counts is the attention of N queries over N keys and values of 32.
    let of_one = (N * 2 * 32 * N) as u64;
    for (max_work, blocks) in [(1, vec![1, 1, 1]), (2 * of_one, vec![2, 1]), (3 * of_one, vec![3])] {
        assert_eq!(result(max_work), (whole.clone(), blocks));
    }
}

/// The pass of the next token is recorded while one is computed. Where something else comes, it is recorded anew.
#[test]
fn passes_recorded_ahead() {
    if !has_device() {
        return;
    }
    // First position, tokens, blocks: on, back, several tokens at once, on from there, two runs a token.
    let runs = [(0, 1, 0..3), (1, 1, 0..3), (2, 1, 0..3), (1, 1, 0..3), (2, 3, 0..3), (5, 1, 0..3), (6, 1, 0..3)];
    let halves = (7..10).flat_map(|start| [(start, 1, 0..1), (start, 1, 1..3)]);
    let runs: Vec<_> = runs.into_iter().chain(halves).collect();
    let results = |ahead: bool| {
        let mut bench = layers(3).bench(options(Precision::Exact));
        let mut run = |(start, n, blocks): (usize, usize, Range<usize>)| {
            if !ahead {
                bench.gpu.ahead.clear();
            }
            let mut hidden = Hidden { x: bench.random.floats(n * 64), ..Hidden::default() };
            let batch = Batch { tokens: &vec![0; n], start, outputs: (n, n) };
            bench.gpu.run(blocks, &batch, &mut hidden).unwrap();
            hidden.x
        };
        runs.iter().cloned().map(&mut run).collect::<Vec<_>>()
    };
    assert_eq!(results(true), results(false));

    // What was recorded is what runs: with nothing recorded, X comes back as it was.
    let mut bench = layers(1).bench(options(Precision::Exact));
    for (start, changes) in [(0, true), (1, false), (3, true)] {
        let nothing = bench.gpu.record(&[], Output::X(1));
        if let Some(ahead) = bench.gpu.ahead.get_mut(&0) {
            ahead.commands = nothing;
        }
        let x = bench.random.floats(64);
        let mut hidden = Hidden { x: x.clone(), ..Hidden::default() };
        bench.gpu.run(0..1, &Batch { tokens: &[0], start, outputs: (1, 1) }, &mut hidden).unwrap();
        assert_eq!(hidden.x != x, changes, "position {start}");
    }
}

/// Compiled kernels come back from their file, and a damaged file does no harm.
#[test]
fn kernels_are_kept_on_disk() {
    if !has_device() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("tandem-kernels-{}", std::process::id()));
    let file = folder.join("pipelines.bin");
    let with_cache = GpuOptions { pipeline_cache: Some(file.clone()), ..options(Precision::Exact) };
    let mut results = Vec::new();
    for round in 0..4 {
        if round == 2 {
            std::fs::write(&file, b"not a cache").unwrap();
        }
        let mut bench = head(300).bench(with_cache.clone());
        let x = bench.random.floats(64);
        results.push(run(&mut bench, &x, None).logits);
        assert!(std::fs::metadata(&file).unwrap().len() > 16, "round {round}");
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_cannot_be_is_an_error() {
    if !has_device() {
        return;
    }
    let unsupported = |options: GpuOptions| {
        let mut plan = Plan::new(32, 32, (2, 1, 32));
        plan.blocks.push(vec![Step::StoreKv { layer: 0 }, Step::Attend { layer: 0, scale: 1.0, window: None }]);
        plan.try_bench(options).err().unwrap()
    };
    let named = GpuOptions { device: Selector::Name("no such device".into()), ..options(Precision::Exact) };
    assert!(matches!(unsupported(named), Error::Gpu(GpuError::NoSuchAdapter { .. })));
    let indexed = GpuOptions { device: Selector::Index(99), ..options(Precision::Exact) };
    assert!(matches!(unsupported(indexed), Error::Gpu(GpuError::NoSuchAdapter { .. })));
    for n_ctx in [1 << 30, 1 << 44, usize::MAX] {
        let error = unsupported(GpuOptions { n_ctx, ..options(Precision::Exact) });
        assert!(matches!(error, Error::Gpu(GpuError::Unsupported { .. })), "{n_ctx}: {error}");
    }
}
