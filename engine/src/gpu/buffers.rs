//! What is allocated on the device: exactly what the layout says, filled with the weights.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use tandem_loader::{Gguf, TensorInfo};
use tandem_models::{Linear, Program, WeightId};

use super::device::Gpu;
use super::error::GpuError;
use super::layout::{Buf, Layout, MatrixSpec, STAGING, tensor};
use super::pack::pack_rows;
use super::upload::Staging;
use crate::error::Result;

/// Keys and values of some heads of a layer.
pub(super) struct CachePart {
    pub(super) heads: Range<usize>,
    pub(super) keys: wgpu::Buffer,
    pub(super) values: wgpu::Buffer,
}

/// What finds the most likely tokens.
pub(super) struct BestBuffers {
    pub(super) maxima: wgpu::Buffer,
    pub(super) state: wgpu::Buffer,
    pub(super) collected: wgpu::Buffer,
    pub(super) best: wgpu::Buffer,
}

/// All buffers of a model.
pub(super) struct Buffers {
    /// By matrix and part, as in [`Layout::matrices`].
    pub(super) matrices: Vec<Vec<wgpu::Buffer>>,
    pub(super) vectors: wgpu::Buffer,
    /// By layer.
    pub(super) caches: Vec<Vec<CachePart>>,
    pub(super) bufs: HashMap<Buf, wgpu::Buffer>,
    /// Activations as int8.
    pub(super) acts: wgpu::Buffer,
    pub(super) angles: wgpu::Buffer,
    pub(super) partial: wgpu::Buffer,
    /// Of each token its experts and their weights.
    pub(super) chosen: wgpu::Buffer,
    /// (Token, expert) pairs sorted by expert, and their tiles.
    pub(super) order: wgpu::Buffer,
    pub(super) tiles: wgpu::Buffer,
    pub(super) best: BestBuffers,
    /// Mapped memory that results are read from.
    pub(super) readback: wgpu::Buffer,
}

/// Allocates buffers, and counts their bytes.
struct Allocator<'a> {
    gpu: &'a Gpu,
    bytes: usize,
}

impl Allocator<'_> {
    /// A buffer for kernels. One that nothing needs still exists, as small as can be, and is not counted.
    fn buffer(&mut self, what: &str, bytes: usize) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.buffer_for(what, bytes, usage)
    }

    fn buffer_for(&mut self, what: &str, bytes: usize, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        self.bytes += bytes;
        let size = bytes.next_multiple_of(4).max(256) as u64;
        let desc = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        let buffer = self.gpu.device.create_buffer(&desc);
        self.gpu.check().map_err(|e| match e {
            GpuError::OutOfMemory { .. } => GpuError::OutOfMemory { message: format!("{size} bytes for {what}") },
            GpuError::Failed { message } => GpuError::Failed { message: format!("{size} bytes for {what}: {message}") },
            other => other,
        })?;
        Ok(buffer)
    }
}

impl Buffers {
    /// Allocates everything, and the number of bytes that took.
    pub(super) fn new(gpu: &Gpu, layout: &Layout) -> Result<(Buffers, usize)> {
        let mut allocator = Allocator { gpu, bytes: 0 };
        let matrices = layout.matrices.iter().map(|spec| {
            let part = |rows| allocator.buffer("weights", spec.part_bytes(rows));
            spec.parts.iter().map(part).collect::<Result<Vec<_>>>()
        });
        let matrices = matrices.collect::<Result<_>>()?;
        let vectors = allocator.buffer("norms and biases", layout.vector_bytes)?;
        let mut caches = Vec::new();
        for spec in &layout.caches {
            let parts = spec.iter().flat_map(|spec| spec.parts.iter().map(|heads| (heads, spec.head_bytes)));
            let part = |(heads, bytes): (&Range<usize>, usize)| {
                Ok(CachePart {
                    heads: heads.clone(),
                    keys: allocator.buffer("the KV cache", heads.len() * bytes)?,
                    values: allocator.buffer("the KV cache", heads.len() * bytes)?,
                })
            };
            caches.push(parts.map(part).collect::<Result<Vec<_>>>()?);
        }
        let mut bufs = HashMap::new();
        for (buf, bytes) in &layout.bufs {
            bufs.insert(*buf, allocator.buffer("activations and logits", *bytes)?);
        }
        let readback = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let buffers = Buffers {
            matrices,
            vectors,
            caches,
            bufs,
            acts: allocator.buffer("int8 activations", layout.act_bytes)?,
            angles: allocator.buffer("angles", layout.angle_bytes)?,
            partial: allocator.buffer("shares of attention", layout.partial_bytes)?,
            chosen: allocator.buffer("routing", layout.routing.chosen)?,
            order: allocator.buffer("routing", layout.routing.order)?,
            tiles: allocator.buffer("routing", layout.routing.tiles)?,
            best: BestBuffers {
                maxima: allocator.buffer("sampling", layout.best.maxima)?,
                state: allocator.buffer("sampling", layout.best.state)?,
                collected: allocator.buffer("sampling", layout.best.collected)?,
                best: allocator.buffer("sampling", layout.best.best)?,
            },
            readback: allocator.buffer_for("reading back", layout.readback_bytes, readback)?,
        };
        Ok((buffers, allocator.bytes))
    }

