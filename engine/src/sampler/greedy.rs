//! The most likely token, always.

use super::params::check_range;
use super::{Built, Candidates, Sampler, SamplerKind, SamplerParams, Setup};

pub(super) const KIND: SamplerKind = SamplerKind {
    name: "greedy",
    what: "takes the most likely token, the lowest id of equal ones (temperature 0)",
    build,
};

fn build(params: &SamplerParams, _: &Setup) -> Built {
    check_range("temp", params.temp, 0.0..=f32::MAX)?;
    Ok((params.temp == 0.0).then(|| Box::new(Greedy) as Box<dyn Sampler>))
}

struct Greedy;

impl Sampler for Greedy {
    fn apply(&mut self, candidates: &mut Candidates) {
        candidates.keep_best(1);
    }

    fn enough(&self, _: Option<usize>) -> Option<usize> {
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::SamplerError;
    use super::super::testing::{chain, params};
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_id() {
        let mut chain = chain(&SamplerParams { temp: 0.0, ..params() }, 5);
        assert_eq!(chain.sample(&[1.0, 3.0, 2.0, 3.0, 3.0]), Ok(1));
        assert_eq!(chain.sample(&[-0.0, 0.0, -1.0, 0.0, -0.0]), Ok(0), "zeros of both signs are equal");
        assert_eq!(chain.sample(&[7.0; 5]), Ok(0));
        assert_eq!(chain.sample(&[0.0, f32::INFINITY, 9.0, f32::INFINITY, 0.0]), Ok(1));
        assert!(chain.is_greedy());
    }

    #[test]
    fn nan_is_never_chosen_and_nothing_but_nan_is_an_error() {
        let mut chain = chain(&SamplerParams { temp: 0.0, ..params() }, 4);
        assert_eq!(chain.sample(&[f32::NAN, -5.0, f32::NAN, -6.0]), Ok(1));
        assert_eq!(chain.sample(&[f32::NEG_INFINITY, f32::NAN, f32::MIN, f32::NAN]), Ok(2));
        let none = Err(SamplerError::NoCandidate { n_vocab: 4 });
        assert_eq!(chain.sample(&[f32::NAN; 4]), none);
        assert_eq!(chain.sample(&[f32::NEG_INFINITY; 4]), none);
    }

    #[test]
    fn greedy_is_the_only_choice_left_at_temperature_0() {
        let chain = chain(&SamplerParams { temp: 0.0, repeat_penalty: 1.1, ..SamplerParams::default() }, 4);
        assert_eq!(chain.names().collect::<Vec<_>>(), ["penalties", "greedy"]);
    }
}
