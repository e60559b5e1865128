//! `tandem compare`: two models side by side over a text, and their weights tensor by tensor.
//!
//! Models are evaluated in lockstep, some rows at a time, so that no logits are stored. Several are compared with the
//! same one at once: that is evaluated only once then.

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
    /// The model compared with it; several are compared with A one by one, and A is evaluated only once
    #[arg(value_name = "B", required = true)]
    b: Vec<String>,
    /// The text all evaluate (- is stdin)
    #[arg(short, long, value_name = "FILE", required_unless_present = "tensors")]
    file: Option<PathBuf>,
    /// Evaluate at most N windows [default: all]
    #[arg(long, value_name = "N", value_parser = positive, requires = "file")]
    chunks: Option<usize>,
    /// Compare the weights, tensor by tensor
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object; of several models an array
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
#[derive(Clone)]
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
    if args.report.is_some() && args.b.len() > 1 {
        return Err(Failure::usage("--report writes a page about two models: give one B"));
    }
    let options = args.load.options();
    let n_ctx = windows::n_ctx(args.load.context.ctx)?;
    let text = args.file.as_ref().map(|file| TextArgs { file: file.clone(), chunks: args.chunks });
    let bytes = text.as_ref().map(|text| text.read(interrupt)).transpose()?;
    let a = Side::open(&args.a, ui, interrupt)?;
    let bs = args.b.iter().map(|b| Side::open(b, ui, interrupt)).collect::<anyhow::Result<Vec<Side>>>()?;
    if let Some(report) = &args.report {
        output::check(report)?;
        let models = std::iter::once(&a).chain(&bs).flat_map(|side| side.gguf.paths());
        output::refuse_inputs("--report", report, models.chain(args.file.as_deref()))?;
    }
    let threads = options.threads.unwrap_or(1);
    let compared = |b: &Side| Comparison { sides: [a.clone(), b.clone()], text: None, tensors: None };
    let mut comparisons: Vec<Comparison> = bs.iter().map(compared).collect();
    if let (Some(text), Some(bytes)) = (&text, &bytes) {
        let options = LoadOptions { n_ctx: Some(n_ctx), ..options };
        let results = over_text(&a, &bs, (text, bytes), &options, args, ui, interrupt)?;
        for (comparison, result) in comparisons.iter_mut().zip(results) {
            comparison.text = Some(result);
        }
    }
    for comparison in &mut comparisons {
        let [a, b] = &comparison.sides;
        if args.tensors || args.report.is_some() {
            comparison.tensors = Some(tensors::compare(&a.gguf, &b.gguf, threads, ui, interrupt)?);
        }
        if let Some(path) = &args.report {
            output::write(path, |out| Ok(out.write_all(report::page(comparison).as_bytes())?))?;
            ui.note(format_args!("wrote {}", path.display()));
        }
        if !args.tensors {
            comparison.tensors = None;
        }
    }
    let answer = if args.json { show::json(&comparisons) } else { show::text(&comparisons) };
    Ok(ui::print(answer)?)
}

