//! Top-p, or nucleus: the most likely tokens that together have probability p.

use super::candidates::weight;
use super::params::check_range;
use super::{Built, Candidates, Sampler, SamplerKind, SamplerParams, Setup};

/// Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration", <https://arxiv.org/abs/1904.09751>.
pub(super) const KIND: SamplerKind = SamplerKind {
    name: "top-p",
    what: "keeps the smallest set of most likely tokens whose probabilities sum to p",
    build,
};

fn build(params: &SamplerParams, _: &Setup) -> Built {
    check_range("top_p", params.top_p, 0.0..=1.0)?;
    let on = params.temp > 0.0 && params.top_p < 1.0;
    Ok(on.then(|| Box::new(TopP { p: params.top_p.into() }) as Box<dyn Sampler>))
}

struct TopP {
    p: f64,
}

impl Sampler for TopP {
    fn apply(&mut self, candidates: &mut Candidates) {
        let max = candidates.max_logit();
        let total: f64 = candidates.list().iter().map(|c| weight(c.logit, max)).sum();
        let wanted = self.p * total;
        let (mut sum, mut seen) = (0.0, 0);
        candidates.keep_prefix(|sorted| {
            for candidate in &sorted[seen..] {
                sum += weight(candidate.logit, max);
                seen += 1;
                // At p = 0 the first token is enough, so one always stays.
                if sum >= wanted {
                    return Some(seen);
                }
            }
            None
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{kept, params};
    use super::*;

    #[test]
    fn keeps_the_smallest_set_that_reaches_p() {
        let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        let cases: [(f32, &[u32]); 5] =
            [(0.0, &[1]), (0.39, &[1]), (0.41, &[1, 3]), (0.71, &[1, 3, 2]), (0.95, &[1, 3, 2, 0])];
        for (top_p, expected) in cases {
            assert_eq!(kept(&KIND, &SamplerParams { top_p, ..params() }, &logits), expected, "p = {top_p}");
        }
    }

    #[test]
    fn an_infinite_logit_has_all_the_probability() {
        let logits = [1.0, f32::INFINITY, 2.0];
        assert_eq!(kept(&KIND, &SamplerParams { top_p: 0.99, ..params() }, &logits), [1]);
    }

    #[test]
    fn a_flat_vocabulary_keeps_its_share() {
        // Longer than two prefixes of the partial sort; equal logits stay in id order.
        let kept = kept(&KIND, &SamplerParams { top_p: 0.5, ..params() }, &[1.25; 10_000]);
        assert_eq!(kept, (0..5_000).collect::<Vec<u32>>());
    }

    #[test]
    fn out_of_range_is_refused() {
        for top_p in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
            let error = build(&SamplerParams { top_p, ..params() }, &Setup { n_vocab: 4, seed: 0 }).err().unwrap();
            assert!(error.to_string().contains("`top_p`"), "{error}");
        }
    }
}
