//! A text cut into windows of tokens: what `perplexity`, `compare` and `imatrix` evaluate.

use std::path::PathBuf;

use clap::Args;
use tandem_engine::score::{MIN_WINDOW, Windows};
use tandem_models::tokenizer::{EncodeOptions, Tokenizer};

use crate::args::positive;
use crate::commands::run::read_input;
use crate::exit::Failure;
use crate::interrupt::Interrupt;

/// Tokens of a window, unless the user says otherwise.
const DEFAULT_WINDOW: usize = 512;

/// Which text.
#[derive(Debug, Clone, Args)]
pub(crate) struct TextArgs {
    /// The text (- is stdin), every byte as it is
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Evaluate at most N windows [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) chunks: Option<usize>,
}

/// Tokens of a window: `-c`, or the usual number.
///
/// # Errors
/// Too few to score any.
pub(crate) fn n_ctx(ctx: Option<usize>) -> anyhow::Result<usize> {
    let n_ctx = ctx.unwrap_or(DEFAULT_WINDOW);
    if n_ctx < MIN_WINDOW {
        return Err(Failure::usage(format!("-c {n_ctx}: a window needs at least {MIN_WINDOW} tokens")));
    }
    Ok(n_ctx)
}

/// The error of a model whose logits are not numbers in window `i`.
pub(crate) fn not_numbers(model: &str, i: usize) -> anyhow::Error {
    let hint = "its weights may be damaged, or too large for the cache (--kv-type f32)";
    Failure::model(format!("{model}: logits of window {} are not numbers: {hint}", i + 1))
}

impl TextArgs {
    /// The text. Ctrl-C leaves while it comes.
    pub(crate) fn read(&self, interrupt: &Interrupt) -> anyhow::Result<Vec<u8>> {
        interrupt.leaving(|| read_input(Some(&self.file)))
    }

    /// Its windows of `n_ctx` tokens, by a model's tokenizer and for logits of `n_vocab`. Ctrl-C leaves meanwhile.
    ///
    /// # Errors
    /// A text shorter than a window; tokens that the model has no logits for.
    pub(crate) fn cut(
        &self,
        text: &[u8],
        tokenizer: &Tokenizer,
        n_ctx: usize,
        n_vocab: usize,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Windows> {
        let plain = EncodeOptions { add_special: true, parse_special: false };
        let tokens = interrupt.leaving(|| tokenizer.encode(text, plain));
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let windows = Windows::new(tokens, n_ctx, bos, self.chunks, n_vocab)
            .map_err(|error| Failure::model(format!("the model's tokenizer does not go with its output: {error}")))?;
        if windows.is_empty() {
            return Err(Failure::usage(format!(
                "{} has {} tokens, less than one window of {n_ctx}; give a longer text or a smaller -c",
                self.file.display(),
                windows.n_tokens()
            )));
        }
        Ok(windows)
    }
}
