//! From the steps of a block to operations: pipelines chosen, buffers bound, neighbours fused.
//!
//! Fused are: the projections of a step, as far as their weights have the same type; a norm, attention or a gated unit and
//! the quantization of its result; and the norm, the rotation and the storing of heads.

mod attend;
mod experts;
mod product;

use tandem_models::{Program, Reg, Step, Vector, WeightId};
use tandem_shaders::params::{ADD, NormParams};
use tandem_shaders::{Acts, BestStep, GROUP, Kernel, Operands};

use super::buffers::Buffers;
use super::coop::{Choice, Coop};
use super::device::Gpu;
use super::error::GpuError;
use super::kernels::{Bound, Pipelines};
use super::layout::{Buf, Layout, Rows, is_head, rows_of, stride};
use super::op::{Best, Bind, Op};
use super::{GpuOptions, Tuning};
use crate::error::Result;
use attend::Heads;

/// Everything that steps are compiled with.
pub(super) struct Compiler<'a> {
    gpu: &'a Gpu,
    pub(super) program: &'a Program,
    pub(super) layout: &'a Layout,
    pub(super) buffers: &'a Buffers,
    pub(super) options: &'a GpuOptions,
    pub(super) tuning: Tuning,
    pub(super) pipelines: Pipelines<'a>,
    coop: Coop,
}

/// A block being compiled.
struct State<'a> {
    block: usize,
    steps: &'a [Step],
    ops: Vec<Op>,
    /// The norm, rotation and storing of heads that have been seen and are not an operation yet.
    heads: Heads,
    /// Which register the int8 activations are of, and of which kind they are.
    quantized: Option<(Reg, Acts)>,
}

impl State<'_> {
    /// Registers that were written: int8 activations of theirs are out of date.
    fn written(&mut self, regs: &[Reg]) {
        if self.quantized.is_some_and(|(reg, _)| regs.contains(&reg)) {
            self.quantized = None;
        }
    }
}

/// The register whose rows a step multiplies with matrices.
fn multiplied(step: &Step) -> Option<Reg> {
    match step {
        Step::Qkv { .. } | Step::Glu { .. } | Step::Logits { .. } => Some(Reg::H),
        Step::Route { .. } | Step::ExpertGlu { .. } => Some(Reg::H),
        Step::ExpertDown { .. } => Some(Reg::F),
        Step::Linear { input, .. } => Some(*input),
        Step::Embed { .. }
        | Step::Norm { .. }
        | Step::HeadNorm { .. }
        | Step::Rope { .. }
        | Step::StoreKv { .. }
        | Step::SigmoidGate { .. }
        | Step::Attend { .. } => None,
    }
}

/// The registers a step writes.
fn written(step: &Step) -> Vec<Reg> {
    match step {
        Step::Embed { .. } => vec![Reg::X],
        Step::Norm { output, .. } | Step::Linear { output, .. } => vec![*output],
        Step::Qkv { .. } => vec![Reg::Q, Reg::K, Reg::V],
        Step::HeadNorm { .. } | Step::Rope { .. } => vec![Reg::Q, Reg::K],
        Step::Attend { .. } => vec![Reg::A],
        Step::Glu { .. } | Step::ExpertGlu { .. } | Step::SigmoidGate { .. } => vec![Reg::F],
        Step::Route { .. } => vec![Reg::R],
        Step::ExpertDown { output, .. } => vec![*output],
        Step::StoreKv { .. } | Step::Logits { .. } => vec![],
    }
}

