//! From logits to the next token: a chain of small samplers.
//!
//! Each sampler is one file and one row of [`SAMPLERS`]; the chain runs them in the order of the table, which is the
//! order of llama.cpp. A sampler edits or narrows the [`Candidates`]; the last one leaves a single token. To add one:
//! write its file with a [`SamplerKind`], give it its fields in [`SamplerParams`], and add its row.
//!
//! ```
//! use tandem_engine::sampler::{SamplerChain, SamplerParams};
//!
//! let params = SamplerParams { temp: 0.0, ..SamplerParams::default() };
//! let mut chain = SamplerChain::new(&params, 4)?;
//! assert_eq!(chain.sample(&[0.5, 2.0, -1.0, 2.0])?, 1); // ties go to the lowest id
//! # Ok::<(), tandem_engine::sampler::SamplerError>(())
//! ```

mod candidates;
mod chain;
mod dist;
mod greedy;
mod logit_bias;
mod min_p;
mod params;
mod penalties;
#[cfg(test)]
mod proptests;
mod temperature;
#[cfg(test)]
mod testing;
mod top_k;
mod top_p;

pub use candidates::{Candidate, Candidates};
pub use chain::SamplerChain;
pub use params::{SamplerError, SamplerParams};

/// One step of the chain.
pub trait Sampler: Send {
    /// Edits or narrows the candidates for the next token.
    fn apply(&mut self, candidates: &mut Candidates);

    /// How many of the most likely tokens this sampler must be given, where those after it need `after`, so that the
    /// result is the same as with all of them. `None`: all.
    fn enough(&self, _after: Option<usize>) -> Option<usize> {
        None
    }

    /// Takes note of a token that is now part of the text (prompt or answer).
    fn accept(&mut self, _token: u32) {}

    /// Returns to the state after construction: no text seen, random numbers from their start.
    fn reset(&mut self) {}
}

/// A sampler, `None` where its parameters turn it off, or the parameter that is wrong.
pub type Built = Result<Option<Box<dyn Sampler>>, SamplerError>;

/// A row of the registry.
pub struct SamplerKind {
    /// Name, as users of other engines know it.
    pub name: &'static str,
    /// What it does, in one line.
    pub what: &'static str,
    /// Checks its parameters, and makes the sampler where they do not turn it off.
    pub build: fn(&SamplerParams, &Setup) -> Built,
}

/// What a chain knows beyond the parameters when it builds its samplers.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Number of tokens in the vocabulary.
    pub n_vocab: usize,
    /// The seed in use: the one asked for, or one drawn for this chain.
    pub seed: u64,
}

/// Every sampler, in the order of the chain.
pub const SAMPLERS: &[SamplerKind] = &[
    logit_bias::KIND,
    penalties::KIND,
    greedy::KIND,
    top_k::KIND,
    top_p::KIND,
    min_p::KIND,
    temperature::KIND,
    dist::KIND,
];
