//! Products and gated units.

use tandem_models::{Activation, Reg, Step};
use tandem_shaders::params::{BIAS, GluParams, ProductParams, QuantizeParams};
use tandem_shaders::{Format, GROUP, Kernel, Operands};

use super::super::error::GpuError;
use super::super::kernels::{Bound, Pipeline};
use super::super::layout::{ACT_GROUP_BYTES, Buf, MatrixSpec, Rows, stride};
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
        if self.wants_int8(state, s) && state.quantized != Some(input) {
            self.quantize(state, s, input)?;
        }
        for product in self.layout.products[&(state.block, s)].clone() {
            let to = Rows { column: to.column + product.first, ..to };
            let op = self.product(product.matrix, input, to, flags, cap)?;
            state.ops.push(op);
        }
        state.written(&written(&state.steps[s]));
        Ok(())
    }

    /// Quantizes the rows of a register that step `s` multiplies.
    fn quantize(&mut self, state: &mut State<'_>, s: usize, reg: Reg) -> Result<()> {
        let rows = self.rows(reg);
        self.check_operand(reg, rows)?;
        // All matrices of a step have the same row length.
        let first = &self.layout.products[&(state.block, s)][0];
        let groups = self.layout.matrices[first.matrix].n_in / GROUP;
        let bind = self.bind(Kernel::Quantize, &[self.buffer(0, rows.buf), Bound::whole(3, &self.buffers.acts)])?;
        let params = QuantizeParams { first: 0, groups: groups as u32, in_stride: rows.stride as u32 / 4 };
        state.ops.push(Op::Quantize { bind, params });
        state.quantized = Some(reg);
        Ok(())
    }

    /// Products read whole rows in fours.
    fn check_operand(&self, reg: Reg, rows: Rows) -> Result<()> {
        if rows.column == 0 && rows.buf != Buf::Qkv {
            return Ok(());
        }
        Err(GpuError::Unsupported { what: format!("a product with register {reg:?}") }.into())
    }

    fn product(&mut self, matrix: usize, input: Reg, to: Rows, flags: u32, cap: f32) -> Result<Op> {
        let spec = &self.layout.matrices[matrix];
        let from = self.rows(input);
        self.check_operand(input, from)?;
        if from.buf == to.buf {
            return Err(GpuError::Unsupported { what: format!("a product from register {input:?} to itself") }.into());
        }
        let int8 = spec.wants_int8(self.options.precision);
        let pipelines = self.product_pipelines(spec, int8)?;
        let acts = if int8 { Bound::whole(3, &self.buffers.acts) } else { self.buffer(3, from.buf) };
        let act_stride = if int8 { spec.n_in / GROUP * (ACT_GROUP_BYTES / 16) } else { from.stride / 4 };
        let bias = Bound {
            number: 4,
            buffer: &self.buffers.vectors,
            offset: self.layout.biases.get(&matrix).copied().unwrap_or(0),
            size: None,
        };
        let mut planes = [0; 4];
        let offsets = spec.format.offsets(spec.n_in);
        for (plane, offset) in planes.iter_mut().zip(&offsets[1..]) {
            *plane = (*offset / 4) as u32;
        }
        let params = ProductParams {
            planes,
            row_words: (spec.row_bytes() / 4) as u32,
            groups: Format::groups(spec.n_in) as u32,
            act_stride: act_stride as u32,
            out_stride: to.stride as u32,
            flags: if spec.has_bias() { flags | BIAS } else { flags },
            cap,
            ..ProductParams::default()
        };
        let part = |(rows, weights): (&std::ops::Range<usize>, &wgpu::Buffer)| {
            let views = [0, 1, 2].map(|number| Bound::whole(number, weights));
            let rest = [acts, bias, self.buffer(5, to.buf)];
            let group = self.pipelines.bind(&pipelines[0], &[&views[..], &rest].concat());
            let params = ProductParams {
                n_rows: rows.len() as u32,
                column: (to.column + rows.start) as u32,
                bias_first: rows.start as u32,
                ..params
            };
            ProductPart { group, params }
        };
        let parts = spec.parts.iter().zip(&self.buffers.matrices[matrix]).map(part).collect();
        Ok(Op::Product(Box::new(Product { parts, pipelines, from_first_row: to.buf == Buf::Logits })))
    }

    fn product_pipelines(&mut self, spec: &MatrixSpec, int8: bool) -> Result<[Pipeline; 4]> {
        let operands = Operands { ty: spec.format.ty, int8 };
        let threads = self.tuning.matvec_threads(spec);
        let subgroups = self.tuning.subgroups;
        Ok([
            self.pipelines.get(Kernel::MatVec { operands, threads, cols: 1, subgroups })?,
            self.pipelines.get(Kernel::MatVec { operands, threads, cols: 4, subgroups })?,
            self.pipelines.get(Kernel::MatMat { operands, tokens: 16 })?,
            self.pipelines.get(Kernel::MatMat { operands, tokens: 64 })?,
        ])
    }

    /// Gate and up projection, then their product in F, also as int8 where that is what comes next.
    pub(super) fn glu(&mut self, state: &mut State<'_>, s: usize, act: Activation) -> Result<()> {
        let Step::Glu { gate, .. } = &state.steps[s] else { unreachable!("called for this step") };
        let n_ff = self.program.weight(gate.weight).n_out;
        let between = Rows { buf: Buf::GateUp, column: 0, stride: stride(self.program, Buf::GateUp) };
        self.products(state, s, Reg::H, between, 0, 0.0)?;
        let f = self.rows(Reg::F);
        let quantize = n_ff.is_multiple_of(GROUP) && self.read_as_int8(state, s, Reg::F);
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
        state.ops.push(Op::Glu { bind, params });
        state.quantized = if quantize { Some(Reg::F) } else { None };
        Ok(())
    }
}
