//! One forward pass: inputs up, one command encoder, one submit, results down.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tandem_loader::quant::Decode;
use tandem_models::{Block, BlockKind, Program, Reg, Step, WeightId, WeightRole};
use tandem_shaders::BestStep;

use super::GpuBackend;
use super::layout::{Buf, pair_rows, rows_of, stride};
use super::op::Pass;
use crate::backend::{Batch, Hidden};
use crate::cpu::ops::rope_angles;
use crate::error::Result;
use crate::sampler::Candidate;

/// The embedding table: rows are looked up and decoded by the host, so it takes no memory of the device.
pub(super) struct Embedding {
    pub(super) decode: Decode,
    pub(super) tensor: tandem_loader::TensorInfo,
    pub(super) scale: f32,
}

/// A pass of one token that was recorded while the device computed the one before.
pub(super) struct Ahead {
    passes: Vec<(Range<usize>, Pass)>,
    output: Output,
    pub(super) commands: wgpu::CommandBuffer,
}

/// What a submission leaves to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Nothing,
    /// This many rows of X.
    X(usize),
    /// This many rows of logits.
    Logits(usize),
    /// The most likely tokens of one row of logits, this many.
    Best(usize),
}

impl GpuBackend {
    /// Runs blocks over a batch that may be larger than the buffers.
    pub(super) fn run_batch(&mut self, blocks: Range<usize>, batch: &Batch<'_>, hidden: &mut Hidden) -> Result<()> {
        let n = batch.tokens.len();
        // What the kernels do not check.
        assert!(batch.start.checked_add(n).is_some_and(|end| end <= self.options.n_ctx), "a batch outside the context");
        assert!(batch.outputs.0 <= batch.outputs.1 && batch.outputs.1 <= n, "outputs outside the batch");
        self.gpu.check()?;
        hidden.x.resize(n * self.program.registers.n_embd, 0.0);
        hidden.best.clear();
        hidden.logits.clear();
        if self.best_wanted(batch, hidden).is_none() {
            hidden.logits.resize(batch.output_rows().len() * self.program.hparams.n_vocab, 0.0);
        }
        for first in (0..n).step_by(self.options.max_batch) {
            let rows = first..n.min(first + self.options.max_batch);
            self.run_rows(blocks.clone(), batch, rows, hidden)?;
        }
        Ok(())
    }

    /// How many of the most likely tokens are wanted in place of logits.
    fn best_wanted(&self, batch: &Batch<'_>, hidden: &Hidden) -> Option<usize> {
        hidden.enough.filter(|k| *k <= BestStep::MAX_K && self.best.is_some() && batch.output_rows().len() == 1)
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
            let output = if is_head { Output::Nothing } else { Output::X(rows.len()) };
            let n_embd = program.registers.n_embd;
            self.submit(&[(body, body_pass)], output)?;
            return self.read_rows(output, &mut hidden.x[rows.start * n_embd..rows.end * n_embd]);
        }
        if let Some(k) = self.best_wanted(batch, hidden) {
            let head = (blocks.end - 1..blocks.end, Pass { rows: wanted, ..body_pass.clone() });
            self.submit(&[(body, body_pass), head], Output::Best(k))?;
            if !self.read_best(k, &mut hidden.best)? {
                hidden.logits.resize(program.hparams.n_vocab, 0.0);
                self.submit(&[], Output::Logits(1))?;
                self.read_rows(Output::Logits(1), &mut hidden.logits)?;
            }
            return Ok(());
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
            let output = Output::Logits(part.len());
            // The first part of the logits comes with the body.
            if first == wanted.start {
                self.submit(&[(body.clone(), body_pass.clone()), head], output)?;
            } else {
                self.submit(&[head], output)?;
            }
            self.read_rows(output, logits)?;
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
        self.host_time.alone += start.elapsed();
        Ok(firsts)
    }

