//! `tandem logits`: the logits of given tokens, for comparing engines and files.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;
use clap::Args;
use tandem_engine::Session;

use crate::args::{LoadArgs, ModelArgs, positive};
use crate::commands::run::read_input;
use crate::exit::Failure;
use crate::ids;
use crate::interrupt::Interrupt;
use crate::open;
use crate::output;
use crate::ui::Ui;

/// Options of `tandem logits`.
#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    /// Token ids (1,2,3), or a file of them: separated by commas or white space, or a JSON array. Used as given: no
    /// BOS is added
    #[arg(long, value_name = "IDS|FILE")]
    tokens: String,
    /// Where to write the logits of every position: f32, little-endian, row-major [n_tokens, n_vocab]
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Evaluate this many tokens at a time [default: 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    batch: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// Evaluates and writes.
pub(crate) fn run(args: &LogitsArgs, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let mut options = args.load.options();
    let tokens = read_tokens(&args.tokens)?;
    // As much context as the tokens need, whatever the model's own is.
    options.n_ctx.get_or_insert(tokens.len());
    let gguf = open::open(&args.model, ui, interrupt)?;
    let mut session = open::load_session(gguf, &options, ui, interrupt)?;
    if let Some(batch) = args.batch {
        session.set_batch(batch);
    }
    output::write(&args.out, |out| write_rows(&mut session, &tokens, out))?;
    let n_vocab = session.model().program().hparams.n_vocab;
    ui.note(format_args!("wrote {} x {n_vocab} logits to {}", tokens.len(), args.out.display()));
    Ok(())
}

/// Writes rows as they come, so that memory does not grow with the number of tokens.
fn write_rows(session: &mut Session, tokens: &[u32], out: &mut dyn Write) -> anyhow::Result<()> {
    let mut written: io::Result<()> = Ok(());
    let stop = session.interrupt();
    let evaluated = session.eval_all(tokens, |row| {
        if written.is_ok() {
            written = write_row(row, out);
            if written.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    written.context("cannot write logits")?;
    Ok(evaluated?)
}

fn write_row(row: &[f32], out: &mut dyn Write) -> io::Result<()> {
    let mut bytes = [0u8; 4096];
    for part in row.chunks(bytes.len() / 4) {
        for (value, to) in part.iter().zip(bytes.chunks_exact_mut(4)) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        out.write_all(&bytes[..4 * part.len()])?;
    }
    Ok(())
}

fn read_tokens(given: &str) -> anyhow::Result<Vec<u32>> {
    let tokens = match ids::parse(given) {
        Ok(tokens) => tokens,
        Err(problem) if !Path::new(given).is_file() && given != "-" => {
            return Err(Failure::usage(format!("--tokens {given}: there is no such file, and {problem}")));
        }
        Err(_) => {
            let text = read_input(Some(Path::new(given)))?;
            let text = String::from_utf8_lossy(&text);
            ids::parse(&text).map_err(|problem| Failure::usage(format!("{given}: {problem}")))?
        }
    };
    if tokens.is_empty() {
        return Err(Failure::usage("--tokens: there are no tokens; at least one is needed"));
    }
    Ok(tokens)
}
