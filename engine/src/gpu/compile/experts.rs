//! Mixtures of experts: routing, products with the experts that tokens have chosen, and shared experts.

use tandem_models::{Activation, Reg, WeightId};
use tandem_shaders::params::{CombineParams, ProductParams, RouteParams, SigmoidGateParams};
use tandem_shaders::{Acts, Kernel, Operands};

use super::super::kernels::Bound;
use super::super::layout::{Buf, Rows, pair_rows, stride};
use super::super::op::{ExpertProduct, Experts, Op, ProductPart, Route};
use super::{Compiler, State};
use crate::error::Result;

impl Compiler<'_> {
    fn experts(&self) -> Experts {
        let hp = &self.program.hparams;
        Experts { n_expert: hp.n_expert, n_used: hp.n_expert_used }
    }

    /// Logits of the router into R, then the choice.
    pub(super) fn route(&mut self, state: &mut State<'_>, s: usize, normalize: bool) -> Result<()> {
        let experts = self.experts();
        self.products(state, s, Reg::H, self.rows(Reg::R), 0, 0.0)?;
        let n_expert = experts.n_expert as u32;
        let bound = [self.buffer(0, Buf::R), Bound::whole(1, &self.buffers.chosen)];
        let route = self.bind(Kernel::Route { n_expert }, &bound)?;
        let lists = [&self.buffers.chosen, &self.buffers.order, &self.buffers.tiles];
        let bound: Vec<Bound<'_>> = (0..).zip(lists).map(|(number, list)| Bound::whole(number, list)).collect();
        let group = self.bind(Kernel::Group { n_expert }, &bound)?;
        let params = RouteParams { n_used: experts.n_used as u32, normalize: u32::from(normalize) };
        state.ops.push(Op::Route(Box::new(Route { experts, route, params, group })));
        Ok(())
    }

    /// Gate and up projections of each pair of token and expert, then their product in F.
    pub(super) fn expert_glu(
        &mut self,
        state: &mut State<'_>,
        s: usize,
        gate: WeightId,
        act: Activation,
    ) -> Result<()> {
        let n_ff = self.program.weight(gate).n_out;
        let between = pair_rows(self.program, Buf::GateUp, 2 * n_ff);
        self.expert_products(state, s, Reg::H, self.rows(Reg::H), between)?;
        self.gated(state, s, between, pair_rows(self.program, Buf::F, n_ff), n_ff, act)
    }

    /// Down projections of each pair, then their weighted sum.
    pub(super) fn expert_down(
        &mut self,
        state: &mut State<'_>,
        s: usize,
        down: WeightId,
        output: Reg,
        add: bool,
    ) -> Result<()> {
        let f = pair_rows(self.program, Buf::F, self.program.weight(down).n_in);
        let n_embd = self.program.weight(down).n_out;
        let made = pair_rows(self.program, Buf::Made, n_embd);
        self.expert_products(state, s, Reg::F, f, made)?;
        let to = self.rows(output);
        let bound = [Bound::whole(0, &self.buffers.chosen), self.buffer(1, made.buf), self.buffer(2, to.buf)];
        let bind = self.bind(Kernel::Combine, &bound)?;
        let params = CombineParams {
            n_used: self.experts().n_used as u32,
            width: n_embd as u32,
            in_stride: made.stride as u32,
            out_stride: to.stride as u32,
            out_column: to.column as u32,
            add: u32::from(add),
        };
        state.ops.push(Op::Combine { bind, params });
        state.written(&[output]);
        Ok(())
    }

    /// The products of step `s`, one for each pair of token and expert.
    fn expert_products(&mut self, state: &mut State<'_>, s: usize, input: Reg, from: Rows, to: Rows) -> Result<()> {
        self.quantize(state, s, input, from)?;
        for product in self.layout.products[&(state.block, s)].clone() {
            let to = Rows { column: to.column + product.first, ..to };
            let acts = self.acts_of(state, s, product.matrix);
            let wide = self.wide_kernel(state, s, product.matrix);
            let op = self.expert_product(product.matrix, acts, from, to, wide)?;
            state.ops.push(op);
        }
        Ok(())
    }

    fn expert_product(
        &mut self,
        matrix: usize,
        acts: Acts,
        from: Rows,
        to: Rows,
        (wide, flags): (Kernel, u32),
    ) -> Result<Op> {
        let spec = &self.layout.matrices[matrix];
        let experts = self.experts();
        let operands = Operands { ty: spec.format.ty, acts };
        let (threads, subgroups) = (self.tuning.matvec_threads(spec), self.tuning.subgroups);
        let pipelines = [
            self.pipelines.get(Kernel::MatVec { operands, threads, cols: 1, subgroups, experts: true })?,
            self.pipelines.get(Kernel::MatMat { operands, wide: false, experts: true })?,
            self.pipelines.get(wide)?,
        ];
        let params = ProductParams {
            n_rows: spec.n_out as u32,
            column: to.column as u32,
            flags,
            pairs_per_row: (experts.n_used / from.per_token) as u32,
            ..self.product_params(spec, from, to, acts)
        };
        let part = |(rows, weights): (&std::ops::Range<usize>, &wgpu::Buffer)| {
            let mut bound = [0, 1, 2].map(|number| Bound::whole(number, weights)).to_vec();
            let lists = [&self.buffers.chosen, &self.buffers.order, &self.buffers.tiles];
            bound.extend([self.acts(3, from, acts), self.buffer(5, to.buf)]);
            bound.extend((6..).zip(lists).map(|(number, list)| Bound::whole(number, list)));
            let params = ProductParams {
                first_expert: (rows.start / spec.n_out) as u32,
                n_experts: (rows.len() / spec.n_out) as u32,
                ..params
            };
            ProductPart { group: self.pipelines.bind(&pipelines[0], &bound), params }
        };
        let parts = spec.parts.iter().zip(&self.buffers.matrices[matrix]).map(part).collect();
        Ok(Op::Experts(Box::new(ExpertProduct { experts, parts, pipelines })))
    }

    pub(super) fn sigmoid_gate(&mut self, state: &mut State<'_>, weight: WeightId, n_ff: usize) -> Result<()> {
        let bound = [self.buffer(0, Buf::H), self.vector(1, weight), self.buffer(2, Buf::F)];
        let bind = self.bind(Kernel::SigmoidGate, &bound)?;
        let params = SigmoidGateParams {
            width: self.program.registers.n_embd as u32,
            in_stride: stride(self.program, Buf::H) as u32,
            n_ff: n_ff as u32,
            out_stride: stride(self.program, Buf::F) as u32,
        };
        state.ops.push(Op::SigmoidGate { bind, params });
        state.written(&[Reg::F]);
        Ok(())
    }
}
