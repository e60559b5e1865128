//! The chain: the samplers that the parameters turn on, in the order of the registry.

use std::hash::{BuildHasher, RandomState};

use super::{Candidate, Candidates, SAMPLERS, Sampler, SamplerError, SamplerParams, Setup};

/// Chooses the next token from the logits of a model. The same parameters, seed and logits give the same tokens, on
/// every machine (but for a draw that falls within the rounding of the platform's `exp`, about one in 10^15).
///
/// Memory is allocated at construction and for the first token, not later (a `repeat_last_n` beyond 4,096 grows with
/// the text).
pub struct SamplerChain {
    samplers: Vec<(&'static str, Box<dyn Sampler>)>,
    candidates: Candidates,
    setup: Setup,
    greedy: bool,
}

impl SamplerChain {
    /// A chain for a vocabulary of `n_vocab` tokens. The error names the parameter that is out of its range.
    pub fn new(params: &SamplerParams, n_vocab: usize) -> Result<SamplerChain, SamplerError> {
        let setup = Setup { n_vocab, seed: params.seed.unwrap_or_else(random_seed) };
        let mut samplers = Vec::new();
        for kind in SAMPLERS {
            if let Some(sampler) = (kind.build)(params, &setup)? {
                samplers.push((kind.name, sampler));
            }
        }
        Ok(SamplerChain { samplers, candidates: Candidates::default(), setup, greedy: params.temp == 0.0 })
    }

    /// The next token, from the model's logits, shape `[n_vocab]`. A NaN is never chosen.
    ///
    /// The token does not count as text until it is given to [`accept`](SamplerChain::accept). Fails where the number
    /// of logits is not `n_vocab`, and where all of them are NaN or negative infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplerError> {
        let n_vocab = self.setup.n_vocab;
        if logits.len() != n_vocab {
            return Err(SamplerError::LogitCount { got: logits.len(), expected: n_vocab });
        }
        self.candidates.load(logits);
        self.choose()
    }

    /// How many of the most likely tokens are enough for the next choice: with them, [`sample_best`] chooses the token that
    /// [`sample`] would from all logits. `None` where only all logits are enough.
    ///
    /// [`sample`]: SamplerChain::sample
    /// [`sample_best`]: SamplerChain::sample_best
    pub fn enough(&self) -> Option<usize> {
        let enough = self.samplers.iter().rev().fold(None, |after, (_, sampler)| sampler.enough(after));
        enough.map(|n| n.min(self.setup.n_vocab))
    }

    /// As [`sample`](SamplerChain::sample), from the most likely tokens: as many as [`enough`](SamplerChain::enough) says,
    /// most likely first, of equal ones the lowest id first.
    pub fn sample_best(&mut self, best: &[Candidate]) -> Result<u32, SamplerError> {
        self.candidates.load_best(best);
        self.choose()
    }

    fn choose(&mut self) -> Result<u32, SamplerError> {
        for (_, sampler) in &mut self.samplers {
            sampler.apply(&mut self.candidates);
        }
        let n_vocab = self.setup.n_vocab;
        self.candidates.list().first().map(|c| c.id).ok_or(SamplerError::NoCandidate { n_vocab })
    }

    /// Takes note of a token of the text, for the penalties: every token of the prompt, and every one chosen.
    pub fn accept(&mut self, token: u32) {
        for (_, sampler) in &mut self.samplers {
            sampler.accept(token);
        }
    }

    /// Forgets the text, and starts the random numbers again from the seed.
    pub fn reset(&mut self) {
        for (_, sampler) in &mut self.samplers {
            sampler.reset();
        }
    }

    /// The seed in use: the one of the parameters, or the one drawn in its place. Giving it again gives the same text.
    pub fn seed(&self) -> u64 {
        self.setup.seed
    }

    /// Whether the most likely token is always taken, so that the seed has no effect.
    pub fn is_greedy(&self) -> bool {
        self.greedy
    }

    /// Names of the samplers in use, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &'static str> {
        self.samplers.iter().map(|(name, _)| *name)
    }
}

impl std::fmt::Debug for SamplerChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.names().collect();
        f.debug_struct("SamplerChain").field("samplers", &names).field("setup", &self.setup).finish_non_exhaustive()
    }
}

/// A seed nobody can foresee, of 32 bits so that it is easily typed again.
fn random_seed() -> u64 {
    // The standard library keys its hash maps with random numbers of the operating system.
    RandomState::new().hash_one(std::time::SystemTime::now()) & 0xffff_ffff
}
