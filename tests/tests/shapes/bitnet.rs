//! BitNet: tokens of ternary models, activations with one scale per token, and scales of whole matrices on a GPU.

use std::sync::Arc;

use tandem_engine::backend::Hidden;
use tandem_engine::cpu::{CpuBackend, CpuOptions, IsaLevel};
use tandem_engine::reference::Reference;
use tandem_engine::{Backend, Batch, KvType, Outputs, Precision};
use tandem_loader::GgmlType;
use tandem_models::{Block, BlockKind, Linear, Program, Reg, Step, Vector};

use super::file::{Random, Shape};
use super::{Way, nmse, open, session, ways};

const WIDTH: usize = 256;

fn ternary(types: &[GgmlType], random: &mut Random) -> Shape {
    Shape {
        arch: "bitnet",
        n_embd: WIDTH,
        n_head_kv: 2,
        group: 4,
        head_dim: 32,
        n_rot: 32,
        n_ff: vec![WIDTH; 2],
        n_vocab: 97,
        types: types.to_vec(),
        ..Shape::random(random)
    }
}

/// The best token, and how far it is ahead of the second.
fn best(logits: &[f32]) -> (u32, f32) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    (order[0] as u32, logits[order[0]] - logits[order[1]])
}

#[test]
fn ternary_models_say_what_the_reference_says() {
    let types = [&[GgmlType::TQ1_0][..], &[GgmlType::TQ2_0], &[GgmlType::TQ1_0, GgmlType::TQ2_0]];
    for (seed, types) in types.into_iter().enumerate() {
        let mut random = Random::new(40 + seed as u64);
        let shape = ternary(types, &mut random);
        let gguf = open(&shape, &mut random);
        let program = Program::from_gguf(&gguf).unwrap();
        let prompt: Vec<u32> = (0..7).map(|_| random.below(shape.n_vocab) as u32).collect();
        for way in ways(KvType::F16).into_iter().filter(|way| way.precision == Precision::Exact) {
            let mut reference = Reference::new(&program, &gguf).unwrap();
            let mut session = session(&gguf, way, 40);
            let mut tokens = prompt.clone();
            let mut compared = 0;
            for _ in 0..24 {
                let logits = reference.eval(&tokens);
                let last = &logits[logits.len() - shape.n_vocab..];
                let (want, gap) = best(last);
                let (got, _) = best(session.eval(&tokens, Outputs::Last).unwrap());
                // Exact sums are off by much less than any gap that is not a tie.
                let size = (last.iter().map(|x| x * x).sum::<f32>() / last.len() as f32).sqrt();
                if gap > 1e-4 * size {
                    assert_eq!(got, want, "{way:?}, {shape:?}");
                    compared += 1;
                }
                tokens = vec![want];
            }
            assert!(compared >= 20, "only {compared} of 24 tokens were no near ties: {way:?}, {shape:?}");
        }
    }
}

/// The middle of a feed-forward half: `X = Wgate norm(X)`.
fn one_product(program: &Program) -> (Program, Vector, Linear) {
    let half = program.blocks.iter().find(|b| b.kind == BlockKind::FeedForward(0)).unwrap();
    let (Step::Norm { norm, .. }, Step::Glu { gate, .. }) = (&half.steps[0], &half.steps[1]) else {
        panic!("bitnet's feed-forward half has changed")
    };
    let steps = vec![
        Step::Norm { norm: *norm, input: Reg::X, output: Reg::H, add: false },
        Step::Linear { linear: *gate, input: Reg::H, output: Reg::X, add: false },
    ];
    let product = Block { steps, ..half.clone() };
    (Program { blocks: vec![program.blocks[0].clone(), product], ..program.clone() }, *norm, *gate)
}

/// Rounds groups of `n` values to int8 by the largest of each.
fn rounded(row: &[f32], n: usize) -> Vec<f32> {
    let round = |x: &[f32]| {
        let d = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
        x.iter().map(|x| (x / d).round() * d).collect::<Vec<_>>()
    };
    row.chunks(n).flat_map(round).collect()
}

