//! `tandem imatrix`: how large the inputs of each matrix are on a text, for quantizing with weights by importance.

mod file;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::{ArgAction, Args};
use tandem_engine::placement::GpuLayers;
use tandem_engine::score::Windows;
use tandem_engine::{InputSquares, MatrixInputs, Outputs, Session};
use tandem_models::{Program, Step};

use crate::args::{LoadArgs, ModelArgs, positive};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::output;
use crate::ui::Ui;
use crate::windows::{self, TextArgs};
use file::Origin;

/// Options of `tandem imatrix`. -c is the length of a window.
#[derive(Debug, Args)]
pub(crate) struct ImatrixArgs {
    #[command(flatten)]
    text: TextArgs,
    /// Where to write the importance matrix (GGUF, as llama-imatrix writes it)
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Go on where --out ends, if it is there: the same model, text and -c
    #[arg(long)]
    resume: bool,
    /// Write --out after every N windows, so that less is lost
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive)]
    save_every: usize,
    /// Observe the output matrix too, which is the embedding in many models; =false saves computing all logits
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    process_output: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// Evaluates window by window, and saves now and then. Ctrl-C is heard between windows: half a window has no place in
/// the file.
pub(crate) fn run(args: &ImatrixArgs, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let out = &args.out;
    if out.exists() && !args.resume {
        let out = out.display();
        return Err(Failure::usage(format!("{out} exists: --resume goes on where it ends, or give another -o")));
    }
    output::check(out)?;
    interrupt.on_termination_too()?;
    let mut options = args.load.options();
    let n_ctx = windows::n_ctx(args.load.context.ctx)?;
    options.n_ctx = Some(n_ctx);
    if options.wanted.layers == GpuLayers::Auto {
        // Only what the CPU computes is observed.
        options.wanted.layers = GpuLayers::Count(0);
    }
    let text = args.text.read(interrupt)?;
    let gguf = open::open(&args.model, ui, interrupt)?;
    let tokenizer = open::tokenizer(&gguf)?;
    let program = Program::from_gguf(&gguf)?;
    let windows = args.text.cut(&text, &tokenizer, n_ctx, program.hparams.n_vocab, interrupt)?;
    let mut squares = InputSquares::new(&program);
    let heads = if args.process_output { Vec::new() } else { heads(&program) };
    let is_left_out = |matrix: &MatrixInputs| heads.contains(&matrix.tensor.as_str());
    let origin = Origin::new(&args.text.file, &text, &gguf, n_ctx, args.process_output);
    let may_miss = |matrix: &MatrixInputs| matrix.counts.len() > 1 || is_left_out(matrix);
    let done = if out.exists() { file::read(out, &origin, &mut squares, may_miss)? } else { 0 };
    if done >= windows.len() {
        ui.note(format_args!("{} has {done} windows already: nothing is left to do", out.display()));
        return Ok(());
    }
    if done > 0 {
        ui.note(format_args!("going on after window {done} of {}", windows.len()));
    }
    let squares = Arc::new(Mutex::new(squares));
    options.inputs = Some(squares.clone());
    let model = open::load_model(gguf, &options, ui, interrupt)?;
    let mut session = Session::new(model);

    let check_all =
        |squares: &InputSquares| squares.matrices().filter(|matrix| !is_left_out(matrix)).try_for_each(check);
    let save = |n_windows: usize| {
        let squares = squares.lock().unwrap_or_else(PoisonError::into_inner);
        check_all(&squares)?;
        file::write(out, &origin, n_windows, &squares)
    };
    let bar = ui.steps("importance", windows.len());
    let start = Instant::now();
    for i in done..windows.len() {
        bar.set_position(i as u64);
        observe(&mut session, &windows.tokens(i), args.process_output)?;
        let stopped = interrupt.is_set();
        if i == done {
            // What cannot be observed is known after one window.
            check_all(&squares.lock().unwrap_or_else(PoisonError::into_inner))?;
        }
        if stopped || (i + 1 - done).is_multiple_of(args.save_every) || i + 1 == windows.len() {
            save(i + 1)?;
        }
        if stopped && i + 1 < windows.len() {
            bar.finish_and_clear();
            let n = windows.len();
            ui.note(format_args!("{} has {} of {n} windows; --resume goes on there", out.display(), i + 1));
            return Err(Failure::interrupted());
        }
    }
    bar.finish_and_clear();
    finish(&windows, done, start, &squares.lock().unwrap_or_else(PoisonError::into_inner), args, ui);
    Ok(())
}

/// Evaluates one window.
fn observe(session: &mut Session, tokens: &[u32], process_output: bool) -> tandem_engine::Result<()> {
    session.truncate(0);
    if process_output {
        session.eval_rows(tokens, 0..tokens.len(), |_, _| ())
    } else {
        session.eval(tokens, Outputs::None).map(|_| ())
    }
}

/// The names of the output matrices.
fn heads(program: &Program) -> Vec<&str> {
    let steps = program.blocks.iter().flat_map(|block| &block.steps);
    let heads =
        steps.filter_map(|step| if let Step::Logits { linear, .. } = step { Some(linear.weight) } else { None });
    heads.map(|id| program.weight(id).tensor.as_str()).collect()
}

/// An error where a matrix that every token goes through has seen none: what is not computed here cannot be observed.
fn check(matrix: &MatrixInputs) -> anyhow::Result<()> {
    let tensor = &matrix.tensor;
    if matrix.counts == [0] {
        return Err(Failure::usage(format!(
            "no input of {tensor} was seen: only what the CPU computes is observed; use -ngl 0"
        )));
    }
    match matrix.sums.iter().position(|sum| !sum.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Failure::model(format!(
            "inputs of {tensor} are not finite (column {}): the model's weights may be damaged",
            i % matrix.n_in
        ))),
    }
}

fn finish(windows: &Windows, done: usize, start: Instant, squares: &InputSquares, args: &ImatrixArgs, ui: &Ui) {
    let seconds = start.elapsed().as_secs_f64();
    let n = windows.len() - done;
    let speed = (n * windows.n_ctx()) as f64 / seconds;
    ui.note(format_args!(
        "{n} windows of {} tokens, {seconds:.1} s, {speed:.0} tokens/s; wrote {}",
        windows.n_ctx(),
        args.out.display()
    ));
    for matrix in squares.matrices().filter(|matrix| matrix.counts.len() > 1) {
        let unseen = matrix.counts.iter().filter(|count| **count == 0).count();
        if unseen > 0 {
            let (tensor, n) = (&matrix.tensor, matrix.counts.len());
            ui.warn(format_args!("{tensor}: no token went to {unseen} of {n} experts; a longer text helps"));
        }
    }
}
