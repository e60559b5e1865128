//! The check of one device against the other: what is right passes, and a wrong kernel is found and named. Skipped aloud
//! where there is no adapter, not even a software one.

#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use std::sync::Arc;

use tandem_engine::placement::{GpuLayers, Setup, Wanted};
use tandem_engine::verify::{BlockError, Divergence, limit, spread_tokens, verify, verify_with};
use tandem_engine::{Error, LoadOptions, Precision};
use tandem_loader::Gguf;
use tandem_models::{BlockKind, Program};

fn fixture(name: &str) -> Option<Arc<Gguf>> {
    let dir = tandem_tests::fixtures("archs")?;
    if tandem_engine::gpu::adapters().iter().all(|a| a.unusable.is_some()) {
        tandem_tests::skipped("no GPU, not even a software one");
        return None;
    }
    Some(Arc::new(Gguf::open(&dir.join(format!("{name}.gguf"))).unwrap()))
}

fn options(precision: Precision, layers: GpuLayers) -> LoadOptions {
    LoadOptions { precision, wanted: Wanted { layers, ..Wanted::default() }, ..LoadOptions::default() }
}

fn tokens(gguf: &Gguf) -> Vec<u32> {
    spread_tokens(Program::from_gguf(gguf).unwrap().hparams.n_vocab)
}

#[test]
fn right_kernels_pass() {
    for name in ["llama", "qwen3", "gemma3"] {
        let Some(gguf) = fixture(name) else { return };
        for precision in [Precision::Exact, Precision::Fast] {
            let mut blocks = Vec::new();
            let mut worst = 0.0f64;
            let mut report = |error: &BlockError| {
                blocks.push(error.kind);
                worst = worst.max(error.worst());
                Ok(())
            };
            let options = options(precision, GpuLayers::Auto);
            assert_eq!(verify(&gguf, &options, &tokens(&gguf), limit(precision), &mut report).unwrap(), None, "{name}");
            println!("{name} {precision:?}: at most {worst:.1e}");
            assert_eq!((blocks.first(), blocks.last()), (Some(&BlockKind::Embed), Some(&BlockKind::Head)));
        }
    }
}

#[test]
fn only_what_the_gpu_would_run_is_compared() {
    let Some(gguf) = fixture("llama") else { return };
    let mut blocks = Vec::new();
    let options = options(Precision::Exact, GpuLayers::Count(1));
    let mut report = |error: &BlockError| {
        blocks.push(error.kind.to_string());
        Ok(())
    };
    verify(&gguf, &options, &tokens(&gguf), 1e-8, &mut report).unwrap();
    let n_layer = Program::from_gguf(&gguf).unwrap().hparams.n_layer;
    assert_eq!(blocks, [format!("attn.{}", n_layer - 1), format!("ffn.{}", n_layer - 1)]);
}

#[test]
fn the_whole_model_need_not_fit_but_a_block_must() {
    let Some(gguf) = fixture("llama") else { return };
    let mut options = options(Precision::Exact, GpuLayers::Auto);
    options.wanted.vram_budget = Some(1);
    let tokens = tokens(&gguf);
    let refused = verify(&gguf, &options, &tokens, limit(Precision::Exact), &mut |_| Ok(())).unwrap_err();
    assert!(matches!(refused, Error::Placement(_)) && refused.to_string().contains("embed alone"), "{refused}");
    let n_blocks = Program::from_gguf(&gguf).unwrap().blocks.len();
    // The least that is enough.
    let mut budget = 1 << 10;
    let compared = loop {
        options.wanted.vram_budget = Some(budget);
        let mut n = 0;
        let mut report = |_: &BlockError| {
            n += 1;
            Ok(())
        };
        match verify(&gguf, &options, &tokens, limit(Precision::Exact), &mut report) {
            Ok(diverged) => {
                assert_eq!(diverged, None);
                break n;
            }
            Err(error) => assert!(matches!(error, Error::Placement(_)), "{error}"),
        }
        budget += budget / 8;
    };
    assert_eq!(compared, n_blocks);
    let first = Setup::new(&gguf, &options).unwrap().fitting(&gguf, 0).unwrap();
    assert!(first.len() < n_blocks, "all {n_blocks} blocks fit in {budget} bytes");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let Some(gguf) = fixture("llama") else { return };
    let nothing = options(Precision::Exact, GpuLayers::Count(0));
    let refused = verify(&gguf, &nothing, &tokens(&gguf), 1e-8, &mut |_| Ok(())).unwrap_err();
    assert!(refused.to_string().contains("nothing is placed on the GPU"), "{refused}");
    let all = options(Precision::Exact, GpuLayers::Auto);
    let refused = verify(&gguf, &all, &[1, 1 << 20], 1e-8, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(refused, Error::BadToken { .. }), "{refused}");
    let stopped = verify(&gguf, &all, &tokens(&gguf), 1e-8, &mut |_| Err(Error::Interrupted)).unwrap_err();
    assert!(matches!(stopped, Error::Interrupted), "{stopped}");
}

