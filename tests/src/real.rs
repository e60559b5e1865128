//! The two real models and llama.cpp's F32 reference of them.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use std::sync::Arc;

use serde_json::Value;
use tandem_loader::Gguf;

/// A model, and what the reference computed.
pub struct Case {
    /// The model.
    pub gguf: Arc<Gguf>,
    /// Greedy texts of prompts, with the gaps between the two best logits.
    pub greedy: Value,
    /// A passage, with the largest logits of each position.
    pub passage: Value,
}

fn case(file: &str, name: &str) -> Option<Case> {
    let path = crate::model(file)?;
    let dir = crate::fixtures("models")?;
    let json =
        |kind: &str| serde_json::from_slice(&std::fs::read(dir.join(format!("{name}.{kind}.json"))).unwrap()).unwrap();
    Some(Case { gguf: Arc::new(Gguf::open(&path).unwrap()), greedy: json("greedy"), passage: json("passage") })
}

/// SmolLM2 135M, or `None` (with a printed notice) where something is missing.
pub fn smollm2() -> Option<Case> {
    case("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m")
}

/// Gemma 3 270M, or `None` (with a printed notice) where something is missing.
pub fn gemma3() -> Option<Case> {
    case("gemma-3-270m-q4_k_m.gguf", "gemma3-270m")
}

/// A list of token ids.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

/// Logarithm of the sum of a row's exponentials.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// KL(p || q) of two rows of logits, exact softmax in f64.
pub fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (lp, lq) = (log_sum_exp(p), log_sum_exp(q));
    p.iter().zip(q).map(|(p, q)| (f64::from(*p) - lp).exp() * ((f64::from(*p) - lp) - (f64::from(*q) - lq))).sum()
}

impl Case {
    /// Checks logits of the passage that were computed in f32, row by row.
    pub fn check_exact<'a>(&self, rows: impl IntoIterator<Item = &'a [f32]>) {
        let reference = &self.passage["f32_reference"];
        let (mut worst, mut error, mut power) = (0.0f64, 0.0, 0.0);
        for (i, row) in rows.into_iter().enumerate() {
            let top = reference["top_logits"][i].as_array().unwrap();
            for (id, want) in ids(&reference["top_ids"][i]).into_iter().zip(top) {
                let (got, want) = (f64::from(row[id as usize]), want.as_f64().unwrap());
                worst = worst.max((got - want).abs());
                error += (got - want).powi(2);
                power += want.powi(2);
            }
            let (got, want) = (log_sum_exp(row), reference["logsumexp"][i].as_f64().unwrap());
            assert!((got - want).abs() < 0.02, "row {i}: logsumexp {got} against {want}");
        }
        println!("exact path: largest difference {worst:.5}, NMSE {:.1e}", error / power);
        // The fixtures' own limits for f32 compute on dequantized weights.
        assert!(worst <= 0.02 && error / power <= 1e-6);
    }

    /// Mean KL divergence of llama.cpp's run of the quantized file from the reference.
    pub fn kl_of_llama_cpp(&self) -> f64 {
        self.passage["quantized_vs_f32"]["kld_mean"].as_f64().unwrap()
    }
}
