//! Times the sampler chain: `cargo run --release -p tandem-engine --example sampler_speed [N_VOCAB]`

use std::time::Instant;

use tandem_engine::sampler::{SamplerChain, SamplerParams};

/// Logits shaped like a model's: most near -5, a thin tail of likely tokens.
fn model_like(n_vocab: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n_vocab)
        .map(|_| -5.0 + 2.0 * (0..6).map(|_| random() - 0.5).sum::<f32>() - 2.0 * (random() + 1e-7).ln())
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let n_vocab: usize = std::env::args().nth(1).map_or(Ok(262_144), |n| n.parse())?;
    let model_like = model_like(n_vocab);
    let rising: Vec<f32> = (0..n_vocab).map(|i| i as f32 * 1e-4).collect();
    let defaults = SamplerParams { seed: Some(1), ..SamplerParams::default() };
    let cases = [
        ("default", defaults.clone(), &model_like),
        ("default, rising logits (worst case)", defaults.clone(), &rising),
        ("with penalties", SamplerParams { repeat_penalty: 1.1, ..defaults.clone() }, &model_like),
        ("greedy", SamplerParams { temp: 0.0, ..defaults.clone() }, &model_like),
        ("no top-k", SamplerParams { top_k: 0, ..defaults.clone() }, &model_like),
        ("temperature only", SamplerParams { top_k: 0, top_p: 1.0, min_p: 0.0, ..defaults }, &model_like),
    ];
    for (name, params, logits) in cases {
        let mut chain = SamplerChain::new(&params, n_vocab)?;
        let mut times = Vec::new();
        for _ in 0..201 {
            let start = Instant::now();
            let token = chain.sample(logits)?;
            times.push(start.elapsed());
            chain.accept(token);
        }
        times.sort();
        println!("{name:<36} {n_vocab} logits: median {:?}, 95 % below {:?}", times[100], times[190]);
    }
    Ok(())
}
