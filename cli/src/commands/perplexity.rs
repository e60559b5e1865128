//! `tandem perplexity`: how well a model predicts a text, by the method of llama-perplexity.

use std::time::Instant;

use clap::Args;
use serde_json::json;
use tandem_engine::Session;
use tandem_engine::score::{Perplexity, Windows, negative_log_likelihoods};

use crate::args::{LoadArgs, ModelArgs};
use crate::interrupt::Interrupt;
use crate::open;
use crate::ui::{self, Ui};
use crate::windows::{self, TextArgs};

/// Options of `tandem perplexity`. -c is the length of a window.
#[derive(Debug, Args)]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    text: TextArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// Evaluates window by window, with a running estimate.
pub(crate) fn run(args: &PerplexityArgs, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let mut options = args.load.options();
    let n_ctx = windows::n_ctx(args.load.context.ctx)?;
    options.n_ctx = Some(n_ctx);
    let text = args.text.read(interrupt)?;
    let gguf = open::open(&args.model, ui, interrupt)?;
    let tokenizer = open::tokenizer(&gguf)?;
    let mut session = open::load_session(gguf, &options, ui, interrupt)?;
    let n_vocab = session.model().program().hparams.n_vocab;
    let windows = args.text.cut(&text, &tokenizer, n_ctx, n_vocab, interrupt)?;

    let bar = ui.steps("perplexity", windows.len());
    let start = Instant::now();
    let mut sums = Perplexity::default();
    let mut running = Vec::with_capacity(windows.len());
    for i in 0..windows.len() {
        score(&mut session, &windows, i, &mut sums)?;
        if sums.mean().is_nan() {
            return Err(windows::not_numbers(args.model.reference(), i));
        }
        running.push(sums.value());
        let estimate = format!("perplexity {:.4} +/- {:.4}", sums.value(), sums.error());
        bar.suspend(|| ui.detail(format_args!("[{}/{}] {estimate}", i + 1, windows.len())));
        bar.set_message(estimate);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let speed = (windows.len() * n_ctx) as f64 / seconds;
    ui.note(format_args!(
        "{} windows of {n_ctx} tokens, {} tokens scored; {seconds:.1} s, {speed:.0} tokens/s",
        windows.len(),
        sums.n()
    ));
    if !args.json {
        return Ok(ui::print(format!("PPL = {:.4} +/- {:.4}\n", sums.value(), sums.error()))?);
    }
    let row = json!({
        "model": args.model.reference(),
        "file": args.text.file,
        "ppl": sums.value(),
        "stderr": sums.error(),
        "nll": sums.mean(),
        "n_chunks": windows.len(),
        "n_ctx": n_ctx,
        "n_tokens": windows.n_tokens(),
        "scored_tokens": sums.n(),
        "running_ppl": running,
        "backend": session.model().backend_names().join("+"),
        "seconds": seconds,
        "tokens_per_second": speed,
    });
    Ok(ui::print(format!("{row:#}\n"))?)
}

/// Adds one window's negative log likelihoods.
fn score(session: &mut Session, windows: &Windows, i: usize, sums: &mut Perplexity) -> tandem_engine::Result<()> {
    let tokens = windows.tokens(i);
    let n_vocab = session.model().program().hparams.n_vocab;
    let threads = session.model().n_threads();
    session.truncate(0);
    session.eval_rows(&tokens, windows.scored(), |first, logits| {
        let targets = &tokens[first + 1..first + 1 + logits.len() / n_vocab];
        negative_log_likelihoods(logits, targets, threads).into_iter().for_each(|nll| sums.add(nll));
    })
}
