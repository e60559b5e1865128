//! Generating text: prompt in, tokens out, until something says stop.
//!
//! [`generate`] evaluates what of the prompt is not in the KV cache yet, then samples, accepts and evaluates one token
//! at a time, and hands the text on as it becomes complete. It knows no terminal.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tandem_models::tokenizer::{TokenStream, Tokenizer};

use crate::error::Error;
use crate::sampler::{SamplerChain, SamplerError};
use crate::session::{Next, Session};

/// When an answer ends, beside the model's own end.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after a token that ends generation.
    pub ignore_eos: bool,
    /// Write control tokens out as text.
    pub special: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it.
    Eos,
    /// [`GenerateOptions::max_tokens`] was reached.
    Length,
    /// A stop text appeared.
    Stop,
    /// The context is full.
    Context,
    /// The caller stopped it: by the session's flag, or by what `on_text` returned.
    Interrupted,
}

impl StopReason {
    /// Name for people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            StopReason::Eos => "eos",
            StopReason::Length => "length",
            StopReason::Stop => "stop",
            StopReason::Context => "context",
            StopReason::Interrupted => "interrupted",
        }
    }
}

/// How long an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Evaluating the prompt.
    pub prompt: Duration,
    /// Tokens of the prompt evaluated in that time (those in the cache already are not among them, unless a GPU failed and
    /// its part of the cache was made again).
    pub n_prompt_evaluated: usize,
    /// Sampling and evaluating the answer.
    pub generation: Duration,
    /// Tokens of the answer evaluated in that time: all but the last.
    pub n_evaluated: usize,
}

impl Timings {
    /// Tokens per second of the prompt, 0 where nothing was evaluated.
    pub fn prompt_per_second(&self) -> f64 {
        rate(self.n_prompt_evaluated, self.prompt)
    }

    /// Tokens per second of the answer, 0 where nothing was evaluated.
    pub fn generation_per_second(&self) -> f64 {
        rate(self.n_evaluated, self.generation)
    }
}

fn rate(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The tokens generated. One that ended the answer is the last of them.
    pub tokens: Vec<u32>,
    /// Their text, without a stop text.
    pub text: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// How many of them were in the KV cache already.
    pub n_reused: usize,
    /// How long it took.
    pub timings: Timings,
}

/// Why an answer could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Evaluation failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// No token could be chosen.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// There is nothing to begin with.
    #[error("the prompt has no tokens; a model needs at least one to go on from")]
    EmptyPrompt,
}

/// Generates an answer to `prompt`.
///
/// The session keeps the longest prefix that it shares with the prompt, and evaluates the rest (at least the last
/// token, whose logits are needed). The sampler starts afresh: its random numbers from the seed, its penalties from the
/// prompt. Text is given to `on_text` as soon as it can no longer become part of a stop text; `Break` ends the answer.
///
/// # Errors
/// A prompt that does not fit in the context, or is empty; a token outside the vocabulary; logits that are all NaN. An
/// interruption is no error: what there is by then comes back with [`StopReason::Interrupted`].
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut SamplerChain,
    prompt: &[u32],
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> std::result::Result<Generation, GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let n_reused = shared_prefix(session.tokens(), prompt).min(prompt.len() - 1);
    let mut answer = Generation {
        tokens: Vec::new(),
        text: String::new(),
        stop_reason: StopReason::Length,
        n_prompt: prompt.len(),
        n_reused,
        timings: Timings::default(),
    };
    sampler.reset();
    prompt.iter().for_each(|token| sampler.accept(*token));

    session.truncate(n_reused);
    let before = session.n_evaluated();
    let start = Instant::now();
    let first = next_token(session, sampler, &prompt[n_reused..])?;
    answer.timings.prompt = start.elapsed();
    answer.timings.n_prompt_evaluated = session.n_evaluated() - before;
    let Some(first) = first else {
        answer.stop_reason = StopReason::Interrupted;
        return Ok(answer);
    };

    let mut writer = Writer::new(tokenizer, options, on_text);
    let start = Instant::now();
    answer.stop_reason = decode(session, tokenizer, sampler, first, &mut writer, &mut answer)?;
    answer.timings.generation = start.elapsed();
    answer.text = writer.finish(answer.stop_reason);
    Ok(answer)
}

