//! Operations: what the steps of a block became, each one dispatch or a few, with pipelines and buffers already bound.

use std::ops::Range;

use tandem_shaders::params::{
    AttendParams, BestParams, CombineParams, GluParams, GroupParams, HeadsParams, MergeParams, NormParams,
    ProductParams, QuantizeParams, RouteParams, SigmoidGateParams,
};
use tandem_shaders::{BestStep, GROUP, HeadShape, Kernel};

use super::kernels::Pipeline;
use super::layout::{MAX_SHARES, MIN_TILE};

/// Most workgroups in the first dimension of a dispatch; more go into the second.
const MAX_X: u32 = 32768;
/// Up to this many tokens a product goes through the matrix-vector kernel.
const MATVEC_TOKENS: usize = 8;
/// Up to this many through narrow tiles of the matrix-matrix kernel.
const NARROW_TOKENS: usize = 32;

/// Up to this many tokens, each goes to its experts by itself.
const ROUTED_TOKENS: usize = 4;

/// What changes from pass to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// For one token, for [`MATVEC_TOKENS`], for [`NARROW_TOKENS`], for more: that may be cooperative matrices.
    pub(super) pipelines: [Pipeline; 4],
    /// Results go to rows from 0 on, and not to those of the activations.
    pub(super) from_first_row: bool,
}

/// Finding the most likely tokens of one row of logits.
pub(super) struct Best {
    /// By [`BestStep`].
    pub(super) steps: Vec<Bind>,
    pub(super) n_vocab: usize,
}

impl Best {
    pub(super) fn record(&self, recorder: &mut wgpu::ComputePass<'_>, k: usize) {
        let n_vocab = self.n_vocab as u32;
        let n_slices = self.n_vocab.min(BestStep::MAX_SLICES) as u32;
        let params = BestParams { n_vocab, k: k as u32, n_slices };
        for (step, bind) in BestStep::ALL.into_iter().zip(&self.steps) {
            let threads = Kernel::Best(step).threads();
            let x = match step {
                BestStep::Slices => n_slices.div_ceil(threads),
                BestStep::Collect => n_vocab.div_ceil(threads),
                BestStep::Threshold | BestStep::Sort => 1,
            };
            bind.dispatch(recorder, &params, [x, 1, 1]);
        }
    }
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

/// How many experts there are, and how many of them a token uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Experts {
    pub(super) n_expert: usize,
    pub(super) n_used: usize,
}

/// How products of tokens with experts are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpertTiles {
    /// Pair by pair.
    None,
    /// In tiles of [`MIN_TILE`] pairs.
    Narrow,
    /// In tiles of 64 pairs.
    Wide,
}

impl Experts {
    fn tiles(self, n_tokens: usize) -> ExpertTiles {
        match n_tokens * self.n_used / self.n_expert {
            _ if n_tokens <= ROUTED_TOKENS => ExpertTiles::None,
            0..=MIN_TILE => ExpertTiles::Narrow,
            _ => ExpertTiles::Wide,
        }
    }
}

/// Choosing of experts, and sorting the choices.
pub(super) struct Route {
    pub(super) experts: Experts,
    pub(super) route: Bind,
    pub(super) params: RouteParams,
    pub(super) group: Bind,
}

/// A product with the experts that tokens have chosen.
pub(super) struct ExpertProduct {
    pub(super) experts: Experts,
    pub(super) parts: Vec<ProductPart>,
    /// By [`ExpertTiles`].
    pub(super) pipelines: [Pipeline; 3],
}

/// One operation. `per_token` is how many rows a token has.
pub(super) enum Op {
    Norm { bind: Bind, params: NormParams },
    Quantize { bind: Bind, params: QuantizeParams, per_token: u32 },
    Glu { bind: Bind, params: GluParams, per_token: u32 },
    Route(Box<Route>),
    Experts(Box<ExpertProduct>),
    Combine { bind: Bind, params: CombineParams },
    SigmoidGate { bind: Bind, params: SigmoidGateParams },
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
            Op::Quantize { bind, params, per_token } => {
                let quads = (GROUP as u32 / 4) * params.groups;
                let params = QuantizeParams { first: first * per_token, ..*params };
                bind.dispatch(recorder, &params, [quads.div_ceil(64), n * per_token, 1]);
            }
            Op::Glu { bind, params, per_token } => {
                let quads = (GROUP as u32 / 4) * params.n_ff.div_ceil(GROUP as u32);
                let params = GluParams { first: first * per_token, ..*params };
                bind.dispatch(recorder, &params, [quads.div_ceil(64), n * per_token, 1]);
            }
            Op::Route(route) => route.record(recorder, n),
            Op::Experts(product) => product.record(recorder, n),
            Op::Combine { bind, params } => bind.dispatch(recorder, params, [params.width.div_ceil(64), n, 1]),
            Op::SigmoidGate { bind, params } => bind.dispatch(recorder, params, [n, 1, 1]),
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

/// Records one dispatch.
pub(super) fn dispatch(
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

impl Route {
    fn record(&self, recorder: &mut wgpu::ComputePass<'_>, n: u32) {
        self.route.dispatch(recorder, &self.params, [n, 1, 1]);
        let tokens = match self.experts.tiles(n as usize) {
            ExpertTiles::None => return,
            ExpertTiles::Narrow => MIN_TILE as u32,
            ExpertTiles::Wide => 64,
        };
        self.group.dispatch(recorder, &GroupParams { n_pairs: n * self.experts.n_used as u32, tokens }, [1, 1, 1]);
    }
}

impl ExpertProduct {
    fn record(&self, recorder: &mut wgpu::ComputePass<'_>, n: u32) {
        let pairs = n * self.experts.n_used as u32;
        let tiles = self.experts.tiles(n as usize);
        for part in &self.parts {
            let params = ProductParams { n_tokens: pairs, ..part.params };
            // Workgroups beyond the last tile end at once; how many there are is known on the device.
            let tiles_of = |tokens: u32| pairs.min(pairs / tokens + self.experts.n_expert as u32);
            let size = match tiles {
                ExpertTiles::None => {
                    let fours = params.n_rows.div_ceil(4);
                    let x = fours.min(MAX_X);
                    [x, fours.div_ceil(x), pairs]
                }
                ExpertTiles::Narrow => [params.n_rows.div_ceil(64), tiles_of(MIN_TILE as u32), 1],
                ExpertTiles::Wide => [params.n_rows.div_ceil(64), tiles_of(64), 1],
            };
            dispatch(recorder, &self.pipelines[tiles as usize], &part.group, &params, size);
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
