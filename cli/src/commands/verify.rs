//! `tandem verify`: whether the GPU computes what the CPU computes, block by block.

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tandem_engine::verify::{BlockError, Divergence, N_TOKENS, limit, verify};

use crate::args::{LoadArgs, ModelArgs};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::ui::{self, Ui};

/// Options of `tandem verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
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
    let limit = limit(options.precision);
    let mut errors = Vec::new();
    if !args.json {
        let width = "output".len() + 4;
        ui::print(format!("{:<width$} {:>11} {:>11}\n", "NMSE", format!("{N_TOKENS} tokens"), "1 token"))?;
    }
    let mut printed = Ok(());
    let diverged = verify(&gguf, &options, limit, &mut |error| {
        if !args.json && printed.is_ok() {
            printed = ui::print(line(error));
        }
        errors.push(*error);
    });
    printed?;
    let diverged = diverged.with_context(|| open::shown(&gguf))?;
    if args.json {
        ui::print(format!("{:#}\n", as_json(&errors, limit, diverged.as_ref())))?;
    }
    match diverged {
        None => {
            ui.note(format_args!("the GPU computes what the CPU computes: no block is above {limit:.0e}"));
            Ok(())
        }
        Some(found) => Err(Failure::running(describe(&found, limit))),
    }
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

fn as_json(errors: &[BlockError], limit: f64, diverged: Option<&Divergence>) -> Value {
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
        "n_tokens": N_TOKENS,
        "blocks": errors.iter().map(block).collect::<Vec<_>>(),
        "diverges": diverged.map(divergence),
    })
}
