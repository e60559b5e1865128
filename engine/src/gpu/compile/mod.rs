//! From the steps of a block to operations: pipelines chosen, buffers bound, neighbours fused.
//!
//! Fused are: the projections of a step, as far as their weights have the same type; a norm or gated unit and the
//! quantization of its result; and the norm, the rotation and the storing of heads.

mod attend;
mod product;

use tandem_models::{Program, Reg, Step, Vector, WeightId};
use tandem_shaders::params::{ADD, NormParams};
use tandem_shaders::{GROUP, Kernel};

use super::buffers::Buffers;
use super::device::Gpu;
use super::error::GpuError;
use super::kernels::{Bound, Pipelines};
use super::layout::{Buf, Layout, Rows, rows_of, stride};
use super::op::{Bind, Op};
use super::{GpuOptions, Tuning};
use crate::error::Result;
use attend::Heads;

/// Everything that steps are compiled with.
pub(super) struct Compiler<'a> {
    pub(super) program: &'a Program,
    pub(super) layout: &'a Layout,
    pub(super) buffers: &'a Buffers,
    pub(super) options: &'a GpuOptions,
    pub(super) tuning: Tuning,
    pub(super) pipelines: Pipelines<'a>,
}

/// A block being compiled.
struct State<'a> {
    block: usize,
    steps: &'a [Step],
    ops: Vec<Op>,
    /// The norm, rotation and storing of heads that have been seen and are not an operation yet.
    heads: Heads,
    /// Which register the int8 activations are of.
    quantized: Option<Reg>,
}

impl State<'_> {
    /// Registers that were written: int8 activations of theirs are out of date.
    fn written(&mut self, regs: &[Reg]) {
        if self.quantized.is_some_and(|reg| regs.contains(&reg)) {
            self.quantized = None;
        }
    }
}

/// The register whose rows a step multiplies with matrices.
fn multiplied(step: &Step) -> Option<Reg> {
    match step {
        Step::Qkv { .. } | Step::Glu { .. } | Step::Logits { .. } => Some(Reg::H),
        Step::Linear { input, .. } => Some(*input),
        Step::Embed { .. }
        | Step::Norm { .. }
        | Step::HeadNorm { .. }
        | Step::Rope { .. }
        | Step::StoreKv { .. }
        | Step::Route { .. }
        | Step::ExpertGlu { .. }
        | Step::ExpertDown { .. }
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
        Step::Glu { .. } => vec![Reg::F],
        Step::Route { .. } | Step::ExpertGlu { .. } | Step::ExpertDown { .. } | Step::SigmoidGate { .. } => vec![],
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
        Compiler { program, layout, buffers, options, tuning, pipelines: Pipelines::new(gpu) }
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

    fn step(&mut self, state: &mut State<'_>, s: usize) -> Result<()> {
        let step = &state.steps[s];
        if !state.heads.take(step) {
            self.flush_heads(state)?;
            state.heads.take(step);
        }
        match step {
            Step::Embed { .. } | Step::HeadNorm { .. } | Step::Rope { .. } | Step::StoreKv { .. } => {}
            Step::Route { .. } | Step::ExpertGlu { .. } | Step::ExpertDown { .. } | Step::SigmoidGate { .. } => {
                unreachable!("the layout refuses it")
            }
            Step::Norm { norm, input, output, add } => self.norm(state, s, norm, (*input, *output), *add)?,
            Step::Qkv { .. } => self.products(state, s, Reg::H, self.rows(Reg::Q), 0, 0.0)?,
            Step::Attend { layer, scale, window } => {
                let op = self.attend(*layer, *scale, *window)?;
                state.ops.push(op);
            }
            Step::Linear { input, output, add, .. } => {
                self.products(state, s, *input, self.rows(*output), if *add { ADD } else { 0 }, 0.0)?;
            }
            Step::Glu { act, .. } => self.glu(state, s, *act)?,
            Step::Logits { soft_cap, .. } => {
                let rows = Rows { buf: Buf::Logits, column: 0, stride: stride(self.program, Buf::Logits) };
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

    /// Whether a product of step `s` wants int8 activations.
    fn wants_int8(&self, state: &State<'_>, s: usize) -> bool {
        let products = self.layout.products.get(&(state.block, s)).into_iter().flatten();
        products.into_iter().any(|p| self.layout.matrices[p.matrix].wants_int8(self.options.precision))
    }

    /// Whether a product after step `s` reads `reg` as int8, before anything else is written there.
    fn read_as_int8(&self, state: &State<'_>, s: usize, reg: Reg) -> bool {
        for (i, step) in state.steps.iter().enumerate().skip(s + 1) {
            if multiplied(step) == Some(reg) && self.wants_int8(state, i) {
                return true;
            }
            if written(step).contains(&reg) {
                return false;
            }
        }
        false
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
        let quantize = !add && width.is_multiple_of(GROUP) && self.read_as_int8(state, s, output);
        let mut bound = vec![self.vector(1, norm.weight), self.buffer(2, to.buf)];
        if !in_place {
            bound.push(self.buffer(0, from.buf));
        }
        if quantize {
            bound.push(Bound::whole(3, &self.buffers.acts));
        }
        let bind = self.bind(Kernel::Norm { in_place, quantize }, &bound)?;
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
        if quantize {
            state.quantized = Some(output);
        }
        Ok(())
    }
}
