//! What a user can set, and what is wrong with it.

use std::ops::RangeInclusive;

/// Parameters of a [`SamplerChain`](super::SamplerChain). The defaults are those of llama.cpp's chat.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// Temperature, 0 or more. Below 1 favours likely tokens, above 1 unlikely ones; 0 always takes the most likely
    /// one (greedy), and then `top_k`, `top_p`, `min_p` and `seed` have no effect. Default 0.8.
    pub temp: f32,
    /// Only the `top_k` most likely tokens stay. 0: off. Default 40.
    pub top_k: usize,
    /// Only the smallest set of most likely tokens whose probabilities sum to `top_p` stays, 0 to 1. 1: off.
    /// Default 0.95.
    pub top_p: f32,
    /// Only tokens at least `min_p` times as likely as the most likely one stay, 0 to 1. 0: off. Default 0.05.
    pub min_p: f32,
    /// Divides the positive, and multiplies the negative logits of tokens seen in the last `repeat_last_n`; more than
    /// 0. 1: off. Default 1.
    pub repeat_penalty: f32,
    /// How many of the last tokens (prompt included) the three penalties look at. 0: none. Default 64.
    pub repeat_last_n: usize,
    /// Subtracted from the logit of every token seen in the last `repeat_last_n`. 0: off. Default 0.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time it was seen in the last `repeat_last_n`. 0: off. Default 0.
    pub frequency_penalty: f32,
    /// Start of the random numbers; `None` draws one, which [`SamplerChain::seed`](super::SamplerChain::seed) tells.
    /// Default `None`.
    pub seed: Option<u64>,
    /// `(token, bias)`: the bias is added to the token's logit; negative infinity bans it. Default empty.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplerParams {
    fn default() -> SamplerParams {
        SamplerParams {
            temp: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

/// Why a chain cannot be built, or cannot choose a token.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// A parameter is out of its range.
    #[error("sampling option `{option}`: {message}")]
    Option {
        /// The field of [`SamplerParams`].
        option: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The logits do not belong to the vocabulary the chain was made for.
    #[error("{got} logits were given to a sampler made for a vocabulary of {expected} tokens")]
    LogitCount {
        /// Number of logits given.
        got: usize,
        /// Size of the vocabulary.
        expected: usize,
    },
    /// Every logit is NaN or negative infinity: the model computed nonsense, or `logit_bias` bans every token.
    #[error(
        "no token can be chosen: all {n_vocab} logits are NaN or negative infinity (the model file may be damaged, or \
         `logit_bias` bans every token)"
    )]
    NoCandidate {
        /// Size of the vocabulary.
        n_vocab: usize,
    },
}

impl SamplerError {
    pub(super) fn option(option: &'static str, message: impl Into<String>) -> SamplerError {
        SamplerError::Option { option, message: message.into() }
    }
}

/// Checks that a parameter is a number of `range` (which NaN never is).
pub(super) fn check_range(option: &'static str, value: f32, range: RangeInclusive<f32>) -> Result<(), SamplerError> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    let message = match (*low == f32::MIN, *high == f32::MAX) {
        (true, true) => format!("{value} is no finite number"),
        (false, true) => format!("{value} is no finite number of {low} or more"),
        _ => format!("{value} is out of range (must be {low} to {high})"),
    };
    Err(SamplerError::option(option, message))
}
