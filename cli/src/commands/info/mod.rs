//! `tandem info`: what is in a model file, without loading it.

mod report;
mod show;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use tandem_loader::{Gguf, Metadata, quant};
use tandem_models::Program;

use crate::args::{ContextArgs, ModelArgs};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::output;
use crate::ui::{self, Ui};

/// Options of `tandem info`.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write one tensor to --out instead, dequantized: f32, little-endian, row-major
    #[arg(long, value_name = "NAME", requires = "out", conflicts_with_all = ["tensors", "json"])]
    dump_tensor: Option<String>,
    /// The file for --dump-tensor
    #[arg(long, value_name = "FILE", requires = "dump_tensor")]
    out: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    context: ContextArgs,
}

/// Shows.
pub(crate) fn run(args: &InfoArgs, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
    let gguf = open::open(&args.model, ui, interrupt)?;
    if let (Some(name), Some(out)) = (&args.dump_tensor, &args.out) {
        return dump(&gguf, name, out, ui);
    }
    let program = program(&gguf).with_context(|| open::shown(&gguf))?;
    let report = report::Report::new(&gguf, &program, &args.context);
    let text = if args.json {
        format!("{:#}\n", show::json(&gguf, &report, args.tensors))
    } else {
        show::text(&gguf, &report, args.tensors)
    };
    Ok(ui::print(text)?)
}

/// The file's program, or in words why it has none.
///
/// # Errors
/// The file is at fault: it claims to be a model that we know, and is not whole. Files of other kinds (adapters,
/// vocabularies, importance matrices) and of other architectures are fine.
fn program(gguf: &Gguf) -> anyhow::Result<Result<Program, String>> {
    let metadata = gguf.metadata();
    let kind = metadata.str("general.type")?.unwrap_or("model");
    if metadata.get("general.architecture").is_none() && kind == "model" {
        return Err(Metadata::missing("general.architecture").into());
    }
    if kind != "model" {
        return Ok(Err(format!("this is no model (`general.type` is `{kind}`)")));
    }
    if gguf.tensors().is_empty() {
        return Ok(Err("the file has no tensors: it holds a vocabulary only".to_owned()));
    }
    match Program::from_gguf(gguf) {
        Ok(program) => Ok(Ok(program)),
        Err(error) if error.is_malformed() => Err(error.into()),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// Writes one tensor as f32, some rows at a time.
fn dump(gguf: &Gguf, name: &str, path: &Path, ui: &Ui) -> anyhow::Result<()> {
    let Some(tensor) = gguf.tensor(name) else {
        return Err(Failure::usage(format!(
            "there is no tensor `{name}` in the file; `tandem info --tensors` lists them"
        )));
    };
    output::refuse_inputs("--out", path, gguf.paths())?;
    let decode = quant::decoder(tensor)?;
    let n = tensor.row_len();
    let row_bytes = tensor.n_bytes() / tensor.n_rows();
    let rows = (1 << 20) / n.max(1) + 1;
    output::write(path, |out| {
        for blocks in gguf.data(tensor).chunks(rows * row_bytes) {
            let mut values = vec![0f32; blocks.len() / row_bytes * n];
            decode(blocks, &mut values);
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            out.write_all(&bytes)?;
        }
        Ok(())
    })?;
    ui.note(format_args!("wrote {:?} f32 ({} in the file) to {}", tensor.dims(), tensor.ty, path.display()));
    Ok(())
}
