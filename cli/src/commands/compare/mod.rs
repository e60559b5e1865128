//! `tandem compare`: two models side by side over a text, and their weights tensor by tensor.
//!
//! Both models are evaluated in lockstep, some rows at a time, so that no logits are stored.

mod charts;
mod report;
mod show;
mod tensors;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tandem_engine::score::{Divergence, Windows, compare};
use tandem_engine::{LoadOptions, Session};
use tandem_loader::Gguf;
use tandem_models::tokenizer::Tokenizer;

use crate::args::{LoadArgs, ModelArgs, PrecisionArg, positive};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::output;
use crate::ui::{self, Ui};
use crate::windows::{self, TextArgs};
use tensors::Tensors;

/// Options of `tandem compare`. -c is the length of a window.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The model that is right: a path, a name of the catalog, or org/repo[:QUANT], as for -m of other commands
    #[arg(value_name = "A")]
    a: String,
    /// The model compared with it
    #[arg(value_name = "B")]
    b: String,
    /// The text both evaluate (- is stdin)
    #[arg(short, long, value_name = "FILE", required_unless_present = "tensors")]
    file: Option<PathBuf>,
    /// Evaluate at most N windows [default: all]
    #[arg(long, value_name = "N", value_parser = positive, requires = "file")]
    chunks: Option<usize>,
    /// Compare the weights, tensor by tensor
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write a page with charts: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE", requires = "file")]
    report: Option<PathBuf>,
    /// Precision of A alone, as in exact against fast [default: --precision]
    #[arg(long, value_name = "PRECISION")]
    precision_a: Option<PrecisionArg>,
    #[command(flatten)]
    load: LoadArgs,
}

/// One of the two models.
struct Side {
    /// As the user named it.
    name: String,
    gguf: Arc<Gguf>,
    /// Weights of all tensors.
    n_weights: u64,
}