impl<'a> Compiler<'a> {
    pub(super) fn new(
        gpu: &'a Gpu,
        program: &'a Program,
        layout: &'a Layout,
        buffers: &'a Buffers,
        options: &'a GpuOptions,
        tuning: Tuning,
    ) -> Compiler<'a> {
        let pipelines = Pipelines::new(gpu, options.pipeline_cache.as_deref(), options.edit_kernel);
        Compiler { gpu, program, layout, buffers, options, tuning, pipelines, coop: Coop::default() }
    }

    /// Lets the products of the blocks compiled from here on use cooperative matrices, where the device offers them. If it
    /// does and they cannot be used, a text says why.
    pub(super) fn use_cooperative_matrices(&mut self) -> Result<Option<String>> {
        let Compiler { gpu, program, layout, buffers, options, .. } = *self;
        let (coop, why) = Choice { gpu, program, layout, buffers, options }.make(&mut self.pipelines)?;
        self.coop = coop;
        Ok(why)
    }

    /// The operations of a block. Embedding is none: the host looks tokens up.
    pub(super) fn block(&mut self, block: usize) -> Result<Vec<Op>> {
        let steps = &self.program.blocks[block].steps;
        let mut state = State { block, steps, ops: Vec::new(), heads: Heads::default(), quantized: None };
        for s in 0..steps.len() {
            self.step(&mut state, s)?;
        }
        self.flush_heads(&mut state)?;
        Ok(state.ops)
    }

    /// Finding the most likely tokens, where the output head is here.
    pub(super) fn best(&mut self) -> Result<Option<Best>> {
        if self.layout.logit_rows == 0 {
            return Ok(None);
        }
        let buffers = &self.buffers.best;
        let logits = &self.buffers.bufs[&Buf::Logits];
        let steps = BestStep::ALL.map(|step| {
            let bound: &[&wgpu::Buffer] = match step {
                BestStep::Slices => &[logits, &buffers.maxima],
                BestStep::Threshold => &[&buffers.maxima, &buffers.state],
                BestStep::Collect => &[logits, &buffers.state, &buffers.collected],
                BestStep::Sort => &[&buffers.state, &buffers.collected, &buffers.best],
            };
            let bound: Vec<Bound<'_>> = (0..).zip(bound).map(|(number, buffer)| Bound::whole(number, buffer)).collect();
            self.bind(Kernel::Best(step), &bound)
        });
        let steps = steps.into_iter().collect::<Result<_>>()?;
        Ok(Some(Best { steps, n_vocab: self.program.hparams.n_vocab }))
    }

    fn step(&mut self, state: &mut State<'_>, s: usize) -> Result<()> {
        let step = &state.steps[s];
        if !state.heads.take(step) {
            self.flush_heads(state)?;
            state.heads.take(step);
        }
        match step {
            Step::Embed { .. } | Step::HeadNorm { .. } | Step::Rope { .. } | Step::StoreKv { .. } => {}
            Step::Route { normalize, .. } => self.route(state, s, *normalize)?,
            Step::ExpertGlu { gate, act, .. } => self.expert_glu(state, s, *gate, *act)?,
            Step::ExpertDown { down, output, add } => self.expert_down(state, s, *down, *output, *add)?,
            Step::SigmoidGate { weight, n_ff } => self.sigmoid_gate(state, *weight, *n_ff)?,
            Step::Norm { norm, input, output, add } => self.norm(state, s, norm, (*input, *output), *add)?,
            Step::Qkv { .. } => self.products(state, s, Reg::H, self.rows(Reg::Q), 0, 0.0)?,
            Step::Attend { layer, scale, window } => self.attend(state, s, *layer, *scale, *window)?,
            Step::Linear { input, output, add, .. } => {
                self.products(state, s, *input, self.rows(*output), if *add { ADD } else { 0 }, 0.0)?;
            }
            Step::Glu { act, .. } => self.glu(state, s, *act)?,
            Step::Logits { soft_cap, .. } => {
                let stride = stride(self.program, Buf::Logits);
                let rows = Rows { buf: Buf::Logits, column: 0, stride, per_token: 1 };
                self.products(state, s, Reg::H, rows, 0, soft_cap.unwrap_or(0.0))?;
            }
        }
        Ok(())
    }

    fn rows(&self, reg: Reg) -> Rows {
        rows_of(self.program, reg)
    }

    fn buffer(&self, number: u32, buf: Buf) -> Bound<'a> {
        Bound::whole(number, &self.buffers.bufs[&buf])
    }

    fn vector(&self, number: u32, id: WeightId) -> Bound<'a> {
        let size = 4 * self.program.weight(id).n_in;
        Bound { number, buffer: &self.buffers.vectors, offset: self.layout.vectors[&id], size: Some(size) }
    }

    fn bind(&mut self, kernel: Kernel, bound: &[Bound<'_>]) -> Result<Bind> {
        let pipeline = self.pipelines.get(kernel)?;
        let group = self.pipelines.bind(&pipeline, bound);
        Ok(Bind { pipeline, group })
    }

    /// The int8 activations that products of step `s` want, if one does; `F32` otherwise.
    fn acts_wanted(&self, state: &State<'_>, s: usize) -> Acts {
        let products = self.layout.products.get(&(state.block, s)).into_iter().flatten();
        let mut acts = products.map(|p| self.acts_of(state, s, p.matrix));
        acts.find(|acts| *acts != Acts::F32).unwrap_or(Acts::F32)
    }

    /// How step `s` reads activations for its product with a matrix.
    fn acts_of(&self, state: &State<'_>, s: usize, matrix: usize) -> Acts {
        self.layout.matrices[matrix].acts(self.options.precision, is_head(&state.steps[s]))
    }

    /// The kernel for wide tiles of step `s`'s product with a matrix, and what its parameters' flags say to it.
    fn wide_kernel(&self, state: &State<'_>, s: usize, matrix: usize) -> (Kernel, u32) {
        let spec = &self.layout.matrices[matrix];
        let operands = Operands { ty: spec.format.ty, acts: self.acts_of(state, s, matrix) };
        let experts = spec.n_expert.is_some();
        let coop = self.coop.kernel(&state.steps[s], matrix, operands, experts);
        coop.unwrap_or((Kernel::MatMat { operands, wide: true, experts }, 0))
    }

    /// As what the first product after step `s` that reads `reg` as int8 does so, before anything else is written there;
    /// `F32` where none does.
    fn acts_read(&self, state: &State<'_>, s: usize, reg: Reg) -> Acts {
        for (i, step) in state.steps.iter().enumerate().skip(s + 1) {
            let acts = self.acts_wanted(state, i);
            if multiplied(step) == Some(reg) && acts != Acts::F32 {
                return acts;
            }
            if written(step).contains(&reg) {
                break;
            }
        }
        Acts::F32
    }

    fn norm(
        &mut self,
        state: &mut State<'_>,
        s: usize,
        norm: &Vector,
        (input, output): (Reg, Reg),
        add: bool,
    ) -> Result<()> {
        let (from, to) = (self.rows(input), self.rows(output));
        let in_place = input == output;
        if from.buf == to.buf && !in_place {
            return Err(GpuError::Unsupported { what: format!("a norm from {input:?} to {output:?}") }.into());
        }
        let width = self.program.weight(norm.weight).n_in;
        let fits = !add && width.is_multiple_of(GROUP);
        let acts = if fits { self.acts_read(state, s, output) } else { Acts::F32 };
        let mut bound = vec![self.vector(1, norm.weight), self.buffer(2, to.buf)];
        if !in_place {
            bound.push(self.buffer(0, from.buf));
        }
        if acts != Acts::F32 {
            bound.push(Bound::whole(3, &self.buffers.acts));
        }
        let bind = self.bind(Kernel::Norm { in_place, acts }, &bound)?;
        let params = NormParams {
            first: 0,
            width: width as u32,
            in_stride: from.stride as u32,
            in_column: from.column as u32,
            out_stride: to.stride as u32,
            out_column: to.column as u32,
            eps: norm.eps,
            add: u32::from(add),
        };
        state.ops.push(Op::Norm { bind, params });
        state.written(&[output]);
        if acts != Acts::F32 {
            state.quantized = Some((output, acts));
        }
        Ok(())
    }
}
