//! Products and gated units.

use tandem_models::{Activation, Reg, Step};
use tandem_shaders::params::{BIAS, GluParams, ProductParams, QuantizeParams, SCALE};
use tandem_shaders::{Acts, GROUP, Kernel, Operands};

use super::super::error::GpuError;
use super::super::kernels::{Bound, Pipeline};
use super::super::layout::{Buf, MatrixSpec, Rows, stride};
use super::super::op::{Op, Product, ProductPart};
use super::{Compiler, State, written};
use crate::error::Result;

impl Compiler<'_> {
    /// The products of step `s` with the rows of `input`, side by side from `to` on.
    pub(super) fn products(
        &mut self,
        state: &mut State<'_>,
        s: usize,
        input: Reg,
        to: Rows,
        flags: u32,
        cap: f32,
    ) -> Result<()> {
        self.quantize(state, s, input, self.rows(input))?;
        for product in self.layout.products[&(state.block, s)].clone() {
            let to = Rows { column: to.column + product.first, ..to };
            let acts = self.acts_of(state, s, product.matrix);
            let (wide, exponent) = self.wide_kernel(state, s, product.matrix);
            let op = self.product(product.matrix, acts, input, to, wide, (flags | exponent, cap))?;
            state.ops.push(op);
        }
        state.written(&written(&state.steps[s]));
        Ok(())
    }

    /// Quantizes the rows of a register that step `s` multiplies, where it wants that and it has not been done.
    pub(super) fn quantize(&mut self, state: &mut State<'_>, s: usize, reg: Reg, rows: Rows) -> Result<()> {
        let acts = self.acts_wanted(state, s);
        if acts == Acts::F32 || state.quantized == Some((reg, acts)) {
            return Ok(());
        }
        self.check_operand(reg, rows)?;
        // All matrices of a step have the same row length.
        let first = &self.layout.products[&(state.block, s)][0];
        let groups = self.layout.matrices[first.matrix].n_in / GROUP;
        let kernel = Kernel::Quantize { twice: acts == Acts::Int8Twice };
        let bind = self.bind(kernel, &[self.buffer(0, rows.buf), Bound::whole(3, &self.buffers.acts)])?;
        let params = QuantizeParams { first: 0, groups: groups as u32, in_stride: rows.stride as u32 / 4 };
        state.ops.push(Op::Quantize { bind, params, per_token: rows.per_token as u32 });
        state.quantized = Some((reg, acts));
        Ok(())
    }

    /// Products read whole rows in fours.
    fn check_operand(&self, reg: Reg, rows: Rows) -> Result<()> {
        if rows.column == 0 && rows.buf != Buf::Qkv {
            return Ok(());
        }
        Err(GpuError::Unsupported { what: format!("a product with register {reg:?}") }.into())
    }

    fn product(
        &mut self,
        matrix: usize,
        acts: Acts,
        input: Reg,
        to: Rows,
        wide: Kernel,
        (flags, cap): (u32, f32),
    ) -> Result<Op> {
        let spec = &self.layout.matrices[matrix];
        let from = self.rows(input);
        self.check_operand(input, from)?;
        if from.buf == to.buf {
            return Err(GpuError::Unsupported { what: format!("a product from register {input:?} to itself") }.into());
        }
        let pipelines = self.product_pipelines(spec, acts, wide)?;
        let bound_acts = self.acts(3, from, acts);
        let (bias, scale) = (self.layout.biases.get(&matrix), self.layout.scales.get(&matrix));
        // Scales come after biases.
        let offset = bias.or(scale).copied().unwrap_or(0);
        let bias_bound = Bound { number: 4, buffer: &self.buffers.vectors, offset, size: None };
        let scale_first = scale.map_or(0, |scale| (scale - offset) / 4);
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let params = ProductParams {
            flags: flags | flag(bias.is_some(), BIAS) | flag(scale.is_some(), SCALE),
            cap,
            ..self.product_params(spec, from, to, acts)
        };
        let part = |(rows, weights): (&std::ops::Range<usize>, &wgpu::Buffer)| {
            let views = [0, 1, 2].map(|number| Bound::whole(number, weights));
            let rest = [bound_acts, bias_bound, self.buffer(5, to.buf)];
            let group = self.pipelines.bind(&pipelines[0], &[&views[..], &rest].concat());
            let params = ProductParams {
                n_rows: rows.len() as u32,
                column: (to.column + rows.start) as u32,
                bias_first: rows.start as u32,
                scale_first: (scale_first + rows.start) as u32,
                ..params
            };
            ProductPart { group, params }
        };
        let parts = spec.parts.iter().zip(&self.buffers.matrices[matrix]).map(part).collect();
        Ok(Op::Product(Box::new(Product { parts, pipelines, from_first_row: to.buf == Buf::Logits })))
    }

    /// Activations as a product reads them.
    pub(super) fn acts(&self, number: u32, from: Rows, acts: Acts) -> Bound<'_> {
        match acts {
            Acts::F32 => self.buffer(number, from.buf),
            Acts::Int8 | Acts::Int8Twice => Bound::whole(number, &self.buffers.acts),
        }
    }

    /// What is the same for all parts of a product.
    pub(super) fn product_params(&self, spec: &MatrixSpec, from: Rows, to: Rows, acts: Acts) -> ProductParams {
        let act_stride = match acts {
            Acts::F32 => from.stride / 4,
            Acts::Int8 | Acts::Int8Twice => spec.n_in / GROUP * (acts.group_bytes() / 16),
        };
        ProductParams { act_stride: act_stride as u32, out_stride: to.stride as u32, ..spec.params() }
    }

    fn product_pipelines(&mut self, spec: &MatrixSpec, acts: Acts, wide: Kernel) -> Result<[Pipeline; 4]> {
        let operands = Operands { ty: spec.format.ty, acts };
        let threads = self.tuning.matvec_threads(spec);
        let subgroups = self.tuning.subgroups;
        Ok([
            self.pipelines.get(Kernel::MatVec { operands, threads, cols: 1, subgroups, experts: false })?,
            self.pipelines.get(Kernel::MatVec { operands, threads, cols: 4, subgroups, experts: false })?,
            self.pipelines.get(Kernel::MatMat { operands, wide: false, experts: false })?,
            self.pipelines.get(wide)?,
        ])
    }

    /// Gate and up projection, then their product in F.
    pub(super) fn glu(&mut self, state: &mut State<'_>, s: usize, act: Activation) -> Result<()> {
        let Step::Glu { gate, .. } = &state.steps[s] else { unreachable!("called for this step") };
        let n_ff = self.program.weight(gate.weight).n_out;
        let stride = stride(self.program, Buf::GateUp);
        let between = Rows { buf: Buf::GateUp, column: 0, stride, per_token: 1 };
        self.products(state, s, Reg::H, between, 0, 0.0)?;
        self.gated(state, s, between, self.rows(Reg::F), n_ff, act)
    }

    /// `F = act(gate) * up` of what products left in `between`, also as int8 where that is what comes next.
    pub(super) fn gated(
        &mut self,
        state: &mut State<'_>,
        s: usize,
        between: Rows,
        f: Rows,
        n_ff: usize,
        act: Activation,
    ) -> Result<()> {
        // What a gated unit makes is no input of an output head.
        let quantize = n_ff.is_multiple_of(GROUP) && self.acts_read(state, s, Reg::F) == Acts::Int8;
        let mut bound = vec![self.buffer(0, between.buf), self.buffer(1, f.buf)];
        if quantize {
            bound.push(Bound::whole(3, &self.buffers.acts));
        }
        let gelu = match act {
            Activation::Silu => false,
            Activation::GeluTanh => true,
        };
        let bind = self.bind(Kernel::Glu { gelu, quantize }, &bound)?;
        let params = GluParams {
            first: 0,
            n_ff: n_ff as u32,
            in_stride: between.stride as u32,
            out_stride: (f.stride / 4) as u32,
        };
        state.ops.push(Op::Glu { bind, params, per_token: f.per_token as u32 });
        state.quantized = quantize.then_some((Reg::F, Acts::Int8));
        Ok(())
    }
}
