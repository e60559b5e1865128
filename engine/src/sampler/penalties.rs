//! Repeat, presence and frequency penalties: tokens of the recent text become less likely.
//!
//! * Repeat: Keskar et al. 2019, "CTRL", section 4.1, <https://arxiv.org/abs/1909.05858>, with llama.cpp's correction
//!   that a negative logit is multiplied, not divided (dividing would make the token more likely).
//! * Presence and frequency: <https://platform.openai.com/docs/api-reference/chat/create>:
//!   `logit -= count * frequency + (count > 0) * presence`.
//!
//! The three share one history, so they are one sampler, applied in this order as in llama.cpp.

use std::collections::{HashMap, VecDeque};

use super::params::check_range;
use super::{Built, Candidates, Sampler, SamplerKind, SamplerParams, Setup};

pub(super) const KIND: SamplerKind = SamplerKind {
    name: "penalties",
    what: "makes tokens of the recent text less likely (repeat, presence, frequency)",
    build,
};

/// History made room for at once; a longer `repeat_last_n` grows its buffers as the text does.
const RESERVE: usize = 4096;

fn build(params: &SamplerParams, _: &Setup) -> Built {
    check_range("repeat_penalty", params.repeat_penalty, f32::MIN_POSITIVE..=f32::MAX)?;
    check_range("presence_penalty", params.presence_penalty, f32::MIN..=f32::MAX)?;
    check_range("frequency_penalty", params.frequency_penalty, f32::MIN..=f32::MAX)?;
    let off = params.repeat_penalty == 1.0 && params.presence_penalty == 0.0 && params.frequency_penalty == 0.0;
    if off || params.repeat_last_n == 0 {
        return Ok(None);
    }
    let room = params.repeat_last_n.min(RESERVE);
    Ok(Some(Box::new(Penalties {
        repeat: params.repeat_penalty,
        presence: params.presence_penalty,
        frequency: params.frequency_penalty,
        last_n: params.repeat_last_n,
        recent: VecDeque::with_capacity(room),
        // Twice the room: then removals never make the map allocate again.
        counts: HashMap::with_capacity(2 * room),
    })))
}

struct Penalties {
    repeat: f32,
    presence: f32,
    frequency: f32,
    last_n: usize,
    /// The last `last_n` tokens, oldest first.
    recent: VecDeque<u32>,
    /// How often each token is in `recent`. Its order has no effect: each token's logit is edited once.
    counts: HashMap<u32, u32>,
}

impl Sampler for Penalties {
    fn apply(&mut self, candidates: &mut Candidates) {
        for (&token, &count) in &self.counts {
            candidates.edit(token, |logit| {
                let scaled = if logit <= 0.0 { logit * self.repeat } else { logit / self.repeat };
                scaled - (count as f32 * self.frequency + self.presence)
            });
        }
    }

    /// As for the logit bias: penalties that only lower logits need as many more as there are tokens to penalize.
    fn enough(&self, after: Option<usize>) -> Option<usize> {
        let all_fall = self.repeat >= 1.0 && self.presence >= 0.0 && self.frequency >= 0.0;
        after.filter(|_| all_fall).map(|n| n.saturating_add(self.counts.len()))
    }

    fn accept(&mut self, token: u32) {
        if self.recent.len() == self.last_n
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_default() += 1;
    }

    fn reset(&mut self) {
        self.recent.clear();
        self.counts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::params;
    use super::*;

    fn logits_after(params: &SamplerParams, text: &[u32], logits: &[f32]) -> Vec<f32> {
        let mut sampler = build(params, &Setup { n_vocab: logits.len(), seed: 0 }).unwrap().unwrap();
        text.iter().for_each(|&t| sampler.accept(t));
        let mut candidates = Candidates::default();
        candidates.load(logits);
        sampler.apply(&mut candidates);
        candidates.list().iter().map(|c| c.logit).collect()
    }

    #[test]
    fn repeat_divides_positive_and_multiplies_negative_logits() {
        let params = SamplerParams { repeat_penalty: 2.0, ..params() };
        assert_eq!(logits_after(&params, &[0, 1, 2, 0], &[4.0, -4.0, 0.0, 4.0]), [2.0, -8.0, 0.0, 4.0]);
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time() {
        let logits = [4.0, 4.0, 4.0];
        let presence = SamplerParams { presence_penalty: 0.5, ..params() };
        assert_eq!(logits_after(&presence, &[0, 0, 0, 1], &logits), [3.5, 3.5, 4.0]);
        let frequency = SamplerParams { frequency_penalty: 0.5, ..params() };
        assert_eq!(logits_after(&frequency, &[0, 0, 0, 1], &logits), [2.5, 3.5, 4.0]);
        let all = SamplerParams { repeat_penalty: 2.0, presence_penalty: 0.25, ..frequency };
        assert_eq!(logits_after(&all, &[0, 0, 0, 1], &logits), [0.25, 1.25, 4.0]);
    }

    #[test]
    fn only_the_last_tokens_count() {
        let params = SamplerParams { frequency_penalty: 1.0, repeat_last_n: 3, ..params() };
        assert_eq!(logits_after(&params, &[0, 0, 0, 1, 1], &[9.0, 9.0, 9.0]), [8.0, 7.0, 9.0]);
        assert_eq!(logits_after(&params, &[0, 1, 1, 1], &[9.0, 9.0, 9.0]), [9.0, 6.0, 9.0]);
    }

    #[test]
    fn tokens_beyond_the_vocabulary_do_no_harm() {
        let params = SamplerParams { presence_penalty: 1.0, ..params() };
        assert_eq!(logits_after(&params, &[u32::MAX, 1], &[1.0, 1.0]), [1.0, 0.0]);
    }

    #[test]
    fn reset_forgets_the_text() {
        let params = SamplerParams { temp: 0.0, presence_penalty: 5.0, ..params() };
        let mut chain = super::super::testing::chain(&params, 2);
        chain.accept(1);
        assert_eq!(chain.sample(&[0.0, 1.0]), Ok(0));
        chain.reset();
        assert_eq!(chain.sample(&[0.0, 1.0]), Ok(1));
    }

    #[test]
    fn off_and_out_of_range() {
        let setup = Setup { n_vocab: 4, seed: 0 };
        assert!(build(&params(), &setup).unwrap().is_none());
        let none = SamplerParams { repeat_penalty: 1.5, repeat_last_n: 0, ..params() };
        assert!(build(&none, &setup).unwrap().is_none());
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let error = build(&SamplerParams { repeat_penalty: bad, ..params() }, &setup).err().unwrap();
            assert!(error.to_string().contains("`repeat_penalty`"), "{error}");
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let error = build(&SamplerParams { presence_penalty: bad, ..params() }, &setup).err().unwrap();
            assert!(error.to_string().contains("`presence_penalty`"), "{error}");
            let error = build(&SamplerParams { frequency_penalty: bad, ..params() }, &setup).err().unwrap();
            assert!(error.to_string().contains("`frequency_penalty`"), "{error}");
        }
    }
}
