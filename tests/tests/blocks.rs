//! Each block of the small models by itself: the CPU backend against the reference executor, from the same input.
//!
//! Where whole-model logits say that something is wrong, this says in which block.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use std::sync::Arc;

use tandem_engine::backend::Hidden;
use tandem_engine::cpu::{CpuBackend, CpuOptions, IsaLevel};
use tandem_engine::reference::Reference;
use tandem_engine::{Backend, Batch, KvType, Precision};
use tandem_loader::Gguf;
use tandem_models::{BlockKind, Program};

/// sum((a-b)^2) / sum(a^2) with `a` the reference.
fn nmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let diff: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    diff / a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>()
}

/// Runs two batches through every block and compares what each block makes of the reference's input.
fn check(name: &str, gguf: &Arc<Gguf>, options: CpuOptions, limit: f64) {
    let program = Arc::new(Program::from_gguf(gguf).unwrap());
    let n_blocks = program.blocks.len();
    let whole = 0..n_blocks;
    let mut cpu = CpuBackend::load(gguf, &program, &[whole], options.clone(), &mut |_| ()).unwrap();
    let mut reference = Reference::new(&program, gguf).unwrap();
    let n_vocab = program.hparams.n_vocab as u32;
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % n_vocab).collect();
    for range in [0..23, 23..40] {
        let part = &tokens[range.clone()];
        let batch = Batch { tokens: part, start: range.start, outputs: (0, part.len()) };
        let mut hidden = Hidden::default();
        for block in 0..n_blocks {
            let mut got = hidden.clone();
            cpu.run(block..block + 1, &batch, &mut got).unwrap();
            reference.block(block, part, &mut hidden);
            let kind = program.blocks[block].kind;
            let error = match kind {
                BlockKind::Head => nmse(&hidden.logits, &got.logits),
                BlockKind::Embed | BlockKind::Attention(_) | BlockKind::FeedForward(_) => nmse(&hidden.x, &got.x),
            };
            let (precision, isa) = (options.precision, options.isa);
            assert!(error <= limit, "{name}: block {kind} diverges: {error:.1e} ({precision:?}, {isa:?})");
        }
    }
}

#[test]
fn every_block_equals_the_reference() {
    let Some(dir) = tandem_tests::fixtures("archs") else { return };
    for name in tandem_tests::BLOCK_MODELS {
        let gguf = Arc::new(Gguf::open(&dir.join(format!("{name}.gguf"))).unwrap());
        for isa in IsaLevel::ALL.into_iter().filter(|isa| isa.is_available()) {
            // f32 sums of a few hundred terms: 1e-12 is their rounding.
            let exact = || CpuOptions {
                threads: 2,
                precision: Precision::Exact,
                kv_type: KvType::F32,
                n_ctx: 64,
                isa: Some(isa),
                inputs: None,
            };
            check(name, &gguf, exact(), 1e-11);
            // The cache rounded to f16: 2^-11 relative, squared, of the attention's share of X.
            let fast = CpuOptions { precision: Precision::Fast, kv_type: KvType::F16, ..exact() };
            check(name, &gguf, fast, 1e-6);
        }
    }
}
