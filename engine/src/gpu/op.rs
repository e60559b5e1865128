//! Operations: what the steps of a block became, each one dispatch or a few, with pipelines and buffers already bound.

use std::ops::Range;

use tandem_shaders::params::{
    AttendParams, GluParams, HeadsParams, MergeParams, NormParams, ProductParams, QuantizeParams,
};
use tandem_shaders::{GROUP, HeadShape};

use super::kernels::Pipeline;
use super::layout::MAX_SHARES;

/// Most workgroups in the first dimension of a dispatch; more go into the second.
const MAX_X: u32 = 32768;
/// Up to this many tokens a product goes through the matrix-vector kernel.
const MATVEC_TOKENS: usize = 8;
/// Up to this many through narrow tiles of the matrix-matrix kernel.
const NARROW_TOKENS: usize = 32;

/// What changes from pass to pass.
#[derive(Debug, Clone)]
pub(super) struct Pass {
    /// Position of the batch's first row.
    pub(super) start: usize,
    /// Rows of the buffers that are computed.
    pub(super) rows: Range<usize>,
    /// Most workgroups that share out the cache of a few queries.
    pub(super) shares: usize,
    /// Index of the first angle of each rotary embedding.
    pub(super) angles: Vec<u32>,
}

/// A pipeline and what is bound to it.
pub(super) struct Bind {
    pub(super) pipeline: Pipeline,
    pub(super) group: wgpu::BindGroup,
}

/// A product's part that fits into one binding.
pub(super) struct ProductPart {
    pub(super) group: wgpu::BindGroup,
    pub(super) params: ProductParams,
}

/// A matrix product.
pub(super) struct Product {
    pub(super) parts: Vec<ProductPart>,
    /// For one token, for [`MATVEC_TOKENS`], for [`NARROW_TOKENS`], for more.
    pub(super) pipelines: [Pipeline; 4],
    /// Results go to rows from 0 on, and not to those of the activations.
    pub(super) from_first_row: bool,
}

/// Attention of the KV heads whose cache is bound together.
pub(super) struct AttendPart {
    pub(super) direct: wgpu::BindGroup,
    pub(super) shared: wgpu::BindGroup,
    pub(super) heads: Range<usize>,
}

/// Attention of a layer.
pub(super) struct Attend {
    pub(super) shape: HeadShape,
    pub(super) parts: Vec<AttendPart>,
    /// Without and with shares: for one token, for more.
    pub(super) pipelines: [[Pipeline; 2]; 2],
    /// Queries of a workgroup: for one token, for more.
    pub(super) rows: [u32; 2],
    pub(super) merge: Bind,
    pub(super) params: AttendParams,
}

/// One operation.
pub(super) enum Op {
    Norm { bind: Bind, params: NormParams },
    Quantize { bind: Bind, params: QuantizeParams },
    Glu { bind: Bind, params: GluParams },
    Heads { bind: Bind, params: HeadsParams, rope: Option<usize> },
    Attend(Box<Attend>),
    Product(Box<Product>),
}

impl Op {
    /// Records the operation's dispatches.
    pub(super) fn record(&self, recorder: &mut wgpu::ComputePass<'_>, pass: &Pass) {
        let (first, n) = (pass.rows.start as u32, pass.rows.len() as u32);
        match self {
            Op::Norm { bind, params } => {
                bind.dispatch(recorder, &NormParams { first, ..*params }, [n, 1, 1]);
            }
            Op::Quantize { bind, params } => {
                let quads = (GROUP as u32 / 4) * params.groups;
                bind.dispatch(recorder, &QuantizeParams { first, ..*params }, [quads.div_ceil(64), n, 1]);
            }
            Op::Glu { bind, params } => {
                let quads = (GROUP as u32 / 4) * params.n_ff.div_ceil(GROUP as u32);
                bind.dispatch(recorder, &GluParams { first, ..*params }, [quads.div_ceil(64), n, 1]);
            }
            Op::Heads { bind, params, rope } => {
                let angle = rope.map_or(0, |r| pass.angles[r]);
                let heads = params.q_heads + 2 * params.kv_heads;
                let params = HeadsParams { start: pass.start as u32, angle, ..*params };
                bind.dispatch(recorder, &params, [n, heads, 1]);
            }
            Op::Attend(attend) => attend.record(recorder, pass),
            Op::Product(product) => product.record(recorder, pass),
        }
    }
}

