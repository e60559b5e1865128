//! What becomes of each tensor, and what the user should know of it before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_loader::imatrix::{self, Imatrix};
use tandem_loader::{GgmlType, Gguf, Metadata, TensorInfo, TensorSpec, TypeClass, Value};
use tandem_models::mix::{self, Mix, Wishes};

use super::{MethodArg, QuantizeArgs, TensorType};
use crate::exit::Failure;
use crate::ui::{self, Ui};

/// `general.quantization_version`: the version of the block formats, which has been 2 since GGUF came.
const QUANTIZATION_VERSION: u32 = 2;
/// In the names of tensors whose rows are looked up.
const EMBEDDING: &str = "token_embd";

/// One tensor.
pub(super) struct Job<'a> {
    pub(super) tensor: &'a TensorInfo,
    /// The type it gets.
    pub(super) ty: GgmlType,
    /// The type it would have got with other sizes.
    pub(super) instead_of: Option<GgmlType>,
    /// One number for each weight of a row, for each matrix of the tensor; or one row of numbers for all of them.
    pub(super) importance: Option<Vec<f32>>,
}

/// One file to write.
pub(super) struct OutFile {
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
    /// Which jobs it holds.
    pub(super) jobs: std::ops::Range<usize>,
}

/// All of it.
pub(super) struct Plan<'a> {
    pub(super) gguf: &'a Arc<Gguf>,
    pub(super) mix: &'static Mix,
    pub(super) jobs: Vec<Job<'a>>,
    pub(super) files: Vec<OutFile>,
    /// Whether there is an importance matrix.
    imatrix: bool,
    /// Whether weights are rounded by their inputs on a text, which are better known than from an importance matrix.
    is_gptq: bool,
}

impl Job<'_> {
    /// Whether it becomes another type.
    pub(super) fn changes(&self) -> bool {
        self.ty != self.tensor.ty
    }

    /// Bytes it will have.
    pub(super) fn n_bytes(&self) -> u64 {
        // Choices fit the rows, so there is a size.
        TensorSpec::like(self.tensor, self.ty).n_bytes().unwrap_or(0)
    }

    /// The importance for matrix `i` of the tensor, if there is one.
    pub(super) fn importance(&self, i: usize) -> Option<&[f32]> {
        let n = self.tensor.row_len();
        let values = self.importance.as_deref()?;
        Some(if values.len() == n { values } else { &values[i * n..(i + 1) * n] })
    }
}