    /// Packs and uploads all weights of the layout.
    pub(super) fn fill(
        &self,
        gpu: &Gpu,
        gguf: &Arc<Gguf>,
        program: &Program,
        layout: &Layout,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut staging = Staging::new(gpu);
        for (spec, parts) in layout.matrices.iter().zip(&self.matrices) {
            let table = spec.format.table.bytes();
            if !table.is_empty() {
                for part in parts {
                    staging.upload(part, 0, table.len(), |out| out.copy_from_slice(&table))?;
                }
            }
            let mut first = 0;
            for linear in &spec.linears {
                let tensor = tensor(gguf, program, linear.weight)?;
                let n_rows = program.weight(linear.weight).n_out;
                gguf.prefetch(tensor);
                for expert in 0..spec.n_expert.unwrap_or(1) {
                    let from = expert * n_rows..(expert + 1) * n_rows;
                    upload_rows(gguf, tensor, from, spec, parts, expert * spec.n_out + first, &mut staging)?;
                }
                first += n_rows;
                progress(tensor.n_bytes() as u64);
            }
        }
        for (bytes, at) in vector_contents(gguf, program, layout, progress)? {
            for (i, piece) in bytes.chunks(STAGING).enumerate() {
                let to = at + i * STAGING;
                staging.upload(&self.vectors, to, piece.len(), |out| out.copy_from_slice(piece))?;
            }
        }
        Ok(staging.finish()?)
    }
}

/// Packs rows of a tensor piece by piece into the parts of a stack, from row `to` on.
fn upload_rows(
    gguf: &Gguf,
    tensor: &TensorInfo,
    rows: Range<usize>,
    spec: &MatrixSpec,
    parts: &[wgpu::Buffer],
    to: usize,
    staging: &mut Staging<'_>,
) -> Result<()> {
    let file = gguf.data(tensor);
    let (file_bytes, row_bytes) = (file.len() / tensor.n_rows(), spec.row_bytes());
    let most = STAGING / row_bytes.max(1);
    if most == 0 {
        let what = format!("`{}`: a row of {row_bytes} bytes (at most {STAGING})", tensor.name);
        return Err(GpuError::Unsupported { what }.into());
    }
    for (part, buffer) in spec.parts.iter().zip(parts) {
        let mut row = part.start.max(to);
        let end = part.end.min(to + rows.len());
        while row < end {
            let n = most.min(end - row);
            let first = rows.start + row - to;
            let from = first * file_bytes..(first + n) * file_bytes;
            let at = spec.format.table.n_bytes() + (row - part.start) * row_bytes;
            staging.upload(buffer, at, n * row_bytes, |out| {
                pack_rows(spec.format, spec.n_in, &file[from.clone()], out);
            })?;
            gguf.forget(tensor, from);
            row += n;
        }
    }
    Ok(())
}

/// Contents of the buffer of vectors: bytes, and where they go.
fn vector_contents(
    gguf: &Gguf,
    program: &Program,
    layout: &Layout,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<(Vec<u8>, usize)>> {
    let mut load = |id: WeightId| -> Result<Vec<f32>> {
        let tensor = tensor(gguf, program, id)?;
        progress(tensor.n_bytes() as u64);
        Ok(gguf.dequantize(tensor)?)
    };
    let mut contents = Vec::new();
    for (id, at) in &layout.vectors {
        contents.push((bytemuck::cast_slice(&load(*id)?).to_vec(), *at));
    }
    for (matrix, at) in &layout.biases {
        let mut bias = Vec::new();
        for linear in &layout.matrices[*matrix].linears {
            let end = bias.len() + program.weight(linear.weight).n_out;
            if let Some(id) = linear.bias {
                bias.extend(load(id)?);
            }
            bias.resize(end, 0.0);
        }
        contents.push((bytemuck::cast_slice(&bias).to_vec(), *at));
    }
    for (matrix, at) in &layout.scales {
        let of_rows = |linear: &Linear| std::iter::repeat_n(linear.scale, program.weight(linear.weight).n_out);
        let scales: Vec<f32> = layout.matrices[*matrix].linears.iter().flat_map(of_rows).collect();
        contents.push((bytemuck::cast_slice(&scales).to_vec(), *at));
    }
    Ok(contents)
}
