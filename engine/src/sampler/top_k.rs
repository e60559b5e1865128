//! Top-k: only the k most likely tokens.

use super::{Built, Candidates, Sampler, SamplerKind, SamplerParams, Setup};

/// Fan, Lewis and Dauphin 2018, "Hierarchical Neural Story Generation", <https://arxiv.org/abs/1805.04833>.
pub(super) const KIND: SamplerKind = SamplerKind { name: "top-k", what: "keeps the k most likely tokens", build };

fn build(params: &SamplerParams, setup: &Setup) -> Built {
    let on = params.temp > 0.0 && (1..setup.n_vocab).contains(&params.top_k);
    Ok(on.then(|| Box::new(TopK { k: params.top_k }) as Box<dyn Sampler>))
}

struct TopK {
    k: usize,
}

impl Sampler for TopK {
    fn apply(&mut self, candidates: &mut Candidates) {
        candidates.keep_best(self.k);
    }

    fn enough(&self, _: Option<usize>) -> Option<usize> {
        Some(self.k)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{kept, params};
    use super::*;

    #[test]
    fn keeps_the_best_and_the_lowest_ids_of_equals() {
        let params = SamplerParams { top_k: 3, ..params() };
        assert_eq!(kept(&KIND, &params, &[1.0, 5.0, 2.0, 2.0, 2.0, 9.0]), [5, 1, 2]);
        assert_eq!(kept(&KIND, &params, &[f32::NAN, 5.0, f32::NEG_INFINITY, 2.0, f32::NAN]), [1, 3]);
    }

    #[test]
    fn is_off_at_0_and_from_the_vocabulary_size_on() {
        for top_k in [0, 4, usize::MAX] {
            let params = SamplerParams { top_k, ..params() };
            assert!(build(&params, &Setup { n_vocab: 4, seed: 0 }).unwrap().is_none());
        }
    }
}