impl<'a> Plan<'a> {
    pub(super) fn new(gguf: &'a Arc<Gguf>, args: &QuantizeArgs, imatrix: Option<&Imatrix>) -> anyhow::Result<Plan<'a>> {
        let kind = gguf.metadata().str("general.type")?.unwrap_or("model");
        if gguf.tensors().is_empty() || kind == "imatrix" {
            return Err(Failure::model("has no weights to quantize"));
        }
        let by_name = |name: &str| args.tensor_type.iter().find(|row| row.pattern.is_match(name)).map(|row| row.ty);
        let is_gptq = args.method == MethodArg::Gptq;
        let wishes = Wishes {
            pure: args.pure,
            imatrix: imatrix.is_some() && !is_gptq,
            output: args.output_type,
            embedding: args.embedding_type,
            by_name: &by_name,
        };
        let choices = mix::choose(gguf, args.mix, &wishes)?;
        let job = |(tensor, choice): (&'a TensorInfo, mix::Choice)| {
            let importance = match imatrix {
                Some(imatrix) if choice.ty != tensor.ty && (!is_gptq || tensor.name.contains(EMBEDDING)) => {
                    importance(tensor, imatrix)?
                }
                _ => None,
            };
            Ok(Job { tensor, ty: choice.ty, instead_of: choice.instead_of, importance })
        };
        let jobs = gguf.tensors().iter().zip(choices).map(job).collect::<anyhow::Result<Vec<_>>>()?;
        if imatrix.is_some() && jobs.iter().any(Job::changes) && jobs.iter().all(|job| job.importance.is_none()) {
            return Err(Failure::usage(match is_gptq {
                true => {
                    "--imatrix: gptq uses its entry for the embedding alone, and it has none, or that is not quantized"
                }
                false => {
                    "--imatrix: none of its entries has the name of a tensor to be quantized; it was made from another model"
                }
            }));
        }
        let files = files(gguf, args, imatrix)?;
        Ok(Plan { gguf, mix: args.mix, jobs, files, imatrix: imatrix.is_some(), is_gptq })
    }

    /// Bytes of all tensors, before and after.
    pub(super) fn n_bytes(&self) -> (u64, u64) {
        let before = self.jobs.iter().map(|job| job.tensor.n_bytes() as u64).sum();
        (before, self.jobs.iter().map(Job::n_bytes).sum())
    }

    /// Mean bits of a weight after.
    pub(super) fn bits_per_weight(&self) -> f64 {
        let n: u64 = self.jobs.iter().map(|job| job.tensor.n_elements() as u64).sum();
        self.n_bytes().1 as f64 * 8.0 / n.max(1) as f64
    }

    /// Says what the user might not expect.
    pub(super) fn warn(&self, ui: &Ui) {
        self.warn_again(ui);
        let mut fallbacks: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for job in &self.jobs {
            if let Some(wanted) = job.instead_of {
                fallbacks.entry((wanted, job.ty, job.tensor.row_len())).or_default().push(&job.tensor.name);
            }
        }
        for ((wanted, ty, row_len), names) in fallbacks {
            let block = wanted.block_size();
            ui.warn(format_args!(
                "{}: {ty} in place of {wanted}, whose blocks of {block} do not divide rows of {row_len}",
                list(&names)
            ));
        }
        if self.is_gptq {
            return;
        }
        if self.imatrix {
            let is_missing = |job: &&Job<'_>| {
                let looked_up = job.tensor.name.contains(EMBEDDING);
                job.changes() && job.ty.class() == TypeClass::Quantized && job.importance.is_none() && !looked_up
            };
            let missing: Vec<&str> = self.jobs.iter().filter(is_missing).map(|job| job.tensor.name.as_str()).collect();
            if !missing.is_empty() {
                ui.warn(format_args!(
                    "the importance matrix has no entry for {}: all weights count alike",
                    list(&missing)
                ));
            }
        } else {
            let needs =
                |job: &&Job<'_>| job.changes() && job.ty.bits_per_weight() < 3.2 && job.ty.name().starts_with("IQ");
            let names: Vec<&str> = self.jobs.iter().filter(needs).map(|job| job.tensor.name.as_str()).collect();
            if !names.is_empty() {
                ui.warn(format_args!(
                    "{}: so few bits lose much without an importance matrix (--imatrix)",
                    list(&names)
                ));
            }
        }
    }

    /// Warns of rules for types that say nothing about this model.
    pub(super) fn warn_idle(&self, rules: &[TensorType], ui: &Ui) {
        // Only matrices have a choice of types.
        let matrices: Vec<&str> =
            self.jobs.iter().filter(|job| job.tensor.dims().len() > 1).map(|job| job.tensor.name.as_str()).collect();
        for (i, rule) in rules.iter().enumerate() {
            let is_first = |name: &str| !rules[..i].iter().any(|before| before.pattern.is_match(name));
            if !matrices.iter().any(|name| rule.pattern.is_match(name) && is_first(name)) {
                let (pattern, ty) = (rule.pattern.as_str(), rule.ty);
                ui.warn(format_args!("--tensor-type {pattern}={ty}: no matrix of the model has its type by this rule"));
            }
        }
    }

    /// Warns where quantized weights are quantized again.
    fn warn_again(&self, ui: &Ui) {
        let again = |job: &&Job<'_>| {
            let loses = job.changes() && job.ty.class() == TypeClass::Quantized;
            loses && job.tensor.ty.class() == TypeClass::Quantized
        };
        let again: Vec<&str> = self.jobs.iter().filter(again).map(|job| job.tensor.name.as_str()).collect();
        if !again.is_empty() {
            ui.warn(format_args!(
                "{}: quantized already in this file, and losing again; start from F32, F16 or BF16 where there is one",
                list(&again)
            ));
        }
    }
}

