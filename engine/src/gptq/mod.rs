//! GPTQ: weights rounded so that a layer's outputs on a text change least.
//!
//! Plain rounding takes each weight by itself. Here a layer's squared error on calibration inputs `x`,
//! `sum over x of |(W - Y) x|^2 = sum over rows e of e H e^T` with `H = sum of x x^T`, is what is made small: columns are
//! rounded one after another, and those still to come are corrected for the errors so far (Frantar et al.,
//! <https://arxiv.org/abs/2210.17323>; in the equivalent form of Chee et al., <https://arxiv.org/abs/2307.13304>, section 4,
//! which needs the factors of `H` only, no inverse). The result is in ordinary blocks that any engine reads.
//!
//! The model is walked block by block, and within a block from one product to the next, so that inputs are those that the
//! weights quantized so far give.

mod hessian;
mod moments;
mod round;
mod stages;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use tandem_loader::quantize::{Codes, Loss, Method, Recode, encode_fn, measure};
use tandem_loader::{GgmlType, Gguf, TensorInfo, quant};
use tandem_models::{Block, BlockKind, Program, Reg, Step, WeightId, WeightRole};

use crate::backend::{Backend, Batch, Hidden};
use crate::cpu::outer::Outer;
use crate::cpu::{CpuBackend, CpuOptions};
use crate::error::{Error, Result};
use crate::model::{KvType, Precision};
use crate::score::Windows;
use hessian::Hessian;
use moments::Moments;
use round::{ROWS, Rounding, Scratch};
use stages::{Stage, stages};

/// Bytes of second moments that are held at once: a tensor's experts are taken some at a time.
const MOMENT_BYTES: usize = 1 << 29;
/// Weights that are encoded between two looks at the stop flag.
const WEIGHTS_AT_A_TIME: usize = 2 << 20;

/// How GPTQ works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads.
    pub threads: usize,
    /// Share of the mean of H's diagonal that is added to the diagonal.
    pub damping: f32,
    /// Whether columns with large inputs are rounded first, as far as blocks stay together.
    pub act_order: bool,
    /// By name, how much each weight of a row counts (positive). Asked for tensors that rows are looked up in: where they are
    /// the output too, their turn comes before their inputs are seen. All alike without it.
    pub importance: HashMap<String, Vec<f32>>,
    /// Where to look whether to stop.
    pub stop: Arc<AtomicBool>,
}

/// How a tensor was quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By GPTQ.
    Gptq,
    /// By search: its type has no quants for single weights (weighted by the mean squares of its inputs then), or its rows are
    /// looked up (weighted by [`Options::importance`]).
    Search,
}

/// A quantized tensor.
#[derive(Debug)]
pub struct Quantized<'a> {
    /// The tensor, as it was.
    pub tensor: &'a TensorInfo,
    /// Its blocks, in the type asked for.
    pub data: &'a [u8],
    /// What it lost.
    pub loss: Loss,
    /// How it was made.
    pub how: How,
}

/// Hears what happens, and may stop it by an error.
pub trait Listener {
    /// Some of the work is done: `done` passes over the text of `total`.
    ///
    /// # Errors
    /// To stop.
    fn progress(&mut self, done: usize, total: usize, what: &str) -> Result<()>;
    /// A tensor is done.
    ///
    /// # Errors
    /// To stop.
    fn tensor(&mut self, tensor: Quantized<'_>) -> Result<()>;
}

/// Quantizes the tensors of a program that `types` names into the types it gives, in the order of the program. Tensors that
/// the program does not use are left to the caller.
///
/// # Errors
/// A weight or an input that is not finite, a type that cannot be encoded, no memory; what `listener` says, and
/// [`Error::Interrupted`].
pub fn run(
    gguf: &Arc<Gguf>,
    program: &Program,
    types: &HashMap<String, GgmlType>,
    windows: &Windows,
    options: &Options,
    listener: &mut dyn Listener,
) -> Result<()> {
    let hidden = (0..windows.len()).map(|_| Hidden::default()).collect();
    let mut walk = Walk {
        original: gguf,
        program,
        types,
        windows,
        options,
        listener,
        outer: Outer::best(),
        view: gguf.clone(),
        hidden,
        done: 0,
        total: 0,
    };
    // After the last block with something to do, nothing needs to be known of inputs.
    let has_work = |block: &Block| block.weights.iter().any(|id| walk.job(*id).is_some());
    let n_blocks = program.blocks.iter().rposition(has_work).map_or(0, |last| last + 1);
    let passes = |block: &Block| 1 + stages(block, program).iter().filter(|stage| !walk.jobs(stage).is_empty()).count();
    let n_passes = program.blocks[..n_blocks].iter().map(passes).sum::<usize>().saturating_sub(1);
    walk.total = n_passes * windows.len();
    for (i, block) in program.blocks[..n_blocks].iter().enumerate() {
        walk.quantize(block)?;
        if i + 1 < n_blocks {
            walk.advance(block)?;
        }
    }
    Ok(())
}

/// A model being quantized, as far as its blocks are done.
struct Walk<'a> {
    original: &'a Arc<Gguf>,
    program: &'a Program,
    types: &'a HashMap<String, GgmlType>,
    windows: &'a Windows,
    options: &'a Options,
    listener: &'a mut dyn Listener,
    outer: Outer,
    /// The model with the tensors of the current block that are done.
    view: Arc<Gguf>,
    /// What goes into the current block, for each window.
    hidden: Vec<Hidden>,
    /// Passes over a window, done and in all.
    done: usize,
    total: usize,
}