#[test]
fn activations_have_one_scale_per_token() {
    let mut random = Random::new(50);
    let shape = Shape { biases: false, ..ternary(&[GgmlType::TQ2_0], &mut random) };
    let gguf = open(&shape, &mut random);
    let (program, norm, gate) = one_product(&Program::from_gguf(&gguf).unwrap());
    let values = |id| gguf.dequantize(gguf.tensor(&program.weight(id).tensor).unwrap()).unwrap();
    let (norm_weight, matrix) = (values(norm.weight), values(gate.weight));
    let program = Arc::new(program);
    let tokens: Vec<u32> = (0..30).collect();
    let batch = Batch { tokens: &tokens, start: 0, outputs: (0, 0) };
    for isa in IsaLevel::ALL.into_iter().filter(|isa| isa.is_available()) {
        let Way { precision, kv_type, threads, .. } = ways(KvType::F16)[1];
        let options = CpuOptions { threads, precision, kv_type, n_ctx: 64, isa: Some(isa), inputs: None };
        let mut cpu = CpuBackend::load(&gguf, &program, std::slice::from_ref(&(0..2)), options, &mut |_| ()).unwrap();
        let mut hidden = Hidden::default();
        cpu.run(0..1, &batch, &mut hidden).unwrap();
        let x = hidden.x.clone();
        cpu.run(1..2, &batch, &mut hidden).unwrap();
        let with_groups_of = |n: usize| -> Vec<f32> {
            let rows = x.chunks_exact(WIDTH).flat_map(|x| {
                let rms = (x.iter().map(|x| x * x).sum::<f32>() / WIDTH as f32 + norm.eps).sqrt();
                let h: Vec<f32> = x.iter().zip(&norm_weight).map(|(x, w)| x / rms * w).collect();
                let h = rounded(&h, n);
                matrix
                    .chunks_exact(WIDTH)
                    .map(move |w| w.iter().zip(&h).map(|(w, h)| w * h).sum())
                    .collect::<Vec<f32>>()
            });
            rows.collect()
        };
        // A value within f32 rounding of the middle between two steps may go to the other: one of these 7,680 would be
        // 2e-8. Groups of 32 round other values.
        let (token, group) = (nmse(&with_groups_of(WIDTH), &hidden.x), nmse(&with_groups_of(32), &hidden.x));
        assert!(token < 1e-7 && group > 1e-6, "{isa:?}: {token:.1e} and {group:.1e}");
    }
}

/// A scale for a whole matrix, and none: every block on the GPU says what the reference says.
#[cfg(feature = "gpu")]
#[test]
fn a_gpu_multiplies_by_the_scales_of_matrices() {
    use tandem_engine::gpu::{GpuBackend, GpuOptions, adapters};
    if !adapters().iter().any(|a| a.unusable.is_none()) {
        return tandem_tests::skipped("no GPU, not even a software one");
    }
    let mut random = Random::new(60);
    for biases in [false, true] {
        let shape = Shape { biases, ..ternary(&[GgmlType::TQ2_0], &mut random) };
        let gguf = open(&shape, &mut random);
        let program = Arc::new(Program::from_gguf(&gguf).unwrap());
        let whole = 0..program.blocks.len();
        let options =
            GpuOptions { precision: Precision::Exact, kv_type: KvType::F32, n_ctx: 64, ..GpuOptions::default() };
        let mut gpu = GpuBackend::load(&gguf, &program, std::slice::from_ref(&whole), &options, &mut |_| ()).unwrap();
        let mut reference = Reference::new(&program, &gguf).unwrap();
        let tokens: Vec<u32> = (0..20).collect();
        let batch = Batch { tokens: &tokens, start: 0, outputs: (0, 20) };
        let mut hidden = Hidden::default();
        for block in whole {
            let mut got = hidden.clone();
            gpu.run(block..block + 1, &batch, &mut got).unwrap();
            reference.block(block, &tokens, &mut hidden);
            let pairs = [(&hidden.x, &got.x), (&hidden.logits, &got.logits)];
            let error = pairs.into_iter().filter(|(a, _)| !a.is_empty()).map(|(a, b)| nmse(a, b)).fold(0.0, f64::max);
            // f32 sums of a few hundred terms.
            assert!(error <= 1e-11, "block {block}, scales {biases}: {error:.1e}");
        }
    }
}
