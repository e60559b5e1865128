//! One sequence of tokens over a model.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::{Batch, Hidden};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::sampler::Candidate;

/// Tokens evaluated together in a prompt, unless the caller asks for another number.
pub const DEFAULT_BATCH: usize = 512;
/// Most logits kept at a time (64 MiB): what limits the batch when all rows are wanted.
const MAX_LOGITS: usize = 16 << 20;

/// Which logits an evaluation computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outputs {
    /// Those of the last token.
    Last,
    /// None: the tokens only enter the cache.
    None,
}

/// What the next token is chosen from.
#[derive(Debug, Clone, Copy)]
pub enum Next<'a> {
    /// All logits, `[n_vocab]`.
    Logits(&'a [f32]),
    /// The most likely tokens, as many as were enough.
    Best(&'a [Candidate]),
}

/// A sequence: the tokens in the KV cache, and the logits after the last one.
pub struct Session {
    model: Model,
    tokens: Vec<u32>,
    /// Counts tokens as often as they are evaluated.
    n_evaluated: usize,
    hidden: Hidden,
    batch: usize,
    interrupt: Arc<AtomicBool>,
    on_move: Option<OnMove>,
}

/// Hears that everything moves to the CPU, and why.
pub type OnMove = Box<dyn FnMut(&str) + Send>;

impl Session {
    /// An empty sequence.
    pub fn new(model: Model) -> Session {
        Session {
            model,
            tokens: Vec::new(),
            n_evaluated: 0,
            hidden: Hidden::default(),
            batch: DEFAULT_BATCH,
            interrupt: Arc::default(),
            on_move: None,
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokens evaluated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many tokens this session has evaluated, forgotten ones too, and those twice that were evaluated again because a
    /// GPU failed.
    pub(crate) fn n_evaluated(&self) -> usize {
        self.n_evaluated
    }

    /// Sets the number of tokens evaluated together. On the CPU results do not depend on it; on a GPU their last bits may.
    pub fn set_batch(&mut self, batch: usize) {
        self.batch = batch.max(1);
    }

    /// A flag that stops an evaluation between batches with [`Error::Interrupted`] when set.
    pub fn interrupt(&self) -> Arc<AtomicBool> {
        self.interrupt.clone()
    }

    /// Lets a sequence go on when the GPU fails: `say` hears what happened, everything is loaded on the CPU, and the tokens
    /// so far are evaluated again. Without this a GPU that fails is an error of every evaluation from then on.
    pub fn move_when_a_gpu_fails(&mut self, say: OnMove) {
        self.on_move = Some(say);
    }

    /// Evaluates tokens after those already in the sequence. With [`Outputs::Last`], returns the logits after the last
    /// token, `[n_vocab]`; nothing where there are no tokens.
    ///
    /// # Errors
    /// A full context; a token outside the vocabulary; an interruption (tokens evaluated before it stay).
    pub fn eval(&mut self, tokens: &[u32], outputs: Outputs) -> Result<&[f32]> {
        self.check(tokens)?;
        self.hidden.logits.clear();
        let n_batches = tokens.len().div_ceil(self.batch);
        for (i, part) in tokens.chunks(self.batch).enumerate() {
            let wanted = outputs == Outputs::Last && i + 1 == n_batches;
            let n = part.len();
            self.run(part, if wanted { (n - 1, n) } else { (n, n) })?;
        }
        Ok(&self.hidden.logits)
    }

    /// Evaluates tokens as [`Session::eval`] does, for a sampler that the `enough` most likely tokens are enough for (see
    /// [`SamplerChain::enough`](crate::sampler::SamplerChain::enough)): a device that finds them itself then hands over
    /// them alone.
    ///
    /// # Errors
    /// As for [`Session::eval`].
    pub fn eval_best(&mut self, tokens: &[u32], enough: Option<usize>) -> Result<Next<'_>> {
        self.hidden.best.clear();
        self.hidden.enough = enough;
        let result = self.eval(tokens, Outputs::Last).map(|_| ());
        self.hidden.enough = None;
        result?;
        if self.hidden.best.is_empty() {
            return Ok(Next::Logits(&self.hidden.logits));
        }
        Ok(Next::Best(&self.hidden.best))
    }

    /// Evaluates tokens and gives the logits of every one of them to `row`, in order, `[n_vocab]` each.
    ///
    /// # Errors
    /// As for [`Session::eval`].
    pub fn eval_all(&mut self, tokens: &[u32], mut row: impl FnMut(&[f32])) -> Result<()> {
        let n_vocab = self.model.program().hparams.n_vocab;
        self.eval_rows(tokens, 0..tokens.len(), |_, logits| logits.chunks_exact(n_vocab).for_each(&mut row))
    }

    /// Most rows of logits that are kept at a time; at least 1.
    pub fn rows_at_once(&self) -> usize {
        (MAX_LOGITS / self.model.program().hparams.n_vocab).max(1)
    }

    /// Evaluates tokens and gives the logits of those in `rows` (indices into `tokens`) to `take`, in order: the first
    /// row's index, and the logits of as many rows as were evaluated together, `[n, n_vocab]`.
    ///
    /// # Errors
    /// As for [`Session::eval`].
    pub fn eval_rows(&mut self, tokens: &[u32], rows: Range<usize>, mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        self.check(tokens)?;
        let most_rows = self.rows_at_once();
        let mut at = 0;
        while at < tokens.len() {
            let mut end = tokens.len().min(at + self.batch);
            if end > rows.start && at < rows.end {
                // As many rows as may be kept, after those that are not wanted.
                end = end.min(at.max(rows.start) + most_rows);
            }
            let wanted = (rows.start.clamp(at, end), rows.end.clamp(at, end));
            self.run(&tokens[at..end], (wanted.0 - at, wanted.1.max(wanted.0) - at))?;
            if wanted.0 < wanted.1 {
                take(wanted.0, &self.hidden.logits);
            }
            at = end;
        }
        Ok(())
    }

    /// Forgets all tokens from `n` on.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let n_vocab = self.model.program().hparams.n_vocab;
        if let Some(token) = tokens.iter().find(|t| **t as usize >= n_vocab) {
            return Err(Error::BadToken { token: *token, n_vocab });
        }
        let needed = self.tokens.len() + tokens.len();
        if needed > self.model.n_ctx() {
            return Err(Error::ContextFull { needed, n_ctx: self.model.n_ctx() });
        }
        Ok(())
    }

    fn run(&mut self, tokens: &[u32], outputs: (usize, usize)) -> Result<()> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let batch = Batch { tokens, start: self.tokens.len(), outputs };
        if let Err(error) = self.model.forward(&batch, &mut self.hidden) {
            self.move_to_cpu(error)?;
            self.model.forward(&batch, &mut self.hidden)?;
        }
        self.tokens.extend_from_slice(tokens);
        self.n_evaluated += tokens.len();
        Ok(())
    }

    /// Goes on without the GPU, whose part of the cache is lost: the tokens so far are evaluated again.
    fn move_to_cpu(&mut self, error: Error) -> Result<()> {
        let Some(say) = &mut self.on_move else { return Err(error) };
        self.model.move_to_cpu(error, say)?;
        // What a failed pass left behind.
        self.hidden = Hidden { enough: self.hidden.enough, ..Hidden::default() };
        let tokens = std::mem::take(&mut self.tokens);
        tokens.chunks(self.batch).try_for_each(|part| self.run(part, (part.len(), part.len())))
    }
}
