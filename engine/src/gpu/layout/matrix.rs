//! Matrices: which are stacked on each other, and how they are cut for bindings.

use std::ops::Range;

use tandem_loader::{Gguf, TensorInfo};
use tandem_models::{Linear, Program, WeightId, WeightRole};
use tandem_shaders::{Acts, Decode, Format};

use super::super::error::GpuError;
use crate::error::Result;
use crate::model::Precision;

/// Matrices of one type stacked on each other: one product computes all their rows. Of experts, each expert's matrices are
/// stacked, and the stacks follow each other.
#[derive(Debug, Clone)]
pub(in crate::gpu) struct MatrixSpec {
    /// The matrices, each with its bias.
    pub(in crate::gpu) linears: Vec<Linear>,
    pub(in crate::gpu) format: &'static Format,
    pub(in crate::gpu) n_in: usize,
    /// Rows of the stack, of one expert.
    pub(in crate::gpu) n_out: usize,
    /// How many experts there are, or `None` for plain matrices.
    pub(in crate::gpu) n_expert: Option<usize>,
    /// Ranges of all rows, each small enough for one binding; whole experts.
    pub(in crate::gpu) parts: Vec<Range<usize>>,
}

impl MatrixSpec {
    /// # Errors
    /// A row (or an expert) larger than a binding.
    pub(super) fn new(
        program: &Program,
        stack: &[Linear],
        format: &'static Format,
        binding: u64,
    ) -> Result<MatrixSpec> {
        let first = program.weight(stack[0].weight);
        let n_out = stack.iter().map(|l| program.weight(l.weight).n_out).sum();
        let n_expert = match first.role {
            WeightRole::Experts { n_expert } => Some(n_expert),
            WeightRole::Matrix | WeightRole::Table | WeightRole::Vector => None,
        };
        let mut spec =
            MatrixSpec { linears: stack.to_vec(), format, n_in: first.n_in, n_out, n_expert, parts: Vec::new() };
        // What must stay together.
        let unit = if n_expert.is_some() { n_out } else { 1 };
        let unit_bytes = (unit * spec.row_bytes()).max(1);
        let most = (binding as usize).saturating_sub(format.table.n_bytes()) / unit_bytes;
        if most == 0 {
            let what = if n_expert.is_some() { "an expert" } else { "a row" };
            let what =
                format!("`{}` with {what} of {unit_bytes} bytes (the GPU sees {binding} at a time)", first.tensor);
            return Err(GpuError::Unsupported { what }.into());
        }
        // Whole tiles of the matrix kernels, where they fit.
        let most = if n_expert.is_none() && most >= 64 { most / 64 * 64 } else { most };
        let all = spec.n_rows();
        spec.parts = (0..all).step_by(most * unit).map(|r| r..all.min(r + most * unit)).collect();
        Ok(spec)
    }

    /// Rows of all experts together.
    pub(in crate::gpu) fn n_rows(&self) -> usize {
        self.n_out * self.n_expert.unwrap_or(1)
    }

    pub(in crate::gpu) fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.n_in)
    }

    /// Bytes of a part: the table of the format, then the rows.
    pub(in crate::gpu) fn part_bytes(&self, rows: &Range<usize>) -> usize {
        self.format.table.n_bytes() + rows.len() * self.row_bytes()
    }

    /// Bytes of all parts.
    pub(in crate::gpu) fn bytes(&self) -> usize {
        self.parts.iter().map(|rows| self.part_bytes(rows)).sum()
    }

    pub(in crate::gpu) fn has_bias(&self) -> bool {
        self.linears.iter().any(|l| l.bias.is_some())
    }

    /// Whether the file has a scale for one of the matrices as a whole.
    pub(in crate::gpu) fn has_scale(&self) -> bool {
        self.linears.iter().any(|l| l.scale != 1.0)
    }

    /// How its products read activations; where they are int8, those of the output head read what that leaves over too:
    /// there rounding does the most harm, and few rows are multiplied.
    pub(in crate::gpu) fn acts(&self, precision: Precision, is_head: bool) -> Acts {
        match (precision, self.format.decode) {
            (Precision::Exact, _) | (Precision::Fast, Decode::Floats) => Acts::F32,
            (Precision::Fast, Decode::Quants) if is_head => Acts::Int8Twice,
            (Precision::Fast, Decode::Quants) => Acts::Int8,
        }
    }
}

/// A step's product: a stack of matrices and where its results begin among the step's outputs.
#[derive(Debug, Clone, Copy)]
pub(in crate::gpu) struct Product {
    /// Index into [`super::Layout::matrices`].
    pub(in crate::gpu) matrix: usize,
    /// Rows of the step's matrices before this stack.
    pub(in crate::gpu) first: usize,
}

pub(in crate::gpu) fn tensor<'a>(gguf: &'a Gguf, program: &Program, id: WeightId) -> Result<&'a TensorInfo> {
    let name = &program.weight(id).tensor;
    Ok(gguf.tensor(name).ok_or_else(|| tandem_models::Error::MissingTensor { tensor: name.clone() })?)
}

pub(super) fn format(tensor: &TensorInfo) -> Result<&'static Format> {
    let unsupported = || GpuError::Unsupported { what: format!("`{}` of type {}", tensor.name, tensor.ty) };
    Ok(Format::of(tensor.ty).ok_or_else(unsupported)?)
}