/// Names for people: the first, and how many there are.
pub(super) fn list(names: &[&str]) -> String {
    match names {
        [one] => ui::plain(one),
        [first, ..] => format!("{} tensors ({}, ...)", names.len(), ui::plain(first)),
        [] => String::new(),
    }
}

/// A tensor's part of the importance matrix.
fn importance(tensor: &TensorInfo, imatrix: &Imatrix) -> anyhow::Result<Option<Vec<f32>>> {
    let Some(values) = imatrix.get(&tensor.name) else { return Ok(None) };
    let n = tensor.row_len();
    let n_matrices: usize = tensor.dims().iter().skip(2).product();
    if values.len() != n && values.len() != n * n_matrices {
        // Embeddings are looked up, not multiplied: what is recorded under their name belongs to something else.
        if tensor.name.contains(EMBEDDING) {
            return Ok(None);
        }
        let message = format!(
            "--imatrix: the entry for `{}` has {} values, but the tensor has {n_matrices} x {n} columns; it was made from another model",
            tensor.name,
            values.len()
        );
        return Err(Failure::usage(message));
    }
    Ok(Some(values.chunks_exact(n).flat_map(imatrix::positive).collect()))
}

/// The files to write, with their metadata.
fn files(gguf: &Gguf, args: &QuantizeArgs, imatrix: Option<&Imatrix>) -> anyhow::Result<Vec<OutFile>> {
    let n_tensors = gguf.tensors().len();
    let mut metadata = gguf.metadata().clone();
    for key in ["split.no", "split.count", "split.tensors.count"] {
        metadata.remove(key);
    }
    metadata.set("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    metadata.set("general.file_type", Value::U32(args.mix.file_type));
    if let (Some(imatrix), Some(path)) = (imatrix, &args.imatrix) {
        metadata.set("quantize.imatrix.file", Value::String(path.display().to_string()));
        if let Some(name) = imatrix.datasets.first() {
            metadata.set("quantize.imatrix.dataset", Value::String(name.clone()));
        }
        metadata.set("quantize.imatrix.entries_count", Value::U32(imatrix.len() as u32));
        if let Some(chunks) = imatrix.chunks {
            metadata.set("quantize.imatrix.chunks_count", Value::U32(chunks));
        }
    }
    if let Some(path) = &args.gptq.calibration {
        metadata.set("quantize.gptq.dataset", Value::String(path.display().to_string()));
    }
    let n_parts = gguf.paths().len();
    if !args.keep_split || n_parts == 1 {
        return Ok(vec![OutFile { path: args.output.clone(), metadata, jobs: 0..n_tensors }]);
    }
    let file = |no: usize| {
        let mut metadata = if no == 0 { metadata.clone() } else { Metadata::default() };
        metadata.set("split.no", Value::U16(no as u16));
        metadata.set("split.count", Value::U16(n_parts as u16));
        metadata.set("split.tensors.count", Value::I32(n_tensors as i32));
        // Tensors of a part follow each other.
        let first = gguf.tensors().partition_point(|t| t.part() < no);
        let end = gguf.tensors().partition_point(|t| t.part() <= no);
        OutFile { path: part_path(&args.output, no, n_parts), metadata, jobs: first..end }
    };
    Ok((0..n_parts).map(file).collect())
}

/// The name of a part: `OUT-00001-of-00003.gguf`. `out` may be that of the first part, or end in `.gguf`.
fn part_path(out: &Path, no: usize, n_parts: usize) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    let stem = stem.strip_suffix(&format!("-00001-of-{n_parts:05}")).unwrap_or(stem);
    out.with_file_name(format!("{stem}-{:05}-of-{n_parts:05}.gguf", no + 1))
}