/// One result for each of `bs`.
fn over_text(
    a: &Side,
    bs: &[Side],
    (text, bytes): (&TextArgs, &[u8]),
    options: &LoadOptions,
    args: &CompareArgs,
    ui: &Ui,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Vec<TextResult>> {
    let tokenizer = open::tokenizer(&a.gguf)?;
    for b in bs {
        check_vocabularies([a, b], [&tokenizer, &open::tokenizer(&b.gguf)?])?;
    }
    let precision = args.precision_a.map_or(options.precision, Into::into);
    let options_a = LoadOptions { precision, ..options.clone() };
    let n_vocab = |session: &Session| session.model().program().hparams.n_vocab;
    let session_a = open::load_session(a.gguf.clone(), &options_a, ui, interrupt)?;
    let mut sessions = Vec::new();
    for b in bs {
        let session = open::load_session(b.gguf.clone(), options, ui, interrupt)?;
        if n_vocab(&session_a) != n_vocab(&session) {
            let how = format!("A has logits for {} tokens, B for {}", n_vocab(&session_a), n_vocab(&session));
            return Err(different([a, b], how));
        }
        sessions.push(session);
    }
    let n_ctx = session_a.model().n_ctx();
    let windows = text.cut(bytes, &tokenizer, n_ctx, n_vocab(&session_a), interrupt)?;
    let backends = |session: &Session| session.model().backend_names().join("+");
    let (backend_a, backends_b) = (backends(&session_a), sessions.iter().map(backends).collect::<Vec<String>>());
    let names: Vec<&str> = std::iter::once(a).chain(bs).map(|side| side.name.as_str()).collect();
    let divergences = evaluate(session_a, sessions, &names, &windows, ui)?;
    let result = |(divergence, backend_b)| TextResult {
        file: text.file.clone(),
        n_ctx,
        n_windows: windows.len(),
        backends: [backend_a.clone(), backend_b],
        divergence,
    };
    Ok(divergences.into_iter().zip(backends_b).map(result).collect())
}

/// The first difference of the two vocabularies, as an error: other tokens make no common distribution.
fn check_vocabularies(sides: [&Side; 2], [a, b]: [&Tokenizer; 2]) -> anyhow::Result<()> {
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

fn different([a, b]: [&Side; 2], how: String) -> anyhow::Error {
    Failure::model(format!(
        "{} and {} have different vocabularies and cannot be compared over a text: {how}; --tensors without -f \
         compares weights alone",
        a.name, b.name
    ))
}

/// Evaluates A and each B in lockstep, with a running estimate; `names` are A's and theirs. One divergence for each B.
fn evaluate(
    mut a: Session,
    mut bs: Vec<Session>,
    names: &[&str],
    windows: &Windows,
    ui: &Ui,
) -> anyhow::Result<Vec<Divergence>> {
    let bar = ui.steps("comparing", windows.len());
    let mut divergences = vec![Divergence::default(); bs.len()];
    for i in 0..windows.len() {
        window(&mut a, &mut bs, windows, i, &mut divergences)?;
        for (divergence, b) in divergences.iter().zip(&names[1..]) {
            let is_nan = divergence.perplexity().each_ref().map(|perplexity| perplexity.mean().is_nan());
            if let Some(model) = [names[0], b].into_iter().zip(is_nan).find_map(|(name, is)| is.then_some(name)) {
                return Err(windows::not_numbers(model, i));
            }
        }
        for summary in divergences.iter().filter_map(Divergence::summary) {
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
    Ok(divergences)
}

/// Adds one window's scores. Rows of A are kept only until each B has the same ones.
fn window(
    a: &mut Session,
    bs: &mut [Session],
    windows: &Windows,
    i: usize,
    divergences: &mut [Divergence],
) -> tandem_engine::Result<()> {
    let tokens = windows.tokens(i);
    let (scored, threads) = (windows.scored(), a.model().n_threads());
    for session in std::iter::once(&mut *a).chain(&mut *bs) {
        session.truncate(0);
        session.eval(&tokens[..scored.start], tandem_engine::Outputs::None)?;
    }
    let step = a.rows_at_once();
    for first in scored.clone().step_by(step) {
        let rows = first..scored.end.min(first + step);
        let mut of_a = Vec::new();
        a.eval_rows(&tokens[rows.clone()], 0..rows.len(), |_, logits| of_a.extend_from_slice(logits))?;
        let n_vocab = of_a.len() / rows.len();
        for (b, divergence) in bs.iter_mut().zip(&mut *divergences) {
            b.eval_rows(&tokens[rows.clone()], 0..rows.len(), |at, logits| {
                let n = logits.len() / n_vocab;
                let targets = &tokens[first + at + 1..first + at + 1 + n];
                let of_a = &of_a[at * n_vocab..(at + n) * n_vocab];
                compare(of_a, logits, targets, threads).into_iter().for_each(|score| divergence.add(score));
            })?;
        }
    }
    Ok(())
}