    /// What an output is copied from, and its bytes.
    fn source(&self, output: Output) -> Option<(&wgpu::Buffer, u64)> {
        let rows = |buf: Buf, n: usize| (&self.buffers.bufs[&buf], (4 * n * stride(&self.program, buf)) as u64);
        match output {
            Output::Nothing => None,
            Output::X(n) => Some(rows(Buf::X, n)),
            Output::Logits(n) => Some(rows(Buf::Logits, n)),
            Output::Best(k) => Some((&self.buffers.best.best, 8 * (k as u64 + 1))),
        }
    }

    /// What the last run left in a register: the first `n` rows of `width` floats.
    pub(super) fn read_register(&self, reg: Reg, n: usize, width: usize, of_pairs: bool) -> Result<Vec<f32>> {
        let rows = rows_of(&self.program, reg);
        let rows = if of_pairs { pair_rows(&self.program, rows.buf, width) } else { rows };
        let Some(buffer) = self.buffers.bufs.get(&rows.buf) else { return Ok(vec![0.0; n * width]) };
        let all = self.gpu.read(buffer, 4 * n * rows.stride)?;
        let all = bytemuck::cast_slice::<u8, f32>(&all);
        let row = |row: &[f32]| row[rows.column..rows.column + width].to_vec();
        Ok(all.chunks_exact(rows.stride).take(n).flat_map(row).collect())
    }

