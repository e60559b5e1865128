//! Logit bias: single tokens made more or less likely, or banned.

use super::{Built, Candidates, Sampler, SamplerError, SamplerKind, SamplerParams, Setup};

pub(super) const KIND: SamplerKind =
    SamplerKind { name: "logit-bias", what: "adds to the logits of single tokens; negative infinity bans one", build };

fn build(params: &SamplerParams, setup: &Setup) -> Built {
    for &(id, bias) in &params.logit_bias {
        if id as usize >= setup.n_vocab {
            let message = format!("token {id} is not in the vocabulary of {} tokens", setup.n_vocab);
            return Err(SamplerError::option("logit_bias", message));
        }
        if bias.is_nan() || bias == f32::INFINITY {
            let message = format!("the bias of token {id} is {bias} (must be finite, or negative infinity to ban it)");
            return Err(SamplerError::option("logit_bias", message));
        }
    }
    let biases = params.logit_bias.clone();
    Ok((!biases.is_empty()).then(|| Box::new(LogitBias { biases }) as Box<dyn Sampler>))
}

struct LogitBias {
    biases: Vec<(u32, f32)>,
}

impl Sampler for LogitBias {
    fn apply(&mut self, candidates: &mut Candidates) {
        for &(id, bias) in &self.biases {
            candidates.edit(id, |logit| logit + bias);
        }
    }

    /// A token whose logit falls leaves its place to another; one whose logit rises may come from anywhere.
    fn enough(&self, after: Option<usize>) -> Option<usize> {
        let all_fall = self.biases.iter().all(|(_, bias)| *bias <= 0.0);
        after.filter(|_| all_fall).map(|n| n.saturating_add(self.biases.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{applied, params};
    use super::*;

    #[test]
    fn biases_add_up_and_ban() {
        let logit_bias = vec![(0, 1.5), (2, f32::NEG_INFINITY), (0, 0.5), (3, f32::NEG_INFINITY)];
        let kept = applied(&KIND, &SamplerParams { logit_bias, ..params() }, &[1.0, 2.0, 9.0, f32::INFINITY]);
        assert_eq!(kept.iter().map(|c| (c.id, c.logit)).collect::<Vec<_>>(), [(0, 3.0), (1, 2.0)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (entry, says) in [((4, 1.0), "token 4"), ((1, f32::NAN), "NaN"), ((1, f32::INFINITY), "inf")] {
            let params = SamplerParams { logit_bias: vec![entry], ..params() };
            let error = build(&params, &Setup { n_vocab: 4, seed: 0 }).err().unwrap().to_string();
            assert!(error.contains("`logit_bias`") && error.contains(says), "{error}");
        }
    }
}
