//! `tandem verify`: whether the GPU computes what the CPU computes, block by block.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tandem_engine::verify::{BlockError, Divergence, MAX_TOKENS, limit, spread_tokens, verify};
use tandem_loader::Gguf;
use tandem_models::Program;

use crate::args::{LoadArgs, ModelArgs};
use crate::commands::logits::read_tokens;
use crate::commands::run::read_input;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::prompt;
use crate::ui::{self, Ui};

/// Options of `tandem verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Compare on this text [default: 25 tokens from all over the vocabulary]
    #[arg(short, long, value_name = "TEXT", conflicts_with_all = ["file", "tokens"])]
    prompt: Option<String>,
    /// Compare on the text of a file (- is stdin)
    #[arg(short, long, value_name = "FILE", conflicts_with = "tokens")]
    file: Option<PathBuf>,
    /// Compare on these token ids (1,2,3), or a file of them
    #[arg(long, value_name = "IDS|FILE")]
    tokens: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// Compares, and prints as it goes. What diverges is a failure.
pub(crate) fn run(args: &VerifyArgs, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
    let options = args.load.options();
    let gguf = open::open(&args.model, ui, interrupt)?;
    let tokens = tokens(args, &gguf, ui)?;
    let limit = limit(options.precision);
    let mut errors = Vec::new();
    let mut printed = Ok(());
    let diverged = verify(&gguf, &options, &tokens, limit, &mut |error| {
        if !args.json {
            let header = if errors.is_empty() { header(tokens.len()) } else { String::new() };
            printed = ui::print(header + &line(error));
        }
        errors.push(*error);
        if interrupt.is_set() || printed.is_err() { Err(tandem_engine::Error::Interrupted) } else { Ok(()) }
    });
    printed?;
    let diverged = open::of_file(diverged, &gguf)?;
    if args.json {
        ui::print(format!("{:#}\n", as_json(&errors, tokens.len(), limit, diverged.as_ref())))?;
    }
    match diverged {
        None => {
            let n = errors.len();
            ui.note(format_args!("the GPU computes what the CPU computes: of {n} blocks none is above {limit:.0e}"));
            Ok(())
        }
        Some(found) => Err(Failure::running(describe(&found, limit))),
    }
}

/// What to compare on: at least two tokens, and not more than are used.
fn tokens(args: &VerifyArgs, gguf: &Gguf, ui: &Ui) -> anyhow::Result<Vec<u32>> {
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => Some(text.clone().into_bytes()),
        (None, Some(file)) => Some(read_input(Some(file))?),
        (None, None) => None,
    };
    let mut tokens = match (text, &args.tokens) {
        (Some(text), _) => prompt::plain(&open::tokenizer(gguf)?, &text, false),
        (None, Some(ids)) => read_tokens(ids)?,
        (None, None) => spread_tokens(Program::from_gguf(gguf).with_context(|| open::shown(gguf))?.hparams.n_vocab),
    };
    if tokens.len() < 2 {
        return Err(Failure::usage("there are fewer than 2 tokens to compare on: a batch, and one after it"));
    }
    if tokens.len() > MAX_TOKENS {
        ui.note(format_args!("the first {MAX_TOKENS} of {} tokens are used", tokens.len()));
        tokens.truncate(MAX_TOKENS);
    }
    Ok(tokens)
}

fn header(n_tokens: usize) -> String {
    format!("{:<10} {:>11} {:>11}\n", "NMSE", format!("{} tokens", n_tokens - 1), "1 token")
}

fn line(error: &BlockError) -> String {
    format!("{:<10} {:>11.1e} {:>11.1e}\n", error.kind.to_string(), error.batch, error.single)
}

fn describe(found: &Divergence, limit: f64) -> String {
    let block = found.block;
    match found.step {
        Some((step, name)) => format!(
            "the GPU diverges in block {block}, step {step} ({name}): its error {:.1e} is above {limit:.0e}",
            found.error
        ),
        None => format!(
            "the GPU diverges in block {block}, whose error {:.1e} is above {limit:.0e}; no single step of it is",
            found.error
        ),
    }
}

fn as_json(errors: &[BlockError], n_tokens: usize, limit: f64, diverged: Option<&Divergence>) -> Value {
    let block = |error: &BlockError| json!({ "block": error.kind.to_string(), "nmse_batch": error.batch, "nmse_single": error.single });
    let divergence = |found: &Divergence| {
        json!({
            "block": found.block.to_string(),
            "step": found.step.map(|(step, _)| step),
            "step_name": found.step.map(|(_, name)| name),
            "nmse": found.error,
        })
    };
    json!({
        "limit": limit,
        "n_tokens": n_tokens,
        "blocks": errors.iter().map(block).collect::<Vec<_>>(),
        "diverges": diverged.map(divergence),
    })
}