    /// The blocks of each pass in order, cut where they become too much work for one submission.
    pub(super) fn parts<'a>(&self, passes: &'a [(Range<usize>, Pass)]) -> Vec<Vec<(usize, &'a Pass)>> {
        let (mut parts, mut work): (Vec<Vec<_>>, u64) = (Vec::new(), 0);
        for (blocks, pass) in passes {
            for block in blocks.clone() {
                let more = work_of(&self.program, &self.program.blocks[block], pass);
                work = work.saturating_add(more);
                match parts.last_mut() {
                    Some(part) if work <= self.options.max_work => part.push((block, pass)),
                    Some(_) | None => {
                        parts.push(vec![(block, pass)]);
                        work = more;
                    }
                }
            }
        }
        parts
    }

    /// Submits the blocks of each pass, as one where they are not much work; waits for them, and maps the output.
    fn submit(&mut self, passes: &[(Range<usize>, Pass)], output: Output) -> Result<()> {
        let start = Instant::now();
        let ahead = passes.first().and_then(|(blocks, _)| self.ahead.remove(&blocks.start));
        let commands = match ahead {
            Some(ahead) if ahead.passes == passes && ahead.output == output => ahead.commands,
            Some(_) | None => self.record(passes, output),
        };
        let submission = self.gpu.queue.submit([commands]);
        self.host_time.alone += start.elapsed();

        let mapped = Arc::new(AtomicBool::new(false));
        let source = self.source(output);
        if let Some((_, bytes)) = source {
            let done = mapped.clone();
            let result = move |result: std::result::Result<(), wgpu::BufferAsyncError>| {
                done.store(result.is_ok(), Ordering::Release);
            };
            self.buffers.readback.map_async(wgpu::MapMode::Read, ..bytes, result);
        }
        let is_read = source.is_some();
        self.record_ahead(passes, output);
        self.gpu.wait(submission)?;
        if is_read && !mapped.load(Ordering::Acquire) {
            return Err(self.gpu.failed("the results could not be mapped".into()).into());
        }
        Ok(())
    }

    /// Records the blocks of each pass. Where they are much work, all parts but the last are submitted at once.
    pub(super) fn record(&self, passes: &[(Range<usize>, Pass)], output: Output) -> wgpu::CommandBuffer {
        let parts = self.parts(passes);
        let mut encoder = self.encoder();
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                let whole = std::mem::replace(&mut encoder, self.encoder());
                self.gpu.queue.submit([whole.finish()]);
            }
            let mut recorder = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for (block, pass) in part {
                for op in self.ops[*block].iter().flatten() {
                    op.record(&mut recorder, pass);
                }
            }
            if let (Output::Best(k), Some(best), true) = (output, &self.best, i + 1 == parts.len()) {
                best.record(&mut recorder, k);
            }
        }
        if let Some((buffer, bytes)) = self.source(output) {
            encoder.copy_buffer_to_buffer(buffer, 0, &self.buffers.readback, 0, bytes);
        }
        encoder.finish()
    }

    /// After the passes of one token, records those of the next: what is recorded depends on its position only.
    fn record_ahead(&mut self, passes: &[(Range<usize>, Pass)], output: Output) {
        let Some((blocks, _)) = passes.first() else { return };
        let follows = |pass: &Pass| pass.rows == (0..1) && pass.start + 1 < self.options.n_ctx;
        if !passes.iter().all(|(_, pass)| follows(pass)) || self.parts(passes).len() > 1 {
            return;
        }
        let start = Instant::now();
        let next = |pass: &Pass| Pass { start: pass.start + 1, ..pass.clone() };
        let passes: Vec<_> = passes.iter().map(|(blocks, pass)| (blocks.clone(), next(pass))).collect();
        let commands = self.record(&passes, output);
        self.ahead.insert(blocks.start, Ahead { passes, output, commands });
        self.host_time.meanwhile += start.elapsed();
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Lets `take` read the mapped output, and unmaps it.
    fn read<T>(&mut self, output: Output, take: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        let Some((_, bytes)) = self.source(output) else { return Ok(None) };
        let start = Instant::now();
        let view = self.buffers.readback.get_mapped_range(..bytes);
        let view = view.map_err(|e| self.gpu.failed(format!("reading the results: {e}")))?;
        let taken = take(&view);
        drop(view);
        self.buffers.readback.unmap();
        self.host_time.alone += start.elapsed();
        Ok(Some(taken))
    }

    /// Reads rows into `out`, where they follow each other without gaps.
    fn read_rows(&mut self, output: Output, out: &mut [f32]) -> Result<()> {
        let (buf, n) = match output {
            Output::X(n) => (Buf::X, n),
            Output::Logits(n) => (Buf::Logits, n),
            Output::Nothing | Output::Best(_) => return Ok(()),
        };
        let (stride, width) = (stride(&self.program, buf), out.len() / n.max(1));
        self.read(output, |bytes| {
            let rows = bytemuck::cast_slice::<u8, f32>(bytes).chunks_exact(stride.max(1));
            for (out, row) in out.chunks_exact_mut(width.max(1)).zip(rows) {
                out.copy_from_slice(&row[..width]);
            }
        })?;
        Ok(())
    }

    /// Reads the most likely tokens. Returns false where the device could not tell: more logits are as large as the
    /// smallest of them than it has room for, or none is a number.
    fn read_best(&mut self, k: usize, best: &mut Vec<Candidate>) -> Result<bool> {
        let found = self.read(Output::Best(k), |bytes| {
            let words = bytemuck::cast_slice::<u8, [u32; 2]>(bytes);
            let n = words[0][0] as usize;
            let candidates = words[1..].iter().take(n);
            best.extend(candidates.map(|[bits, id]| Candidate { id: *id, logit: f32::from_bits(*bits) }));
            (1..=BestStep::MAX_COLLECTED).contains(&n)
        })?;
        if found != Some(true) {
            best.clear();
        }
        Ok(found == Some(true))
    }
}

/// Multiply-adds of a block in a pass, about.
fn work_of(program: &Program, block: &Block, pass: &Pass) -> u64 {
    let of_weight = |id: &WeightId| {
        let weight = program.weight(*id);
        match weight.role {
            WeightRole::Matrix => weight.n_elements(),
            WeightRole::Experts { n_expert } => weight.n_elements() / n_expert * program.hparams.n_expert_used,
            WeightRole::Table | WeightRole::Vector => 0,
        }
    };
    let products: usize = block.weights.iter().map(of_weight).sum();
    let attends = block.steps.iter().any(|step| matches!(step, Step::Attend { .. }));
    // Keys and values.
    let attention = if attends { 2 * program.registers.n_q * (pass.start + pass.rows.end) } else { 0 };
    (pass.rows.len() as u64).saturating_mul(products as u64 + attention as u64)
}
