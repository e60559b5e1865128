//! One forward pass: inputs up, one command encoder, one submit, results down.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tandem_loader::quant::Decode;
use tandem_models::{BlockKind, Step};

use super::GpuBackend;
use super::error::GpuError;
use super::layout::{Buf, stride};
use super::op::Pass;
use crate::backend::{Batch, Hidden};
use crate::cpu::ops::rope_angles;
use crate::error::Result;

/// Where the time of the last pass went.
#[derive(Debug, Clone, Copy, Default)]
pub struct PassTimes {
    /// Embedding and angles computed on the host, and handed to the queue.
    pub inputs: Duration,
    /// Commands recorded.
    pub record: Duration,
    /// Commands submitted.
    pub submit: Duration,
    /// The device at work, and the wait for it.
    pub wait: Duration,
    /// Results copied out.
    pub read: Duration,
}

/// The embedding table: rows are looked up and decoded by the host, so it takes no memory of the device.
pub(super) struct Embedding {
    pub(super) decode: Decode,
    pub(super) tensor: tandem_loader::TensorInfo,
    pub(super) scale: f32,
}

/// What a submission leaves to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Nothing,
    X,
    Logits,
}

impl GpuBackend {
    /// Runs blocks over a batch that may be larger than the buffers.
    pub(super) fn run_batch(&mut self, blocks: Range<usize>, batch: &Batch<'_>, hidden: &mut Hidden) -> Result<()> {
        let n = batch.tokens.len();
        // What the kernels do not check.
        assert!(batch.start.checked_add(n).is_some_and(|end| end <= self.options.n_ctx), "a batch outside the context");
        assert!(batch.outputs.0 <= batch.outputs.1 && batch.outputs.1 <= n, "outputs outside the batch");
        self.times = PassTimes::default();
        hidden.x.resize(n * self.program.registers.n_embd, 0.0);
        hidden.logits.resize(batch.output_rows().len() * self.program.hparams.n_vocab, 0.0);
        for first in (0..n).step_by(self.options.max_batch) {
            let rows = first..n.min(first + self.options.max_batch);
            self.run_rows(blocks.clone(), batch, rows, hidden)?;
        }
        Ok(())
    }

    /// Runs blocks over some rows of a batch.
    fn run_rows(
        &mut self,
        blocks: Range<usize>,
        batch: &Batch<'_>,
        rows: Range<usize>,
        hidden: &mut Hidden,
    ) -> Result<()> {
        let program = self.program.clone();
        let is_head = blocks.end > blocks.start && program.blocks[blocks.end - 1].kind == BlockKind::Head;
        // Output rows among these, from the first row of the buffers on.
        let wanted = batch.outputs.0.clamp(rows.start, rows.end)..batch.outputs.1.clamp(rows.start, rows.end);
        let wanted = wanted.start - rows.start..wanted.end - rows.start;
        let body = if is_head { blocks.start..blocks.end - 1 } else { blocks.clone() };
        let angles = self.upload(&blocks, batch, rows.clone(), hidden)?;
        let body_pass =
            Pass { start: batch.start + rows.start, rows: 0..rows.len(), shares: self.tuning.shares, angles };
        if !is_head || wanted.is_empty() {
            // Without output rows there is nothing for the head to do.
            let output = if is_head { Output::Nothing } else { Output::X };
            let n_embd = program.registers.n_embd;
            let x = &mut hidden.x[rows.start * n_embd..rows.end * n_embd];
            return self.submit(&[(body, body_pass)], output, rows.len(), x);
        }
        let n_vocab = program.hparams.n_vocab;
        // Where these rows' logits begin among the batch's.
        let done = rows.start.max(batch.outputs.0) - batch.outputs.0;
        for first in wanted.clone().step_by(self.logit_rows) {
            let part = first..wanted.end.min(first + self.logit_rows);
            let head_pass = Pass { rows: part.clone(), ..body_pass.clone() };
            let head = (blocks.end - 1..blocks.end, head_pass);
            let at = (done + first - wanted.start) * n_vocab;
            let logits = &mut hidden.logits[at..at + part.len() * n_vocab];
            // The first part of the logits comes with the body.
            if first == wanted.start {
                self.submit(&[(body.clone(), body_pass.clone()), head], Output::Logits, part.len(), logits)?;
            } else {
                self.submit(&[head], Output::Logits, part.len(), logits)?;
            }
        }
        Ok(())
    }

