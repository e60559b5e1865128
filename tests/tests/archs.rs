//! Every architecture fixture against llama.cpp's f32 logits: the reference executor, the exact and the fast path.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use std::sync::Arc;

use serde_json::Value;
use tandem_engine::reference::Reference;
use tandem_engine::{KvType, LoadOptions, Model, Precision, Session};
use tandem_loader::Gguf;
use tandem_models::{ARCHITECTURES, Program};

/// sum((a-b)^2) / sum(a^2) with `a` the reference.
fn nmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let diff: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    diff / a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>()
}

fn all_logits(gguf: &Arc<Gguf>, precision: Precision, threads: usize, batch: usize, tokens: &[u32]) -> Vec<f32> {
    let options = LoadOptions { precision, threads: Some(threads), ..LoadOptions::default() };
    evaluate(gguf, &options, batch, tokens)
}

fn evaluate(gguf: &Arc<Gguf>, options: &LoadOptions, batch: usize, tokens: &[u32]) -> Vec<f32> {
    let mut session = Session::new(Model::load(gguf.clone(), options, &mut |_, _| ()).unwrap());
    session.set_batch(batch);
    let mut out = Vec::new();
    session.eval_all(tokens, |row| out.extend_from_slice(row)).unwrap();
    out
}

#[test]
fn logits_equal_llama_cpp() {
    let Some(dir) = tandem_tests::fixtures("archs") else { return };
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let mut checked = 0;
    for entry in manifest["models"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let gguf = Arc::new(Gguf::open(&dir.join(entry["file"].as_str().unwrap())).unwrap());
        let program = match Program::from_gguf(&gguf) {
            Ok(program) => program,
            Err(e) => {
                let known = ARCHITECTURES.iter().any(|a| a.name == entry["arch"].as_str().unwrap());
                assert!(!known, "{name}: {e}");
                continue;
            }
        };
        let tokens: Vec<u32> = entry["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
        let raw = std::fs::read(dir.join(entry["logits"].as_str().unwrap())).unwrap();
        let expected: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();

        let reference = Reference::new(&program, &gguf).unwrap().eval(&tokens);
        let exact = all_logits(&gguf, Precision::Exact, 2, 512, &tokens);
        let fast = all_logits(&gguf, Precision::Fast, 2, 512, &tokens);
        let (r, e, f) = (nmse(&expected, &reference), nmse(&expected, &exact), nmse(&expected, &fast));
        println!("{name:<16} NMSE: reference {r:.1e}, exact {e:.1e}, fast (f16 cache) {f:.1e}");
        // The fixtures' own limits: 1e-6 where everything stays f32, 2e-5 where the cache is f16.
        assert!(r < 1e-6 && e < 1e-6, "{name}");
        assert!(f < 2e-5, "{name}");

        // Rounding keys and values of 2.2 sigma at most to q steps costs (2.2 / q)^2 / 12 of their power each: 2.5e-5 for
        // 127 steps, 8e-3 for 7. These random models amplify it up to 6 times; the bounds leave them a factor of 16.
        for (kv_type, limit) in [(KvType::Q8_0, 4e-4), (KvType::Q4_0, 0.13)] {
            let options = LoadOptions { kv_type, ..LoadOptions::default() };
            let quantized = nmse(&expected, &evaluate(&gguf, &options, 512, &tokens));
            println!("{name:<16} NMSE with a {} cache: {quantized:.1e}", kv_type.name());
            assert!(quantized < limit, "{name}");
            assert_eq!(evaluate(&gguf, &options, 512, &tokens), evaluate(&gguf, &options, 5, &tokens), "{name}");
        }

        // Same bits whatever the number of threads and the split into batches.
        for (precision, whole) in [(Precision::Exact, &exact), (Precision::Fast, &fast)] {
            for (threads, batch) in [(1, 512), (3, 512), (2, 1), (2, 7), (1, 32)] {
                let again = all_logits(&gguf, precision, threads, batch, &tokens);
                let same = again.iter().zip(whole).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name} {precision:?}: {threads} threads, batches of {batch} change the result");
            }
        }
        checked += 1;
    }
    assert!(checked >= 14, "only {checked} fixtures checked");
}