/// What verifying says of a model one of whose kernels is wrong.
fn planted(gguf: &Arc<Gguf>, edit: fn(&str, String) -> String) -> Divergence {
    let mut setup = Setup::new(gguf, &options(Precision::Exact, GpuLayers::Auto)).unwrap();
    setup.gpu.edit_kernel = Some(edit);
    verify_with(gguf, &setup, &tokens(gguf), limit(Precision::Exact), &mut |_| Ok(())).unwrap().unwrap()
}

/// Between the steps of experts, rows are those of (token, expert) pairs.
#[test]
fn wrong_experts_are_named() {
    for name in ["llama-moe", "qwen2moe"] {
        let Some(gguf) = fixture(name) else { return };
        let found = planted(&gguf, |file, source| match file {
            "combine.wgsl" => replace(&source, "y[at] = sum", "y[at] = 1.01 * sum"),
            _ => source,
        });
        assert_eq!(found.step.map(|s| s.1), Some("expert down"), "{name}: {found:?}");
    }
}

/// Replaces a text that must be there.
fn replace(source: &str, from: &str, to: &str) -> String {
    assert!(source.contains(from), "the kernel has changed: plant another error than in `{from}`");
    source.replace(from, to)
}

#[test]
fn wrong_kernels_are_found_and_named() {
    let Some(gguf) = fixture("llama") else { return };
    type Edit = fn(&str, String) -> String;
    let plants: [(Edit, &str, &str); 5] = [
        (
            |file, source| match file {
                "norm.wgsl" => replace(&source, "1.0 / sqrt(", "0.99 / sqrt("),
                _ => source,
            },
            "attn.0",
            "norm",
        ),
        (
            |file, source| match file {
                "heads.wgsl" => replace(&source, "x * turn.x - y * turn.y", "x * turn.x + y * turn.y"),
                _ => source,
            },
            "attn.0",
            "rope",
        ),
        (
            // Only variants that store have it. What is stored wrongly shows in attention.
            |file, source| match file {
                "heads.wgsl" => source.replace("p.start + id.x", "p.start + id.x + 1u"),
                _ => source,
            },
            "attn.0",
            "attend",
        ),
        (
            |file, source| match file {
                "attend.wgsl" => replace(&source, "mix[i] += weight * v", "mix[i] += 1.01 * weight * v"),
                _ => source,
            },
            "attn.0",
            "attend",
        ),
        (
            |file, source| match file {
                "glu.wgsl" => replace(&source, "1.0 + exp(-x)", "1.01 + exp(-x)"),
                _ => source,
            },
            "ffn.0",
            "glu",
        ),
    ];
    for (edit, block, step) in plants {
        let found = planted(&gguf, edit);
        assert_eq!((found.block.to_string().as_str(), found.step.map(|s| s.1)), (block, Some(step)), "{found:?}");
    }
}