impl Walk<'_> {
    /// Quantizes what a block multiplies and looks up.
    fn quantize(&mut self, block: &Block) -> Result<()> {
        // What earlier blocks replaced is not needed any more.
        self.view = self.original.clone();
        let tables = block.weights.iter().filter(|id| self.program.weight(**id).role == WeightRole::Table);
        for id in tables {
            if let Some((tensor, ty)) = self.job(*id) {
                let mut data = vec![0; n_bytes(&tensor, ty)?];
                let importance = self.options.importance.get(&tensor.name).map(Vec::as_slice);
                let loss = self.search(&tensor, ty, 0..tensor.n_rows(), importance, &mut data)?;
                self.finish(&tensor, ty, data, loss, How::Search)?;
            }
        }
        for stage in stages(block, self.program) {
            let jobs = self.jobs(&stage);
            match jobs.is_empty() {
                true => {}
                false if stage.experts => self.experts(block, &stage, &jobs)?,
                false => self.matrices(block, &stage, &jobs)?,
            }
        }
        Ok(())
    }

    /// Runs a block as it is now: what goes into the next one.
    fn advance(&mut self, block: &Block) -> Result<()> {
        let mut backend = self.load(block.clone())?;
        for i in 0..self.windows.len() {
            let tokens = self.windows.tokens(i);
            let batch = Batch { tokens: &tokens, start: 0, outputs: (0, 0) };
            backend.run(0..1, &batch, &mut self.hidden[i])?;
            self.progress(block)?;
        }
        Ok(())
    }

    /// What is to be done in a stage.
    fn jobs(&self, stage: &Stage) -> Vec<(TensorInfo, GgmlType)> {
        stage.matrices.iter().filter_map(|id| self.job(*id)).collect()
    }

    /// The tensor of a weight and the type it is to have, if it is to have another.
    fn job(&self, id: WeightId) -> Option<(TensorInfo, GgmlType)> {
        let tensor = self.original.tensor(&self.program.weight(id).tensor)?;
        let ty = *self.types.get(&tensor.name)?;
        (ty != tensor.ty).then(|| (tensor.clone(), ty))
    }

    fn progress(&mut self, block: &Block) -> Result<()> {
        self.done += 1;
        self.check()?;
        self.listener.progress(self.done, self.total, &block.kind.to_string())
    }

    fn check(&self) -> Result<()> {
        check(&self.options.stop)
    }

    /// Tells of a tensor, and puts it in its place for what comes after.
    fn finish(&mut self, tensor: &TensorInfo, ty: GgmlType, data: Vec<u8>, loss: Loss, how: How) -> Result<()> {
        self.listener.tensor(Quantized { tensor, data: &data, loss, how })?;
        let mut view = Gguf::clone(&self.view);
        view.replace(&tensor.name, ty, data)?;
        self.view = Arc::new(view);
        Ok(())
    }

    /// A backend with one block.
    fn load(&self, block: Block) -> Result<CpuBackend> {
        let program = Arc::new(Program { blocks: vec![block], ..self.program.clone() });
        let options = CpuOptions {
            threads: self.options.threads,
            precision: Precision::Fast,
            kv_type: KvType::F16,
            n_ctx: self.windows.n_ctx(),
            isa: None,
            inputs: None,
        };
        let only = std::slice::from_ref(&(0..1));
        CpuBackend::load(&self.view, &program, only, options, &mut |_| ())
    }

    /// Runs a block up to a stage for each window, and lets `see` look at the registers.
    fn inputs(
        &mut self,
        block: &Block,
        stage: &Stage,
        mut see: impl FnMut(&mut CpuBackend, usize) -> Result<()>,
    ) -> Result<()> {
        let steps = block.steps[..stage.step].to_vec();
        let weights = steps.iter().flat_map(Step::weights).collect();
        // Without its last step even the head gives no logits.
        let mut backend = self.load(Block { kind: BlockKind::FeedForward(0), steps, weights })?;
        for i in 0..self.windows.len() {
            let tokens = self.windows.tokens(i);
            let batch = Batch { tokens: &tokens, start: 0, outputs: (0, 0) };
            let mut hidden = self.hidden[i].clone();
            backend.run(0..1, &batch, &mut hidden)?;
            see(&mut backend, tokens.len())?;
            self.progress(block)?;
        }
        Ok(())
    }

    /// Matrices that every token goes through.
    fn matrices(&mut self, block: &Block, stage: &Stage, jobs: &[(TensorInfo, GgmlType)]) -> Result<()> {
        let n = jobs[0].0.row_len();
        let (input, outer) = (stage.input, self.outer);
        let mut hessian = Hessian::new(n)?;
        self.inputs(block, stage, |backend, tokens| {
            hessian.add(&backend.register(input, tokens, n, false)?, outer);
            Ok(())
        })?;
        check_finite(&hessian, &jobs[0].0)?;
        let mut moments = Moments::new(&hessian);
        for (tensor, ty) in jobs {
            let mut data = vec![0; n_bytes(tensor, *ty)?];
            let (loss, how) = self.rows(tensor, *ty, 0..tensor.n_rows(), &mut moments, &mut data)?;
            self.finish(tensor, *ty, data, loss, how)?;
        }
        Ok(())
    }

    /// Matrices of experts, which see the tokens that were routed to them.
    fn experts(&mut self, block: &Block, stage: &Stage, jobs: &[(TensorInfo, GgmlType)]) -> Result<()> {
        let n = jobs[0].0.row_len();
        let n_expert = self.program.registers.n_expert;
        let (input, n_used) = (stage.input, self.program.hparams.n_expert_used);
        let outer = self.outer;
        let at_a_time = (MOMENT_BYTES / Hessian::bytes(n).max(1)).clamp(1, n_expert);
        let mut results: Vec<(Vec<u8>, Loss)> = Vec::new();
        for (tensor, ty) in jobs {
            results.push((vec![0; n_bytes(tensor, *ty)?], Loss::default()));
        }
        for first in (0..n_expert).step_by(at_a_time) {
            let group = first..n_expert.min(first + at_a_time);
            self.total += if first > 0 { self.windows.len() } else { 0 };
            let mut hessians = group.clone().map(|_| Hessian::new(n)).collect::<Result<Vec<_>>>()?;
            self.inputs(block, stage, |backend, tokens| {
                let routes = backend.register(Reg::R, tokens, n_expert, false)?;
                let rows = if input == Reg::F { tokens * n_used } else { tokens };
                let x = backend.register(input, rows, n, input == Reg::F)?;
                for (hessian, expert) in hessians.iter_mut().zip(group.clone()) {
                    let chosen = chosen(&routes, n_expert, n_used, expert);
                    let row =
                        |(token, place): (usize, usize)| if input == Reg::F { token * n_used + place } else { token };
                    let seen: Vec<f32> = chosen.flat_map(|at| x[row(at) * n..][..n].iter().copied()).collect();
                    hessian.add(&seen, outer);
                }
                Ok(())
            })?;
            for (expert, hessian) in group.zip(hessians) {
                check_finite(&hessian, &jobs[0].0)?;
                let mut moments = Moments::new(&hessian);
                for ((tensor, ty), (data, loss)) in jobs.iter().zip(&mut results) {
                    let per_expert = tensor.n_rows() / n_expert;
                    let rows = expert * per_expert..(expert + 1) * per_expert;
                    let bytes = data.len() / n_expert;
                    let data = &mut data[expert * bytes..(expert + 1) * bytes];
                    *loss = loss.and(self.rows(tensor, *ty, rows, &mut moments, data)?.0);
                }
            }
        }
        for ((tensor, ty), (data, loss)) in jobs.iter().zip(results) {
            let how = if Codes::of(*ty).is_some() { How::Gptq } else { How::Search };
            self.finish(tensor, *ty, data, loss, how)?;
        }
        Ok(())
    }

    /// Quantizes rows of a tensor, by GPTQ where its type and the inputs seen allow it.
    fn rows(
        &self,
        tensor: &TensorInfo,
        ty: GgmlType,
        rows: Range<usize>,
        moments: &mut Moments<'_>,
        out: &mut [u8],
    ) -> Result<(Loss, How)> {
        match Codes::of(ty) {
            Some(codes) if moments.hessian.count() > 0 => {
                moments.factor(codes.block(), self.options, self.outer)?;
                Ok((self.round(tensor, ty, rows, moments, &codes, out)?, How::Gptq))
            }
            _ => Ok((self.search(tensor, ty, rows, Some(&moments.squares), out)?, How::Search)),
        }
    }

    /// Quantizes rows of a tensor by GPTQ.
    fn round(
        &self,
        tensor: &TensorInfo,
        ty: GgmlType,
        rows: Range<usize>,
        moments: &Moments<'_>,
        codes: &Codes,
        out: &mut [u8],
    ) -> Result<Loss> {
        let recode = Recode::new(tensor, ty, Method::Search)?;
        let (from, to) = recode.row_bytes();
        let (Some(encode), Some(decode)) = (encode_fn(ty), quant::decode_fn(ty)) else {
            unreachable!("a type with codes has an encoder and a decoder")
        };
        let n = tensor.row_len();
        let Moments { squares, order, factors, .. } = moments;
        let rounding = Rounding { factors, order, codes, encode, outer: self.outer };
        let data = &self.original.data(tensor)[rows.start * from..rows.end * from];
        let stop = &self.options.stop;
        let losses: Vec<Result<Loss>> = data
            .par_chunks(ROWS * from)
            .zip(out.par_chunks_mut(ROWS * to))
            .enumerate()
            .map_init(
                || (Scratch::new(n, codes), vec![0.0; ROWS * n], vec![0.0; n]),
                |(scratch, x, y), (tile, (data, out))| {
                    check(stop)?;
                    let here = data.len() / from;
                    for (r, (data, x)) in data.chunks_exact(from).zip(x.chunks_exact_mut(n)).enumerate() {
                        recode.weights(rows.start + tile * ROWS + r, data, x)?;
                    }
                    rounding.rows(&x[..here * n], out, scratch);
                    let mut loss = Loss::default();
                    for (x, out) in x.chunks_exact(n).zip(out.chunks_exact(to)) {
                        decode(out, y);
                        loss = loss.and(measure(x, y, squares));
                    }
                    Ok(loss)
                },
            )
            .collect();
        // In order, so that the sum does not depend on the threads.
        losses.into_iter().try_fold(Loss::default(), |total, loss| Ok(total.and(loss?)))
    }

    /// Quantizes rows of a tensor by search.
    fn search(
        &self,
        tensor: &TensorInfo,
        ty: GgmlType,
        rows: Range<usize>,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<Loss> {
        let recode = Recode::new(tensor, ty, Method::Search)?;
        let (from, to) = recode.row_bytes();
        let at_a_time = (WEIGHTS_AT_A_TIME / tensor.row_len()).max(1);
        let data = &self.original.data(tensor)[rows.start * from..rows.end * from];
        let mut loss = Loss::default();
        let parts = data.chunks(at_a_time * from).zip(out.chunks_mut(at_a_time * to));
        for (i, (data, out)) in parts.enumerate() {
            let first = rows.start + i * at_a_time;
            loss = loss.and(recode.rows(first, data, importance, out, &self.options.stop)?);
            self.check()?;
        }
        Ok(loss)
    }
}

fn check(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Bytes of a tensor in another type.
fn n_bytes(tensor: &TensorInfo, ty: GgmlType) -> Result<usize> {
    Ok(Recode::new(tensor, ty, Method::Search)?.row_bytes().1 * tensor.n_rows())
}

fn check_finite(hessian: &Hessian, tensor: &TensorInfo) -> Result<()> {
    if hessian.is_finite() {
        return Ok(());
    }
    let message =
        "its inputs on the calibration text are not finite numbers; the model's weights may be damaged".to_owned();
    Err(tandem_loader::Error::Encode { tensor: tensor.name.clone(), message }.into())
}

/// The tokens that were routed to an expert, and which of their experts it is, as [`Reg::F`] has them. (A token one of
/// whose weights vanished has fewer than it should; it is left out.)
fn chosen(routes: &[f32], n_expert: usize, n_used: usize, expert: usize) -> impl Iterator<Item = (usize, usize)> {
    let used = |row: &[f32]| row.iter().filter(|weight| **weight != 0.0).count();
    routes
        .chunks_exact(n_expert)
        .enumerate()
        .filter(move |(_, row)| row[expert] != 0.0 && used(row) == n_used)
        .map(move |(token, row)| (token, used(&row[..expert])))
}