/// The loop of one token at a time, from the first one on.
fn decode(
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut SamplerChain,
    first: u32,
    writer: &mut Writer<'_, '_>,
    answer: &mut Generation,
) -> std::result::Result<StopReason, GenerateError> {
    let options = writer.options;
    let mut token = first;
    while answer.tokens.len() < options.max_tokens {
        sampler.accept(token);
        answer.tokens.push(token);
        if tokenizer.is_eog(token) && !options.ignore_eos {
            return Ok(StopReason::Eos);
        }
        if let ControlFlow::Break(reason) = writer.push(token) {
            return Ok(reason);
        }
        if answer.tokens.len() == options.max_tokens {
            break;
        }
        if session.tokens().len() == session.model().n_ctx() {
            return Ok(StopReason::Context);
        }
        match next_token(session, sampler, &[token])? {
            Some(next) => token = next,
            None => return Ok(StopReason::Interrupted),
        }
        answer.timings.n_evaluated += 1;
    }
    Ok(StopReason::Length)
}

/// Evaluates tokens and chooses the one after them; `None` where the session's flag stopped it.
fn next_token(
    session: &mut Session,
    sampler: &mut SamplerChain,
    tokens: &[u32],
) -> std::result::Result<Option<u32>, GenerateError> {
    match session.eval_best(tokens, sampler.enough()) {
        Ok(Next::Logits(logits)) => Ok(Some(sampler.sample(logits)?)),
        Ok(Next::Best(best)) => Ok(Some(sampler.sample_best(best)?)),
        Err(Error::Interrupted) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// How many tokens two sequences begin with alike.
fn shared_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Turns tokens into text and holds back what may be the beginning of a stop text.
struct Writer<'a, 'f> {
    options: &'a GenerateOptions,
    stream: TokenStream<'a>,
    stop: Vec<&'a str>,
    on_text: &'f mut dyn FnMut(&str) -> ControlFlow<()>,
    /// All text so far, what is held back included.
    text: String,
    /// Bytes of it already given to `on_text`.
    shown: usize,
}

impl<'a, 'f> Writer<'a, 'f> {
    fn new(
        tokenizer: &'a Tokenizer,
        options: &'a GenerateOptions,
        on_text: &'f mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Writer<'a, 'f> {
        let stop = options.stop.iter().map(String::as_str).filter(|stop| !stop.is_empty()).collect();
        Writer { options, stream: tokenizer.stream(options.special), stop, on_text, text: String::new(), shown: 0 }
    }

    /// Takes the next token. Breaks where a stop text is complete, or the caller wants no more.
    fn push(&mut self, token: u32) -> ControlFlow<StopReason> {
        let piece = self.stream.push(token);
        self.text.push_str(&piece);
        if self.cut_at_stop() {
            return ControlFlow::Break(StopReason::Stop);
        }
        let held = self.stop.iter().map(|stop| held_back(&self.text[self.shown..], stop)).max().unwrap_or(0);
        self.show(self.text.len() - held).map_break(|()| StopReason::Interrupted)
    }

    /// Cuts the text before the first stop text in it.
    fn cut_at_stop(&mut self) -> bool {
        let unshown = &self.text[self.shown..];
        let found = self.stop.iter().filter_map(|stop| unshown.find(stop)).min();
        if let Some(at) = found {
            self.text.truncate(self.shown + at);
        }
        found.is_some()
    }

    fn show(&mut self, end: usize) -> ControlFlow<()> {
        if end == self.shown {
            return ControlFlow::Continue(());
        }
        let flow = (self.on_text)(&self.text[self.shown..end]);
        self.shown = end;
        flow
    }

    /// Shows what was held back, and gives the whole text.
    fn finish(mut self, reason: StopReason) -> String {
        if reason != StopReason::Stop {
            let rest = self.stream.finish();
            self.text.push_str(&rest);
        }
        let _ = self.show(self.text.len());
        self.text
    }
}

/// Bytes at the end of `text` that are the beginning of `stop` (never all of it).
fn held_back(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let is_start = |n: &usize| stop.is_char_boundary(*n) && text.as_bytes().ends_with(&stop.as_bytes()[..*n]);
    (1..=longest).rev().find(is_start).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_stop_text_is_held_back() {
        for (text, stop, held) in [
            ("abc", "x", 0),
            ("abc<", "<end>", 1),
            ("abc<en", "<end>", 3),
            ("<e<en", "<end>", 3),
            ("aaa", "aaaa", 3),
            ("", "x", 0),
            ("né", "ét", 2),
            ("n\u{c3}", "ét", 0),
        ] {
            assert_eq!(held_back(text, stop), held, "{text:?} {stop:?}");
        }
    }

    #[test]
    fn prefixes() {
        assert_eq!(shared_prefix(&[1, 2, 3], &[1, 2, 4, 5]), 2);
        assert_eq!(shared_prefix(&[], &[1]), 0);
    }

    #[test]
    fn rates() {
        let timings = Timings { generation: Duration::from_millis(500), n_evaluated: 10, ..Timings::default() };
        assert_eq!(timings.generation_per_second(), 20.0);
        assert_eq!(timings.prompt_per_second(), 0.0);
    }
}
