//! Weight matrices of the CPU backend: packed panels, or (exact precision) rows decoded from the file each time.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use tandem_loader::{Gguf, TensorInfo, quant};

use super::isa::LANES;
use super::kernels::{Kernels, MatrixKernel};
use super::matmul::{Acts, WORK_BYTES};
use crate::error::Result;

/// Matrices begin at multiples of this in the arena: a cache line.
const ALIGNMENT: usize = 64;
/// Bytes packed before their file pages are let go, which bounds how much of the file is resident twice.
const PIECE: usize = 8 << 20;

/// A matrix `[n_out, n_in]` that can be multiplied 16 rows at a time; or several, one per expert. Panels are numbered through
/// all of them, and none belongs to two.
pub(crate) struct Matrix {
    pub(crate) n_in: usize,
    pub(crate) n_out: usize,
    /// How many.
    count: usize,
    storage: Storage,
}

enum Storage {
    /// Packed in the backend's arena from byte `at`, for the fast path.
    Panels { kernel: MatrixKernel, panel_bytes: usize, at: usize },
    /// The file's own blocks, decoded to f32 row by row: nothing is rounded.
    Rows {
        gguf: Arc<Gguf>,
        tensor: TensorInfo,
        decode: quant::Decode,
        dot: unsafe fn(*const f32, *const f32, usize) -> f32,
    },
}

impl Matrix {
    /// Bytes that [`Matrix::pack`] takes for a tensor of matrices with `n_out` rows.
    pub(crate) fn packed_bytes(tensor: &TensorInfo, n_out: usize) -> usize {
        let panel_bytes = tensor.n_bytes() / tensor.n_rows() * LANES;
        let panels = tensor.n_rows() / n_out * n_out.div_ceil(LANES);
        (panel_bytes * panels).next_multiple_of(ALIGNMENT)
    }

    /// Packs a tensor of matrices with `n_out` rows into panels at `at` of `arena`, piece by piece, and lets go of its file
    /// pages.
    pub(crate) fn pack(
        gguf: &Gguf,
        tensor: &TensorInfo,
        n_out: usize,
        kernels: &Kernels,
        arena: &mut [u8],
        at: usize,
    ) -> Result<Matrix> {
        gguf.prefetch(tensor);
        let file = gguf.data(tensor);
        let kernel = kernel(tensor, file, kernels)?;
        let row_bytes = file.len() / tensor.n_rows();
        let count = tensor.n_rows() / n_out;
        let matrix = Matrix::packed(kernel, tensor.row_len(), n_out, count, row_bytes, at);
        let n_panels = count * matrix.n_panels();
        let piece = PIECE / (row_bytes * LANES) + 1;
        for first in (0..n_panels).step_by(piece) {
            let panels = first..n_panels.min(first + piece);
            let rows = matrix.panel_rows(panels.start).start..matrix.panel_rows(panels.end - 1).end;
            matrix.pack_panels(file, panels, arena);
            gguf.forget(tensor, rows.start * row_bytes..rows.end * row_bytes);
        }
        Ok(matrix)
    }

    /// Describes `count` matrices that are to be packed at `at` of the arena.
    pub(crate) fn packed(
        kernel: MatrixKernel,
        n_in: usize,
        n_out: usize,
        count: usize,
        row_bytes: usize,
        at: usize,
    ) -> Matrix {
        Matrix { n_in, n_out, count, storage: Storage::Panels { kernel, panel_bytes: row_bytes * LANES, at } }
    }

    /// Packs some panels from the tensor's bytes, in parallel on the current rayon pool.
    pub(crate) fn pack_panels(&self, file: &[u8], panels: Range<usize>, arena: &mut [u8]) {
        let Storage::Panels { kernel, panel_bytes, at } = &self.storage else {
            unreachable!("only matrices of panels are packed")
        };
        let arena = &mut arena[at + panels.start * panel_bytes..at + panels.end * panel_bytes];
        arena.par_chunks_exact_mut(*panel_bytes).enumerate().for_each(|(i, out)| {
            let (rows, row_bytes) = (self.panel_rows(panels.start + i), panel_bytes / LANES);
            pack_panel(kernel, &file[rows.start * row_bytes..rows.end * row_bytes], row_bytes, self.n_in, out);
        });
    }

    /// The rows of a panel, counted through all matrices.
    fn panel_rows(&self, p: usize) -> Range<usize> {
        let (matrix, p) = (p / self.n_panels(), p % self.n_panels());
        let first = matrix * self.n_out;
        first + p * LANES..first + self.n_out.min((p + 1) * LANES)
    }

