//! `--method gptq`: the tensors of the model's program, in its order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use tandem_engine::gptq::{self, How, Listener, Quantized};
use tandem_loader::{GgmlType, TypeClass};
use tandem_models::Program;

use super::plan::{Plan, list};
use super::write::{Done, Files};
use crate::args::positive;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::ui::Ui;
use crate::windows::{self, TextArgs};

/// Windows of the calibration text, unless the user says otherwise: several times as many tokens as most matrices have columns.
/// Time grows with it.
const DEFAULT_CHUNKS: usize = 64;
/// The usual one: less gains on texts like the calibration text and loses on others (docs/quantization.md).
const DEFAULT_DAMPING: f32 = 0.01;

/// Options of `--method gptq`.
#[derive(Debug, Args)]
pub(super) struct GptqArgs {
    /// For gptq: a text as the model will be used on
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// For gptq: tokens of a window of the text [default: 512]
    #[arg(short, long, value_name = "N")]
    ctx: Option<usize>,
    /// For gptq: use at most N windows of the text [default: 64]
    #[arg(long, value_name = "N", value_parser = positive)]
    chunks: Option<usize>,
    /// For gptq: what is added to the inputs' second moments, as a share of their mean; more trusts the text less [default:
    /// 0.01]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    damping: Option<f32>,
    /// For gptq: round columns in the order of the file, in place of those with the largest inputs first
    #[arg(long)]
    no_act_order: bool,
}

impl GptqArgs {
    /// An error where options and method do not go together.
    pub(super) fn check(&self, is_gptq: bool) -> anyhow::Result<()> {
        if is_gptq && self.calibration.is_none() {
            return Err(Failure::usage("--method gptq needs a text to calibrate on: --calibration FILE"));
        }
        if let Some(path) = self.calibration.as_ref().filter(|path| *path != Path::new("-")) {
            std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        let others = [self.ctx.is_some(), self.chunks.is_some(), self.damping.is_some(), self.no_act_order];
        if !is_gptq && (self.calibration.is_some() || others.contains(&true)) {
            return Err(Failure::usage(
                "--calibration, --ctx, --chunks, --damping and --no-act-order have a meaning for --method gptq only",
            ));
        }
        Ok(())
    }
}

fn share(text: &str) -> Result<f32, String> {
    let share: f32 = text.parse().map_err(|_| "give a number, as 0.01")?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("give a number above 0, at most 1".to_owned()) }
}

/// Quantizes the tensors that the model's program uses.
///
/// # Errors
/// An architecture that cannot be run, a text that is too short, what the engine says, Ctrl-C.
pub(super) fn quantize(
    args: &GptqArgs,
    threads: usize,
    plan: &Plan<'_>,
    files: &mut Files<'_>,
    ui: &Ui,
    interrupt: &mut Interrupt,
) -> anyhow::Result<()> {
    let program = Program::from_gguf(plan.gguf)?;
    let tokenizer = open::tokenizer(plan.gguf)?;
    let Some(file) = args.calibration.clone() else { return Ok(()) };
    let text = TextArgs { file, chunks: Some(args.chunks.unwrap_or(DEFAULT_CHUNKS)) };
    let n_ctx = windows::n_ctx(args.ctx)?;
    let windows = text.cut(&text.read(interrupt)?, &tokenizer, n_ctx, program.hparams.n_vocab, interrupt)?;
    let n_tokens = windows.len() * n_ctx;
    let columns = plan.jobs.iter().filter(|job| job.changes()).map(|job| job.tensor.row_len()).max();
    if let Some(columns) = columns.filter(|columns| n_tokens < *columns) {
        ui.warn(format_args!(
            "{n_tokens} tokens to calibrate on say little of matrices with {columns} columns: give a longer text"
        ));
    }
    let quantized = |job: &&super::plan::Job<'_>| job.changes() && job.ty.class() == TypeClass::Quantized;
    let types: HashMap<String, GgmlType> =
        plan.jobs.iter().filter(quantized).map(|job| (job.tensor.name.clone(), job.ty)).collect();
    let importance = |job: &super::plan::Job<'_>| Some((job.tensor.name.clone(), job.importance(0)?.to_vec()));
    let stop = Arc::new(AtomicBool::new(false));
    interrupt.watch(stop.clone())?;
    let options = gptq::Options {
        threads,
        damping: args.damping.unwrap_or(DEFAULT_DAMPING),
        act_order: !args.no_act_order,
        importance: plan.jobs.iter().filter_map(importance).collect(),
        stop,
    };
    let bar = ui.steps("calibrating", 1);
    let by_name = plan.jobs.iter().enumerate().map(|(i, job)| (job.tensor.name.as_str(), i)).collect();
    let mut progress = Progress { files, by_name, bar: bar.clone(), searched: Vec::new() };
    let result = gptq::run(plan.gguf, &program, &types, &windows, &options, &mut progress);
    bar.finish_and_clear();
    let searched = progress.searched;
    interrupt.check()?;
    result?;
    if !searched.is_empty() {
        let names: Vec<&str> = searched.iter().map(String::as_str).collect();
        ui.note(format_args!(
            "{} by search: rows that are looked up, or a type that has no quants for single weights",
            list(&names)
        ));
    }
    Ok(())
}

/// Writes tensors as they come.
struct Progress<'a, 'b, 'c> {
    files: &'a mut Files<'b>,
    /// Jobs by tensor.
    by_name: HashMap<&'c str, usize>,
    bar: ProgressBar,
    /// Tensors that were not quantized by GPTQ.
    searched: Vec<String>,
}

impl Listener for Progress<'_, '_, '_> {
    fn progress(&mut self, done: usize, total: usize, what: &str) -> tandem_engine::Result<()> {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(what.to_owned());
        Ok(())
    }

    fn tensor(&mut self, tensor: Quantized<'_>) -> tandem_engine::Result<()> {
        let name = tensor.tensor.name.as_str();
        let method = match tensor.how {
            How::Gptq => "gptq",
            How::Search => {
                self.searched.push(name.to_owned());
                "search"
            }
        };
        if let Some(job) = self.by_name.get(name) {
            self.files.select(*job)?.write(tensor.data)?;
            self.files.finish(*job, Done { loss: tensor.loss, method }, &self.bar);
        }
        Ok(())
    }
}