    /// Hands X (or the tokens' embeddings) and the rotation angles to the queue. Returns where each rotary embedding's
    /// angles begin.
    fn upload(
        &mut self,
        blocks: &Range<usize>,
        batch: &Batch<'_>,
        rows: Range<usize>,
        hidden: &Hidden,
    ) -> Result<Vec<u32>> {
        let start = Instant::now();
        let program = self.program.clone();
        let (n_embd, stride) = (program.registers.n_embd, stride(&program, Buf::X));
        let steps = || program.blocks[blocks.clone()].iter().flat_map(|b| &b.steps);
        self.staged.clear();
        self.staged.resize(rows.len() * stride, 0.0);
        let embeds = steps().any(|s| matches!(s, Step::Embed { .. }));
        for (out, t) in self.staged.chunks_exact_mut(stride).zip(rows.clone()) {
            match &self.embedding {
                Some(embedding) if embeds => {
                    let data = self.gguf.data(&embedding.tensor);
                    let row_bytes = data.len() / embedding.tensor.n_rows();
                    let token = batch.tokens[t] as usize;
                    (embedding.decode)(&data[token * row_bytes..(token + 1) * row_bytes], &mut out[..n_embd]);
                    out.iter_mut().for_each(|x| *x *= embedding.scale);
                }
                Some(_) | None => out[..n_embd].copy_from_slice(&hidden.x[t * n_embd..(t + 1) * n_embd]),
            }
        }
        self.gpu.queue.write_buffer(&self.buffers.bufs[&Buf::X], 0, bytemuck::cast_slice(&self.staged));

        let mut firsts = vec![0; program.ropes.len()];
        if steps().any(|s| matches!(s, Step::Rope { .. })) {
            self.staged.clear();
            for (rope, first) in program.ropes.iter().zip(&mut firsts) {
                *first = (self.staged.len() / 2) as u32;
                let half = rope.freqs.len();
                let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
                for t in rows.clone() {
                    rope_angles(rope, batch.start + t, &mut cos, &mut sin);
                    self.staged.extend(cos.iter().zip(&sin).flat_map(|(c, s)| [*c, *s]));
                }
            }
            self.gpu.queue.write_buffer(&self.buffers.angles, 0, bytemuck::cast_slice(&self.staged));
        }
        self.times.inputs += start.elapsed();
        Ok(firsts)
    }

    /// Records the blocks of each pass, submits them as one, and reads `n` rows of output.
    fn submit(&mut self, passes: &[(Range<usize>, Pass)], output: Output, n: usize, out: &mut [f32]) -> Result<()> {
        let start = Instant::now();
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut recorder = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for (blocks, pass) in passes {
                for op in blocks.clone().filter_map(|b| self.ops[b].as_ref()).flatten() {
                    op.record(&mut recorder, pass);
                }
            }
        }
        let buf = match output {
            Output::Nothing => None,
            Output::X => Some(Buf::X),
            Output::Logits => Some(Buf::Logits),
        };
        let stride = buf.map_or(0, |buf| stride(&self.program, buf));
        let bytes = (4 * n * stride) as u64;
        if let Some(buf) = buf {
            encoder.copy_buffer_to_buffer(&self.buffers.bufs[&buf], 0, &self.buffers.readback, 0, bytes);
        }
        let commands = encoder.finish();
        self.times.record += start.elapsed();

        let start = Instant::now();
        let submission = self.gpu.queue.submit([commands]);
        self.times.submit += start.elapsed();

        let start = Instant::now();
        let mapped = Arc::new(AtomicBool::new(buf.is_none()));
        if buf.is_some() {
            let done = mapped.clone();
            let result = move |result: std::result::Result<(), wgpu::BufferAsyncError>| {
                done.store(result.is_ok(), Ordering::Release);
            };
            self.buffers.readback.map_async(wgpu::MapMode::Read, ..bytes, result);
        }
        self.gpu.wait(submission)?;
        if !mapped.load(Ordering::Acquire) {
            self.gpu.check()?;
            return Err(GpuError::Failed { message: "the results could not be mapped".into() }.into());
        }
        self.times.wait += start.elapsed();

        let start = Instant::now();
        if buf.is_some() {
            let view = self.buffers.readback.get_mapped_range(..bytes);
            let view = view.map_err(|e| GpuError::Failed { message: format!("reading the results: {e}") })?;
            let width = out.len() / n.max(1);
            let rows = bytemuck::cast_slice::<u8, f32>(&view);
            for (out, row) in out.chunks_exact_mut(width.max(1)).zip(rows.chunks_exact(stride)) {
                out.copy_from_slice(&row[..width]);
            }
            drop(view);
            self.buffers.readback.unmap();
        }
        self.times.read += start.elapsed();
        Ok(())
    }
}
