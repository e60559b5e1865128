//! The weights of two files, tensor by tensor.

use serde::Serialize;
use tandem_engine::score::{Blocks, WeightError};
use tandem_loader::{Gguf, TensorInfo, quant};

use crate::interrupt::Interrupt;
use crate::ui::Ui;

/// The comparison of one tensor that both files have.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) type_a: &'static str,
    pub(super) type_b: &'static str,
    /// As GGUF writes it: the row length first.
    pub(super) shape: Vec<usize>,
    #[serde(skip)]
    pub(super) bits_per_weight: f64,
    /// Root of the mean square of `b - a`.
    pub(super) rmse: f64,
    /// Decibels; `null` where nothing differs.
    pub(super) sqnr_db: f64,
    pub(super) max_error: f64,
    /// Index of B's block with the largest error; blocks of all rows are counted through.
    pub(super) worst_block: usize,
    /// Its root of the mean square.
    pub(super) worst_block_rmse: f64,
    pub(super) block_size: usize,
}

/// All tensors.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub(super) rows: Vec<Row>,
    /// Names that one file lacks, or whose shapes differ.
    pub(super) only_in_a: Vec<String>,
    pub(super) only_in_b: Vec<String>,
    pub(super) other_shape: Vec<String>,
}

/// Compares all tensors of A with those of B, streamed: no tensor is in memory as a whole.
pub(super) fn compare(a: &Gguf, b: &Gguf, threads: usize, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<Tensors> {
    let mut out = Tensors::default();
    let bar = ui.bar("comparing weights", Some(a.tensors().iter().map(|tensor| tensor.n_bytes() as u64).sum()));
    for tensor_a in a.tensors() {
        interrupt.check()?;
        match b.tensor(&tensor_a.name) {
            None => out.only_in_a.push(tensor_a.name.clone()),
            Some(tensor_b) if tensor_b.dims() != tensor_a.dims() => out.other_shape.push(tensor_a.name.clone()),
            Some(tensor_b) => out.rows.push(row((a, tensor_a), (b, tensor_b), threads)?),
        }
        bar.inc(tensor_a.n_bytes() as u64);
    }
    bar.finish_and_clear();
    let missing = b.tensors().iter().filter(|tensor| a.tensor(&tensor.name).is_none());
    out.only_in_b = missing.map(|tensor| tensor.name.clone()).collect();
    Ok(out)
}

fn row(a: (&Gguf, &TensorInfo), b: (&Gguf, &TensorInfo), threads: usize) -> anyhow::Result<Row> {
    let error = WeightError::of(&blocks(a)?, &blocks(b)?, a.1.n_elements(), threads);
    for (gguf, tensor) in [a, b] {
        gguf.forget(tensor, 0..tensor.n_bytes());
    }
    let block_size = block_size(b.1);
    Ok(Row {
        name: a.1.name.clone(),
        type_a: a.1.ty.name(),
        type_b: b.1.ty.name(),
        shape: a.1.dims().to_vec(),
        bits_per_weight: 8.0 * b.1.n_bytes() as f64 / b.1.n_elements() as f64,
        rmse: error.rmse(),
        sqnr_db: error.sqnr_db(),
        max_error: error.max,
        worst_block: error.worst.0,
        worst_block_rmse: (error.worst.1 / block_size as f64).sqrt(),
        block_size,
    })
}

fn blocks<'a>((gguf, tensor): (&'a Gguf, &TensorInfo)) -> anyhow::Result<Blocks<'a>> {
    Ok(Blocks { decode: quant::decoder(tensor)?, bytes: gguf.data(tensor), block: tensor.ty.block_size() })
}

fn block_size(tensor: &TensorInfo) -> usize {
    tensor.ty.block_size()
}
