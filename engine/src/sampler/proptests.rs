//! The narrowing samplers against naive definitions, and the whole chain on any input.

use proptest::prelude::*;

use super::testing::{kept, params};
use super::{Candidate, Candidates, SamplerChain, SamplerError, SamplerParams, min_p, top_k, top_p};

/// Logits with many ties, infinities and NaN.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        20 => -30.0f32..30.0,
        10 => (-3i8..3).prop_map(f32::from),
        1 => Just(f32::NAN),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(-0.0f32),
    ];
    proptest::collection::vec(logit, 1..700)
}

/// All that can be chosen, most likely first, equal ones by id: by a full stable sort.
fn ranked(logits: &[f32]) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).filter(|c| c.1 > f32::NEG_INFINITY).collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
    all
}

fn ids(candidates: &[(u32, f32)]) -> Vec<u32> {
    candidates.iter().map(|c| c.0).collect()
}

proptest! {
    #[test]
    fn top_k_is_the_head_of_a_full_sort(logits in logits(), k in 1usize..800) {
        let mut expected = ids(&ranked(&logits));
        expected.truncate(k);
        let mut candidates = Candidates::default();
        candidates.load(&logits);
        candidates.keep_best(k);
        let got: Vec<u32> = candidates.list().iter().map(|c| c.id).collect();
        prop_assert_eq!(&got, &expected);
        // And once the candidates are a list already.
        candidates.load(&logits);
        candidates.list();
        candidates.keep_best(k);
        let got: Vec<u32> = candidates.list().iter().map(|c| c.id).collect();
        prop_assert_eq!(&got, &expected);
        if k < logits.len() {
            prop_assert_eq!(kept(&top_k::KIND, &SamplerParams { top_k: k, ..params() }, &logits), expected);
        }
    }

    #[test]
    fn top_p_is_the_shortest_head_that_reaches_p(logits in logits(), p in 0.0f32..1.0) {
        let ranked = ranked(&logits);
        let got = kept(&top_p::KIND, &SamplerParams { top_p: p, ..params() }, &logits);
        prop_assert_eq!(&got, &ids(&ranked[..got.len()]));
        if !ranked.is_empty() {
            let exp: Vec<f64> = ranked.iter().map(|c| f64::from(c.1).exp()).collect();
            let share = |n: usize| exp[..n].iter().sum::<f64>() / exp.iter().sum::<f64>();
            // Sums of up to 700 f64 in another order: rounding of 700 * 2^-53 = 1e-13.
            prop_assert!(share(got.len()) >= f64::from(p) - 1e-12);
            prop_assert!(got.len() == 1 || share(got.len() - 1) < f64::from(p) + 1e-12);
        }
    }

    #[test]
    fn min_p_compares_with_the_best(logits in logits(), p in 0.001f32..1.0) {
        let got = kept(&min_p::KIND, &SamplerParams { min_p: p, ..params() }, &logits);
        let best = ranked(&logits).first().map_or(0.0, |c| f64::from(c.1));
        for (id, &logit) in (0u32..).zip(&logits) {
            let relative = (f64::from(logit) - best).exp();
            // The f32 sum of logit and logarithm, each below 40, rounds by up to 2^-18 of relative probability.
            if relative > f64::from(p) * (1.0 + 1e-5) {
                prop_assert!(got.contains(&id), "{id} is missing");
            }
            if relative < f64::from(p) * (1.0 - 1e-5) {
                prop_assert!(!got.contains(&id), "{id} is too many");
            }
        }
    }

    #[test]
    fn greedy_is_the_first_of_the_largest(logits in logits()) {
        let mut chain = SamplerChain::new(&SamplerParams { temp: 0.0, ..params() }, logits.len()).unwrap();
        let expected = ranked(&logits).first().map(|c| c.0);
        prop_assert_eq!(chain.sample(&logits).ok(), expected);
    }

    /// Whatever the logits and parameters, the token is one that may be chosen, and a second chain agrees.
    #[test]
    fn any_chain_chooses_a_possible_token(
        logits in proptest::collection::vec(prop_oneof![9 => -50f32..50.0, 1 => any::<f32>()], 1..300),
        (temp, top_k, top_p, min_p) in (0f32..3.0, 0usize..100, 0f32..=1.0, 0f32..=1.0),
        (repeat_penalty, presence_penalty, frequency_penalty) in (0.1f32..3.0, -2f32..2.0, -2f32..2.0),
        (seed, text) in (any::<u64>(), proptest::collection::vec(0u32..300, 0..100)),
    ) {
        let params = SamplerParams {
            temp, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty,
            repeat_last_n: 20, seed: Some(seed), logit_bias: vec![(0, f32::NEG_INFINITY)],
        };
        let mut chain = SamplerChain::new(&params, logits.len()).unwrap();
        let mut again = SamplerChain::new(&params, logits.len()).unwrap();
        for &token in &text {
            chain.accept(token);
            again.accept(token);
        }
        for _ in 0..5 {
            let got = chain.sample(&logits);
            prop_assert_eq!(&got, &again.sample(&logits));
            match got {
                Ok(id) => prop_assert!(id != 0 && logits[id as usize] > f32::NEG_INFINITY),
                Err(SamplerError::NoCandidate { .. }) => {
                    prop_assert!(logits[1..].iter().all(|l| l.is_nan() || l.abs() > 1e37))
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}

#[test]
fn the_number_of_logits_is_checked() {
    let mut chain = SamplerChain::new(&SamplerParams::default(), 10).unwrap();
    assert_eq!(chain.sample(&[0.0; 9]), Err(SamplerError::LogitCount { got: 9, expected: 10 }));
}

#[test]
fn the_default_chain_has_the_documented_order() {
    let all = SamplerParams { repeat_penalty: 1.1, logit_bias: vec![(0, 1.0)], ..SamplerParams::default() };
    let chain = SamplerChain::new(&all, 1000).unwrap();
    let names: Vec<_> = chain.names().collect();
    assert_eq!(names, ["logit-bias", "penalties", "top-k", "top-p", "min-p", "temperature", "dist"]);
    assert!(!chain.is_greedy());
}

proptest! {
    #[test]
    fn enough_of_the_most_likely_are_enough(
        logits in logits(),
        seed: u64,
        temp in prop_oneof![Just(0.0f32), 0.1f32..2.0],
        top_k in 0usize..60,
        repeat_penalty in prop_oneof![Just(1.0f32), 0.5f32..1.5],
        presence_penalty in prop_oneof![Just(0.0f32), -1.0f32..3.0],
        biases in proptest::collection::vec((0usize..700, prop_oneof![Just(f32::NEG_INFINITY), -5.0f32..1.0]), 0..4),
        text in proptest::collection::vec(0usize..700, 0..90),
    ) {
        let n = logits.len();
        let logit_bias = biases.into_iter().map(|(id, bias)| ((id % n) as u32, bias)).collect();
        let seed = Some(seed);
        let params = SamplerParams { temp, top_k, repeat_penalty, presence_penalty, seed, logit_bias, ..Default::default() };
        let mut all = SamplerChain::new(&params, n).unwrap();
        let mut best = SamplerChain::new(&params, n).unwrap();
        let ranked = ranked(&logits);
        for token in text {
            all.accept((token % n) as u32);
            best.accept((token % n) as u32);
            if let Some(enough) = best.enough() {
                let few: Vec<Candidate> = ranked.iter().take(enough).map(|&(id, logit)| Candidate { id, logit }).collect();
                prop_assert_eq!(all.sample(&logits), best.sample_best(&few));
            }
        }
    }
}
