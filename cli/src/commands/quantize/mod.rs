//! `tandem quantize`: a model in another type.

mod gptq;
mod plan;
mod show;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};
use regex::Regex;
use tandem_loader::GgmlType;
use tandem_loader::imatrix::Imatrix;
use tandem_loader::quantize::{Method, encodable_types, encode_fn};
use tandem_models::mix::{MIXES, Mix};

use crate::args::{ModelArgs, thread_count};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::output;
use crate::threads::physical_cores;
use crate::ui::{self, Ui};

/// Options of `tandem quantize`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The model: a path to a .gguf file (the first part of a split one), best in F32, F16 or BF16; or a name or
    /// reference as for --model of other commands
    #[arg(value_name = "IN")]
    input: String,
    /// The file to write; it must not exist
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// What to make of it, such as Q4_K_M: a type, or a mix of types by what tensors are for
    #[arg(value_name = "TYPE", value_parser = mix, help = type_help())]
    mix: &'static Mix,
    /// Importance matrix (GGUF or .dat) that says which weights matter on real text; gptq, which takes a text itself, uses
    /// it for the embedding alone, which is worth it where that is the output too
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// How scales are chosen
    #[arg(long, value_name = "METHOD", default_value = "search")]
    method: MethodArg,
    #[command(flatten)]
    gptq: gptq::GptqArgs,
    /// The type of tensors whose name matches a pattern (a regular expression that may match anywhere in the name), as
    /// in attn_v=Q8_0 (repeatable; the first that matches counts)
    #[arg(long, value_name = "PATTERN=TYPE", value_parser = tensor_type)]
    tensor_type: Vec<TensorType>,
    /// The type of the output matrix
    #[arg(long, alias = "output-tensor-type", value_name = "TYPE", value_parser = weight_type)]
    output_type: Option<GgmlType>,
    /// The type of the token embedding
    #[arg(long, alias = "token-embedding-type", value_name = "TYPE", value_parser = weight_type)]
    embedding_type: Option<GgmlType>,
    /// The same type for all tensors that are quantized: no mix
    #[arg(long)]
    pure: bool,
    /// Write as many parts as a split model has: OUT-00001-of-0000N.gguf, ...
    #[arg(long)]
    keep_split: bool,
    /// Print what would become of each tensor, and the size; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object: sizes, and type and error of each tensor
    #[arg(long)]
    json: bool,
    /// CPU threads [default: the physical cores this process may use]; the result does not depend on it
    #[arg(short, long, value_name = "N", value_parser = thread_count)]
    threads: Option<usize>,
}

/// `--method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodArg {
    /// The least weighted square error, by search
    Search,
    /// Symmetric: scaled by the largest magnitude
    Absmax,
    /// Asymmetric: from smallest to largest, where the type has a minimum
    Minmax,
    /// The least change of what layers give on a text (--calibration): takes minutes, and loses less than search
    Gptq,
}

impl MethodArg {
    /// How single tensors are encoded.
    fn method(self) -> Method {
        match self {
            MethodArg::Search | MethodArg::Gptq => Method::Search,
            MethodArg::Absmax => Method::AbsMax,
            MethodArg::Minmax => Method::MinMax,
        }
    }
}

/// `--tensor-type`.
#[derive(Debug, Clone)]
struct TensorType {
    pattern: Regex,
    ty: GgmlType,
}

/// Quantizes.
pub(crate) fn run(args: &QuantizeArgs, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let start = Instant::now();
    if args.imatrix.is_some() && !matches!(args.method, MethodArg::Search | MethodArg::Gptq) {
        return Err(Failure::usage(
            "--imatrix has a meaning for --method search and gptq only: the others do not weigh weights",
        ));
    }
    args.gptq.check(args.method == MethodArg::Gptq)?;
    output::check(&args.output)?;
    let gguf = open::open(&ModelArgs { model: Some(args.input.clone()) }, ui, interrupt)?;
    let imatrix = args.imatrix.as_deref().map(|path| open::named(Imatrix::open(path), path)).transpose()?;
    let gguf = Arc::new(gguf);
    let plan = plan::Plan::new(&gguf, args, imatrix.as_ref()).with_context(|| open::shown(&gguf))?;
    plan.warn(ui);
    plan.warn_idle(&args.tensor_type, ui);
    if args.dry_run {
        let text = if args.json { show::plan_json(&plan) } else { show::plan_text(&plan) };
        return Ok(ui::print(text)?);
    }
    interrupt.on_termination_too()?;
    let threads = args.threads.unwrap_or_else(physical_cores);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("cannot start threads")?;
    let done = pool.install(|| {
        let mut files = write::Files::create(&plan, ui)?;
        if args.method == MethodArg::Gptq {
            gptq::quantize(&args.gptq, threads, &plan, &mut files, ui, interrupt)?;
        }
        write::write(&mut files, args.method.method(), ui, interrupt)?;
        files.publish()
    })?;
    let report = show::Report::new(&plan, &done, start.elapsed());
    if args.json {
        ui::print(report.json())?;
    }
    ui.note(report.text());
    Ok(())
}

fn mix(name: &str) -> Result<&'static Mix, String> {
    Mix::named(name).ok_or_else(|| format!("there is no such type; give one of {}", names().join(" ")))
}

fn names() -> Vec<&'static str> {
    MIXES.iter().filter(|mix| encode_fn(mix.base).is_some()).map(|mix| mix.name).collect()
}

fn type_help() -> String {
    format!(
        "What to make of it, such as Q4_K_M: a type, or a mix of types by what tensors are for. One of {}",
        names().join(" ")
    )
}

/// A type that weights can be encoded to.
fn weight_type(name: &str) -> Result<GgmlType, String> {
    let found = GgmlType::ALL.iter().find(|ty| ty.name().eq_ignore_ascii_case(name) && encode_fn(**ty).is_some());
    found.copied().ok_or_else(|| format!("give one of {}", encodable_types()))
}

fn tensor_type(text: &str) -> Result<TensorType, String> {
    let (pattern, ty) = text.rsplit_once('=').ok_or("give PATTERN=TYPE, as in attn_v=Q8_0")?;
    let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
    Ok(TensorType { pattern, ty: weight_type(ty)? })
}
