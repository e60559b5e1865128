//! One test, repeated.

use std::time::Instant;

use tandem_engine::sampler::SamplerParams;
use tandem_engine::{HostTime, Outputs, Result, Session};

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    /// Evaluating `n` tokens in batches.
    Prompt { n: usize, depth: usize },
    /// Evaluating `n` tokens one by one.
    Generation { n: usize, depth: usize },
}

impl Test {
    /// Its name, as llama-bench writes it: `pp512`, `tg128 @ d1024`.
    pub(super) fn name(&self) -> String {
        let (kind, n) = if self.is_prompt() { ("pp", self.n()) } else { ("tg", self.n()) };
        if self.depth() == 0 { format!("{kind}{n}") } else { format!("{kind}{n} @ d{}", self.depth()) }
    }

    /// Tokens timed.
    pub(super) fn n(&self) -> usize {
        let (Test::Prompt { n, .. } | Test::Generation { n, .. }) = self;
        *n
    }

    /// Tokens in the context before.
    pub(super) fn depth(&self) -> usize {
        let (Test::Prompt { depth, .. } | Test::Generation { depth, .. }) = self;
        *depth
    }

    /// Whether it is a prompt.
    pub(super) fn is_prompt(&self) -> bool {
        matches!(self, Test::Prompt { .. })
    }

    /// Context it needs.
    pub(super) fn n_ctx(&self) -> usize {
        self.depth() + self.n()
    }
}

/// What the repetitions of a test took.
pub(super) struct Measured {
    /// Tokens per second of each.
    pub(super) samples: Vec<f64>,
    /// Tokens of all of them.
    pub(super) n_tokens: usize,
    /// Time that the CPU spent on a GPU's work, in all of them.
    pub(super) host: HostTime,
}

/// Measures a test.
///
/// # Errors
/// A context that is too short; an interruption.
pub(super) fn run(session: &mut Session, test: &Test, repetitions: usize) -> Result<Measured> {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let n_vocab = session.model().program().hparams.n_vocab;
    let mut tokens = |n: usize| -> Vec<u32> { (0..n).map(|_| random.below(n_vocab)).collect() };

    // Warm-up, at no depth: caches, page tables, clock frequency.
    session.truncate(0);
    match test {
        Test::Prompt { n, .. } => evaluate_prompt(session, &tokens(*n))?,
        Test::Generation { .. } => evaluate_one_by_one(session, &tokens(1))?,
    }
    let mut samples = Vec::with_capacity(repetitions);
    let mut host = HostTime::default();
    for _ in 0..repetitions {
        session.truncate(0);
        if test.depth() > 0 {
            session.eval(&tokens(test.depth()), Outputs::None)?;
        }
        let tokens = tokens(test.n());
        let host_before = session.model().host_time();
        let start = Instant::now();
        match test {
            Test::Prompt { .. } => evaluate_prompt(session, &tokens)?,
            Test::Generation { .. } => evaluate_one_by_one(session, &tokens)?,
        }
        samples.push(test.n() as f64 / start.elapsed().as_secs_f64());
        host = host.plus(session.model().host_time().since(host_before));
    }
    Ok(Measured { n_tokens: repetitions * test.n(), samples, host })
}

fn evaluate_prompt(session: &mut Session, tokens: &[u32]) -> Result<()> {
    session.eval(tokens, Outputs::Last).map(|_| ())
}

/// As `run` does with its usual sampler, which needs the most likely tokens only.
fn evaluate_one_by_one(session: &mut Session, tokens: &[u32]) -> Result<()> {
    let enough = Some(SamplerParams::default().top_k);
    tokens.iter().try_for_each(|token| session.eval_best(&[*token], enough).map(|_| ()))
}

/// Token ids nobody chose: xorshift64 (Marsaglia 2003), the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as u32
    }
}