    /// Uses a tensor of matrices with `n_out` rows as it lies in the file.
    pub(crate) fn rows(gguf: &Arc<Gguf>, tensor: &TensorInfo, n_out: usize, kernels: &Kernels) -> Result<Matrix> {
        let decode = quant::decoder(tensor)?;
        let storage = Storage::Rows { gguf: gguf.clone(), tensor: tensor.clone(), decode, dot: kernels.dot_f32 };
        Ok(Matrix { n_in: tensor.row_len(), n_out, count: tensor.n_rows() / n_out, storage })
    }

    /// Number of 16-row panels of one matrix.
    pub(crate) fn n_panels(&self) -> usize {
        self.n_out.div_ceil(LANES)
    }

    /// The bytes of a piece of its panels in the arena; none where it reads the file.
    pub(crate) fn panel_bytes<'a>(&self, arena: &'a [u8], panels: Range<usize>) -> &'a [u8] {
        match &self.storage {
            Storage::Panels { panel_bytes, at, .. } => {
                &arena[at + panels.start * panel_bytes..at + panels.end * panel_bytes]
            }
            Storage::Rows { .. } => &[],
        }
    }

    /// Whether its input must be quantized first.
    pub(crate) fn wants_quantized(&self) -> bool {
        match &self.storage {
            Storage::Panels { kernel, .. } => kernel.quantized,
            Storage::Rows { .. } => false,
        }
    }

    /// Floats of work memory [`Matrix::multiply`] needs.
    pub(crate) fn work_len(&self) -> usize {
        Matrix::work_len_for(self.n_in)
    }

    /// [`Matrix::work_len`] of a matrix with rows of `n_in`.
    pub(crate) fn work_len_for(n_in: usize) -> usize {
        n_in.max(WORK_BYTES / 4)
    }

    /// Multiplies panel `p` (counted through all matrices) with the columns `cols`; writes `[cols][16]` to `out`. Rows past `n_out` get zeros or rubbish.
    ///
    /// # Safety
    /// `acts` has rows of `n_in` for `cols`, quantized where wanted.
    pub(crate) unsafe fn multiply(
        &self,
        arena: &[u8],
        p: usize,
        acts: &Acts,
        cols: Range<usize>,
        work: &mut [f32],
        out: &mut [f32],
    ) {
        assert!(acts.n_in == self.n_in && out.len() >= LANES * cols.len() && work.len() >= self.work_len());
        match &self.storage {
            Storage::Panels { kernel, panel_bytes, at } => {
                let panel = &arena[at + p * panel_bytes..at + (p + 1) * panel_bytes];
                // SAFETY: a whole panel; buffers checked above; `acts` as the caller promises.
                unsafe { (kernel.panel)(panel.as_ptr(), acts, cols, work.as_mut_ptr().cast(), out.as_mut_ptr()) }
            }
            Storage::Rows { gguf, tensor, decode, dot } => {
                let file = gguf.data(tensor);
                let row_bytes = file.len() / (self.count * self.n_out);
                let work = &mut work[..self.n_in];
                for (lane, r) in self.panel_rows(p).enumerate() {
                    decode(&file[r * row_bytes..(r + 1) * row_bytes], work);
                    for (i, col) in cols.clone().enumerate() {
                        // SAFETY: rows of n_in floats, as the caller promises.
                        let y = unsafe { dot(work.as_ptr(), acts.floats(col), self.n_in) };
                        out[i * LANES + lane] = y;
                    }
                }
            }
        }
    }
}

/// The kernel for a tensor, whose data are `file`.
fn kernel(tensor: &TensorInfo, file: &[u8], kernels: &Kernels) -> Result<MatrixKernel> {
    let unsupported = || tandem_loader::Error::UnsupportedType {
        tensor: tensor.name.clone(),
        ty: tensor.ty.name(),
        supported: quant::supported_types(),
    };
    Ok(kernels.of(tensor.ty, file).ok_or_else(unsupported)?)
}

/// Interleaves up to 16 rows into one panel; missing rows are zeros.
fn pack_panel(kernel: &MatrixKernel, file: &[u8], row_bytes: usize, n_in: usize, out: &mut [u8]) {
    let zeros = vec![0u8; row_bytes];
    let rows: [&[u8]; LANES] = std::array::from_fn(|r| file.get(r * row_bytes..(r + 1) * row_bytes).unwrap_or(&zeros));
    if !kernel.quantized {
        return (kernel.pack)(&rows, out);
    }
    let block_bytes = row_bytes / (n_in / kernel.block);
    for (b, out) in out.chunks_exact_mut(LANES * block_bytes).enumerate() {
        (kernel.pack)(&rows.map(|row| &row[b * block_bytes..(b + 1) * block_bytes]), out);
    }
}