impl Bind {
    fn dispatch(&self, recorder: &mut wgpu::ComputePass<'_>, params: &impl bytemuck::NoUninit, size: [u32; 3]) {
        dispatch(recorder, &self.pipeline, &self.group, params, size);
    }
}

fn dispatch(
    recorder: &mut wgpu::ComputePass<'_>,
    pipeline: &Pipeline,
    group: &wgpu::BindGroup,
    params: &impl bytemuck::NoUninit,
    [x, y, z]: [u32; 3],
) {
    recorder.set_pipeline(&pipeline.pipeline);
    recorder.set_bind_group(0, group, &[]);
    recorder.set_immediates(0, bytemuck::bytes_of(params));
    recorder.dispatch_workgroups(x, y, z);
}

impl Product {
    fn record(&self, recorder: &mut wgpu::ComputePass<'_>, pass: &Pass) {
        let n = pass.rows.len();
        let first = pass.rows.start as u32;
        let out_first = if self.from_first_row { 0 } else { first };
        let choice = match n {
            0..=1 => 0,
            _ if n <= MATVEC_TOKENS => 1,
            _ if n <= NARROW_TOKENS => 2,
            _ => 3,
        };
        for part in &self.parts {
            let params = ProductParams { first, n_tokens: n as u32, out_first, ..part.params };
            let size = match choice {
                0 | 1 => {
                    let tiles = params.n_rows.div_ceil(4);
                    let x = tiles.min(MAX_X);
                    [x, tiles.div_ceil(x), if choice == 0 { 1 } else { params.n_tokens.div_ceil(4) }]
                }
                2 => [params.n_rows.div_ceil(64), params.n_tokens.div_ceil(16), 1],
                _ => [params.n_rows.div_ceil(64), params.n_tokens.div_ceil(64), 1],
            };
            dispatch(recorder, &self.pipelines[choice], &part.group, &params, size);
        }
    }
}

impl Attend {
    fn record(&self, recorder: &mut wgpu::ComputePass<'_>, pass: &Pass) {
        let n = pass.rows.len();
        let choice = usize::from(n > 1);
        let queries = n as u32 * self.shape.group;
        let tiles = queries.div_ceil(self.rows[choice]);
        // The first token sees the earliest positions.
        let window = self.params.window as usize;
        let threads = self.shape.threads() as usize;
        let earliest = if window > 0 { (pass.start + 1).saturating_sub(window) } else { 0 };
        let origin = earliest / threads * threads;
        let span = (pass.start + n - origin).div_ceil(threads);
        // As few shares as keep the device busy, each a multiple of a workgroup's positions.
        let n_heads = self.parts.last().map_or(0, |p| p.heads.end);
        let wanted = pass.shares.min(MAX_SHARES) / (tiles as usize * n_heads).max(1);
        let per_share = span.div_ceil(wanted.clamp(1, span));
        let n_shares = span.div_ceil(per_share) as u32;
        let shared = n_shares > 1;
        let params = AttendParams {
            start: pass.start as u32,
            n_tokens: n as u32,
            origin: origin as u32,
            share: (per_share * threads) as u32,
            n_shares,
            ..self.params
        };
        for part in &self.parts {
            let params = AttendParams { kv_first: part.heads.start as u32, ..params };
            let group = if shared { &part.shared } else { &part.direct };
            let pipeline = &self.pipelines[usize::from(shared)][choice];
            dispatch(recorder, pipeline, group, &params, [tiles, part.heads.len() as u32, n_shares]);
        }
        if shared {
            let params = MergeParams { n_queries: queries, n_shares, a_stride: params.a_stride };
            self.merge.dispatch(recorder, &params, [queries, n_heads as u32, 1]);
        }
    }
}