impl Side {
    fn open(name: &str, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<Side> {
        let gguf = open::open(&ModelArgs { model: Some(name.to_owned()) }, ui, interrupt)?;
        let n_weights = gguf.tensors().iter().map(|tensor| tensor.n_elements() as u64).sum();
        Ok(Side { name: name.to_owned(), gguf, n_weights })
    }

    fn bits_per_weight(&self) -> f64 {
        let bytes: u64 = self.gguf.tensors().iter().map(|tensor| tensor.n_bytes() as u64).sum();
        8.0 * bytes as f64 / self.n_weights as f64
    }
}

/// What the two were compared on.
struct Comparison {
    sides: [Side; 2],
    text: Option<TextResult>,
    tensors: Option<Tensors>,
}

/// The comparison over a text.
struct TextResult {
    file: PathBuf,
    n_ctx: usize,
    n_windows: usize,
    backends: [String; 2],
    divergence: Divergence,
}

/// Compares and prints.
pub(crate) fn run(args: &CompareArgs, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let options = args.load.options();
    let n_ctx = windows::n_ctx(args.load.context.ctx)?;
    let text = args.file.as_ref().map(|file| TextArgs { file: file.clone(), chunks: args.chunks });
    let bytes = text.as_ref().map(TextArgs::read).transpose()?;
    let sides = [Side::open(&args.a, ui, interrupt)?, Side::open(&args.b, ui, interrupt)?];
    let threads = options.threads.unwrap_or(1);
    let mut comparison = Comparison { sides, text: None, tensors: None };
    if let (Some(text), Some(bytes)) = (&text, &bytes) {
        let options = LoadOptions { n_ctx: Some(n_ctx), ..options };
        comparison.text = Some(over_text(&comparison.sides, text, bytes, &options, args, ui, interrupt)?);
    }
    if args.tensors || args.report.is_some() {
        let [a, b] = &comparison.sides;
        comparison.tensors = Some(tensors::compare(&a.gguf, &b.gguf, threads, ui, interrupt)?);
    }
    if let Some(path) = &args.report {
        output::write(path, |out| Ok(out.write_all(report::page(&comparison).as_bytes())?))?;
        ui.note(format_args!("wrote {}", path.display()));
    }
    if !args.tensors {
        comparison.tensors = None;
    }
    let answer = if args.json { show::json(&comparison) } else { show::text(&comparison) };
    Ok(ui::print(answer)?)
}

fn over_text(
    sides: &[Side; 2],
    text: &TextArgs,
    bytes: &[u8],
    options: &LoadOptions,
    args: &CompareArgs,
    ui: &Ui,
    interrupt: &mut Interrupt,
) -> anyhow::Result<TextResult> {
    let tokenizers = [open::tokenizer(&sides[0].gguf)?, open::tokenizer(&sides[1].gguf)?];
    check_vocabularies(sides, &tokenizers)?;
    let precision = args.precision_a.map_or(options.precision, Into::into);
    let options_a = LoadOptions { precision, ..options.clone() };
    let a = open::load_session(sides[0].gguf.clone(), &options_a, ui, interrupt)?;
    let b = open::load_session(sides[1].gguf.clone(), options, ui, interrupt)?;
    let n_vocab = |session: &Session| session.model().program().hparams.n_vocab;
    if n_vocab(&a) != n_vocab(&b) {
        return Err(different(sides, format!("A has logits for {} tokens, B for {}", n_vocab(&a), n_vocab(&b))));
    }
    let n_ctx = a.model().n_ctx();
    let windows = text.cut(bytes, &tokenizers[0], n_ctx, n_vocab(&a))?;
    let backends = [&a, &b].map(|session| session.model().backend_names().join("+"));
    let divergence = evaluate([a, b], &windows, ui)?;
    Ok(TextResult { file: text.file.clone(), n_ctx, n_windows: windows.len(), backends, divergence })
}

/// The first difference of the two vocabularies, as an error: other tokens make no common distribution.
fn check_vocabularies(sides: &[Side; 2], [a, b]: &[Tokenizer; 2]) -> anyhow::Result<()> {
    if a.n_vocab() != b.n_vocab() {
        return Err(different(sides, format!("A has {} tokens, B {}", a.n_vocab(), b.n_vocab())));
    }
    let text = |tokenizer: &Tokenizer, id| String::from_utf8_lossy(tokenizer.token_text(id)).into_owned();
    if let Some(id) = (0..a.n_vocab() as u32).find(|&id| a.token_text(id) != b.token_text(id)) {
        return Err(different(sides, format!("token {id} is {:?} in A and {:?} in B", text(a, id), text(b, id))));
    }
    let start = |tokenizer: &Tokenizer| tokenizer.bos().filter(|_| tokenizer.add_bos());
    if start(a) != start(b) {
        return Err(different(sides, "they begin a text with different tokens (BOS)".to_owned()));
    }
    Ok(())
}

fn different([a, b]: &[Side; 2], how: String) -> anyhow::Error {
    Failure::model(format!(
        "{} and {} have different vocabularies and cannot be compared over a text: {how}; --tensors without -f \
         compares weights alone",
        a.name, b.name
    ))
}

/// Evaluates both models in lockstep, with a running estimate.
fn evaluate([mut a, mut b]: [Session; 2], windows: &Windows, ui: &Ui) -> anyhow::Result<Divergence> {
    let bar = ui.steps("comparing", windows.len());
    let mut divergence = Divergence::default();
    for i in 0..windows.len() {
        window(&mut a, &mut b, windows, i, &mut divergence)?;
        if let Some(summary) = divergence.summary() {
            let estimate = format!(
                "KL {:.5}, PPL {:.3} and {:.3}, same top {:.1} %",
                summary.kl_mean.0,
                summary.ppl[0],
                summary.ppl[1],
                100.0 * summary.top1
            );
            bar.suspend(|| ui.detail(format_args!("[{}/{}] {estimate}", i + 1, windows.len())));
            bar.set_message(estimate);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(divergence)
}

/// Adds one window's scores. Rows of A are kept only until B has the same ones.
fn window(
    a: &mut Session,
    b: &mut Session,
    windows: &Windows,
    i: usize,
    divergence: &mut Divergence,
) -> tandem_engine::Result<()> {
    let tokens = windows.tokens(i);
    let (scored, threads) = (windows.scored(), a.model().n_threads());
    for session in [&mut *a, &mut *b] {
        session.truncate(0);
        session.eval(&tokens[..scored.start], tandem_engine::Outputs::None)?;
    }
    let step = a.rows_at_once();
    for first in scored.clone().step_by(step) {
        let rows = first..scored.end.min(first + step);
        let mut of_a = Vec::new();
        a.eval_rows(&tokens[rows.clone()], 0..rows.len(), |_, logits| of_a.extend_from_slice(logits))?;
        let n_vocab = of_a.len() / rows.len();
        b.eval_rows(&tokens[rows.clone()], 0..rows.len(), |at, logits| {
            let n = logits.len() / n_vocab;
            let targets = &tokens[first + at + 1..first + at + 1 + n];
            let of_a = &of_a[at * n_vocab..(at + n) * n_vocab];
            compare(of_a, logits, targets, threads).into_iter().for_each(|score| divergence.add(score));
        })?;
    }
    Ok(())
}
