//! Min-p: no token that is far less likely than the most likely one.

use super::params::check_range;
use super::{Built, Candidates, Sampler, SamplerKind, SamplerParams, Setup};

/// Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling", <https://arxiv.org/abs/2407.01082>.
pub(super) const KIND: SamplerKind =
    SamplerKind { name: "min-p", what: "keeps tokens at least p times as likely as the most likely one", build };

fn build(params: &SamplerParams, _: &Setup) -> Built {
    check_range("min_p", params.min_p, 0.0..=1.0)?;
    let on = params.temp > 0.0 && params.min_p > 0.0;
    Ok(on.then(|| Box::new(MinP { ln_p: params.min_p.ln() }) as Box<dyn Sampler>))
}

struct MinP {
    /// `probability >= p * best` is `logit >= best logit + ln p`: no need for the probabilities.
    ln_p: f32,
}

impl Sampler for MinP {
    fn apply(&mut self, candidates: &mut Candidates) {
        let least = candidates.max_logit() + self.ln_p;
        candidates.list().retain(|c| c.logit >= least);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{kept, params};
    use super::*;

    #[test]
    fn keeps_what_is_likely_enough() {
        // Relative to the best: 0.135, 1, 0.368, 0.0498.
        let logits = [-2.0, 0.0, -1.0, -3.0];
        let cases: [(f32, &[u32]); 4] = [(0.04, &[0, 1, 2, 3]), (0.05, &[0, 1, 2]), (0.2, &[1, 2]), (1.0, &[1])];
        for (min_p, expected) in cases {
            assert_eq!(kept(&KIND, &SamplerParams { min_p, ..params() }, &logits), expected, "p = {min_p}");
        }
    }

    #[test]
    fn an_infinite_logit_leaves_nothing_else() {
        let logits = [1.0, f32::INFINITY, 2.0];
        assert_eq!(kept(&KIND, &SamplerParams { min_p: 0.01, ..params() }, &logits), [1]);
    }

    #[test]
    fn out_of_range_is_refused() {
        for min_p in [-0.1, 1.1, f32::NAN] {
            let error = build(&SamplerParams { min_p, ..params() }, &Setup { n_vocab: 4, seed: 0 }).err().unwrap();
            assert!(error.to_string().contains("`min_p`"), "{error}");
        }
    }
}
