//! Temperature: a flatter or steeper distribution.

use super::params::check_range;
use super::{Built, Candidates, Sampler, SamplerKind, SamplerParams, Setup};

pub(super) const KIND: SamplerKind = SamplerKind {
    name: "temperature",
    what: "divides the logits, so that the distribution is steeper or flatter",
    build,
};

fn build(params: &SamplerParams, _: &Setup) -> Built {
    check_range("temp", params.temp, 0.0..=f32::MAX)?;
    let on = params.temp > 0.0 && params.temp != 1.0;
    Ok(on.then(|| Box::new(Temperature { temp: params.temp }) as Box<dyn Sampler>))
}

struct Temperature {
    temp: f32,
}

impl Sampler for Temperature {
    fn apply(&mut self, candidates: &mut Candidates) {
        // Only differences of logits count. Taken from the largest first, a tiny temperature cannot overflow; what
        // falls below the range of f32 stays a candidate of probability 0.
        let max = candidates.max_logit();
        for candidate in candidates.list() {
            let below = if candidate.logit == max { 0.0 } else { candidate.logit - max };
            candidate.logit = (below / self.temp).max(f32::MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{applied, params};
    use super::*;

    fn logits(temp: f32, logits: &[f32]) -> Vec<f32> {
        applied(&KIND, &SamplerParams { temp, ..params() }, logits).iter().map(|c| c.logit).collect()
    }

    #[test]
    fn differences_are_divided() {
        assert_eq!(logits(0.5, &[1.0, 3.0, 2.0]), [-4.0, 0.0, -2.0]);
        assert_eq!(logits(2.0, &[1.0, 3.0, 2.0]), [-1.0, 0.0, -0.5]);
    }

    #[test]
    fn extremes_stay_numbers() {
        assert_eq!(logits(1e-40, &[1.0, 30.0, 30.0]), [f32::MIN, 0.0, 0.0]);
        assert_eq!(logits(0.5, &[1.0, f32::INFINITY]), [f32::MIN, 0.0]);
        assert_eq!(logits(f32::MAX, &[1.0, 2.0])[1], 0.0);
    }

    #[test]
    fn negative_and_nan_are_refused() {
        for temp in [-1.0, f32::NAN, f32::INFINITY] {
            let error = build(&SamplerParams { temp, ..params() }, &Setup { n_vocab: 4, seed: 0 }).err().unwrap();
            assert!(error.to_string().contains("`temp`"), "{error}");
        }
    }
}
