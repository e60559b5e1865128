//! Small programs with weights of zeros, made to be timed: see [`super::measure`].
//!
//! They are ordinary programs over an ordinary file in memory, so that any backend runs them as it runs a model.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tandem_loader::{GgmlType, Gguf};
use tandem_models::{
    Activation, Block, BlockKind, Hparams, Linear, Program, Reg, Registers, Rope, RopePairing, Step, Vector, Weight,
    WeightId, WeightRole,
};

use super::speed::{HeadShape, Shape, is_product};
use crate::error::Result;

/// Tensors begin at multiples of this in the file.
const ALIGNMENT: usize = 32;
/// Vectors of a file are f32.
const EPS: f32 = 1e-5;

/// A program and its file.
pub(super) struct Probe {
    pub(super) gguf: Arc<Gguf>,
    pub(super) program: Arc<Program>,
}

/// Width of the residual stream of [`Probe::layers`]: so small that reading weights costs nothing.
const SMALL: usize = 64;
/// Elements of a head.
const HEAD_DIM: usize = 64;
/// Query heads per KV head, as models have them.
const GROUP: usize = 4;

impl Probe {
    /// `n` layers that share their few small weights: what is left is the cost of the steps, and of attention, for each
    /// layer has its own cache. Before them are `n` blocks that only fill the cache, and a block without steps: see
    /// [`Probe::fill`], [`Probe::nothing`] and [`Probe::first_layers`].
    pub(super) fn layers(n: usize) -> Result<Probe> {
        let registers = Registers { n_embd: SMALL, n_q: GROUP * HEAD_DIM, n_kv: HEAD_DIM, n_ff: SMALL, n_expert: 0 };
        let mut b = Builder::default();
        let norm = b.vector("norm", SMALL);
        let [k, v, gate, up, down] =
            ["k", "v", "gate", "up", "down"].map(|name| b.matrix(name, GgmlType::F16, SMALL, SMALL));
        let q = b.matrix("q", GgmlType::F16, SMALL, registers.n_q);
        let out = b.matrix("out", GgmlType::F16, registers.n_q, SMALL);
        for layer in 0..n {
            b.block(BlockKind::Attention(layer), vec![], vec![Step::StoreKv { layer }]);
        }
        b.block(BlockKind::FeedForward(0), vec![], vec![]);
        for layer in 0..n {
            b.attention(layer, norm, [q, k, v, out]);
            b.feed_forward(layer, norm, [gate, up, down]);
        }
        b.finish(n, registers)
    }

    /// A small model of F16 weights, for tests of the planner.
    #[cfg(test)]
    pub(super) fn model(n_layer: usize) -> Result<Probe> {
        let registers = Registers { n_embd: SMALL, n_q: GROUP * HEAD_DIM, n_kv: HEAD_DIM, n_ff: SMALL, n_expert: 0 };
        let mut b = Builder::default();
        let table = b.tensor("table", WeightRole::Table, GgmlType::F16, &[SMALL, 1]);
        b.block(BlockKind::Embed, vec![table], vec![Step::Embed { table, scale: 1.0 }]);
        for layer in 0..n_layer {
            let norm = b.vector(&format!("norm.{layer}"), SMALL);
            let mut matrix = |name: &str| b.matrix(&format!("{name}.{layer}"), GgmlType::F16, SMALL, SMALL);
            let [k, v, gate, up, down] = ["k", "v", "gate", "up", "down"].map(&mut matrix);
            let q = b.matrix(&format!("q.{layer}"), GgmlType::F16, SMALL, registers.n_q);
            let out = b.matrix(&format!("out.{layer}"), GgmlType::F16, registers.n_q, SMALL);
            b.attention(layer, norm, [q, k, v, out]);
            b.feed_forward(layer, norm, [gate, up, down]);
        }
        let head = b.matrix("head", GgmlType::F16, SMALL, 1);
        b.block(BlockKind::Head, vec![head.weight], vec![Step::Logits { linear: head, soft_cap: None }]);
        b.finish(n_layer, registers)
    }

    /// The blocks of [`Probe::layers`] that only fill the caches.
    pub(super) fn fill(&self) -> Range<usize> {
        0..self.program.hparams.n_layer
    }

    /// Its block without steps.
    pub(super) fn nothing(&self) -> Range<usize> {
        let n = self.program.hparams.n_layer;
        n..n + 1
    }

    /// Its first `n` layers.
    pub(super) fn first_layers(&self, n: usize) -> Range<usize> {
        let first = self.program.hparams.n_layer + 1;
        first..first + 2 * n
    }

    /// Steps of some blocks.
    pub(super) fn n_steps(&self, blocks: Range<usize>) -> usize {
        self.program.blocks[blocks].iter().map(|b| b.steps.len()).sum()
    }

    /// Blocks whose matrices are of one type and hold about `bytes` in all, for reading from end to end.
    pub(super) fn weights(ty: GgmlType, (n_embd, n_ff): Shape, bytes: usize) -> Result<Probe> {
        let block = 3 * n_embd * n_ff / ty.block_size() * ty.block_bytes();
        let n = bytes.div_ceil(block).max(1);
        let mut b = Builder::default();
        let norm = b.vector("norm", n_embd);
        b.feed_forwards(n, norm, ty, (n_embd, n_ff));
        b.finish(n, Registers { n_embd, n_q: n_embd, n_kv: n_embd, n_ff, n_expert: 0 })
    }

    /// An output head. Its bias makes all logits different, so that there are best ones. Before it are blocks with as many
    /// matrices as make it about `bytes` in all: see [`Probe::before_head`].
    pub(super) fn head(ty: GgmlType, (n_embd, n_vocab): HeadShape, bytes: usize) -> Result<Probe> {
        let mut b = Builder::default();
        let norm = b.vector("norm", n_embd);
        let (n_ff, row_bytes) = (4 * n_embd, n_embd / ty.block_size() * ty.block_bytes());
        let n = bytes.saturating_sub(n_vocab * row_bytes) / (3 * n_ff * row_bytes);
        b.feed_forwards(n, norm, ty, (n_embd, n_ff));
        let bias = b.ramp("bias", n_vocab);
        let head = Linear { bias: Some(bias), ..b.matrix("head", ty, n_embd, n_vocab) };
        let steps = vec![
            Step::Norm { norm, input: Reg::X, output: Reg::H, add: false },
            Step::Logits { linear: head, soft_cap: None },
        ];
        b.block(BlockKind::Head, vec![norm.weight, head.weight, bias], steps);
        let mut probe = b.finish(n, Registers { n_embd, n_q: n_embd, n_kv: n_embd, n_ff, n_expert: 0 })?;
        let mut program = Arc::unwrap_or_clone(probe.program);
        program.hparams.n_vocab = n_vocab;
        probe.program = Arc::new(program);
        Ok(probe)
    }

    /// The blocks of [`Probe::head`] before the head, and the head.
    pub(super) fn before_head(&self) -> (Range<usize>, Range<usize>) {
        let last = self.program.blocks.len() - 1;
        (0..last, last..last + 1)
    }

    /// Steps that multiply with matrices.
    pub(super) fn n_products(&self) -> usize {
        self.program.blocks.iter().flat_map(|b| &b.steps).filter(|step| is_product(step)).count()
    }

    /// Bytes of all matrices in the file.
    pub(super) fn matrix_bytes(&self) -> usize {
        let matrices = self.program.weights.iter().filter(|w| w.role == WeightRole::Matrix);
        matrices.filter_map(|w| self.gguf.tensor(&w.tensor)).map(|t| t.n_bytes()).sum()
    }
}

/// A program and its file as they grow.
#[derive(Default)]
struct Builder {
    weights: Vec<Weight>,
    blocks: Vec<Block>,
    /// The file's tensor directory.
    directory: Vec<u8>,
    /// Bytes of data so far; all of them are zero, but for those of `ramp`.
    data: usize,
    /// Where a vector with the elements 0, 1, 2... is in the data, and how long it is.
    ramp: Option<(usize, usize)>,
}

impl Builder {
    fn vector(&mut self, name: &str, n: usize) -> Vector {
        Vector { weight: self.tensor(name, WeightRole::Vector, GgmlType::F32, &[n]), eps: EPS }
    }

    fn ramp(&mut self, name: &str, n: usize) -> WeightId {
        self.ramp = Some((self.data, n));
        self.tensor(name, WeightRole::Vector, GgmlType::F32, &[n])
    }

    fn matrix(&mut self, name: &str, ty: GgmlType, n_in: usize, n_out: usize) -> Linear {
        Linear { weight: self.tensor(name, WeightRole::Matrix, ty, &[n_in, n_out]), bias: None, scale: 1.0 }
    }

    /// Adds a tensor to the directory: name, dimensions, type, offset (the format's page, under "tensor infos").
    fn tensor(&mut self, name: &str, role: WeightRole, ty: GgmlType, dims: &[usize]) -> WeightId {
        self.directory.extend((name.len() as u64).to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.directory.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.directory.extend((*dim as u64).to_le_bytes()));
        self.directory.extend(ty.id().to_le_bytes());
        self.directory.extend((self.data as u64).to_le_bytes());
        let n_bytes = dims.iter().product::<usize>() / ty.block_size() * ty.block_bytes();
        self.data += n_bytes.next_multiple_of(ALIGNMENT);
        let (n_in, n_out) = (dims[0], dims.get(1).copied().unwrap_or(1));
        self.weights.push(Weight { tensor: name.to_owned(), role, n_in, n_out });
        WeightId(self.weights.len() - 1)
    }

    fn attention(&mut self, layer: usize, norm: Vector, [q, k, v, out]: [Linear; 4]) {
        let steps = vec![
            Step::Norm { norm, input: Reg::X, output: Reg::H, add: false },
            Step::Qkv { q, k, v },
            Step::Rope { rope: 0 },
            Step::StoreKv { layer },
            Step::Attend { layer, scale: 0.125, window: None },
            Step::Linear { linear: out, input: Reg::A, output: Reg::X, add: true },
        ];
        let weights = vec![norm.weight, q.weight, k.weight, v.weight, out.weight];
        self.block(BlockKind::Attention(layer), weights, steps);
    }

    fn feed_forward(&mut self, layer: usize, norm: Vector, [gate, up, down]: [Linear; 3]) {
        let steps = vec![
            Step::Norm { norm, input: Reg::X, output: Reg::H, add: false },
            Step::Glu { gate, up, act: Activation::Silu },
            Step::Linear { linear: down, input: Reg::F, output: Reg::X, add: true },
        ];
        let weights = vec![norm.weight, gate.weight, up.weight, down.weight];
        self.block(BlockKind::FeedForward(layer), weights, steps);
    }

    /// `n` blocks with matrices of their own.
    fn feed_forwards(&mut self, n: usize, norm: Vector, ty: GgmlType, (n_embd, n_ff): Shape) {
        for layer in 0..n {
            let gate = self.matrix(&format!("gate.{layer}"), ty, n_embd, n_ff);
            let up = self.matrix(&format!("up.{layer}"), ty, n_embd, n_ff);
            let down = self.matrix(&format!("down.{layer}"), ty, n_ff, n_embd);
            self.feed_forward(layer, norm, [gate, up, down]);
        }
    }

    /// Adds a block whose steps use these weights.
    fn block(&mut self, kind: BlockKind, weights: Vec<WeightId>, steps: Vec<Step>) {
        self.blocks.push(Block { kind, steps, weights });
    }

    fn finish(self, n_layer: usize, registers: Registers) -> Result<Probe> {
        let counts = [self.weights.len() as u64, 0].map(u64::to_le_bytes).concat();
        let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &self.directory].concat();
        // One allocation of zeros, which the system gives page by page.
        let data = head.len().next_multiple_of(ALIGNMENT);
        let mut file = vec![0; data + self.data];
        file[..head.len()].copy_from_slice(&head);
        if let Some((at, n)) = self.ramp {
            let elements = file[data + at..].as_chunks_mut::<4>().0.iter_mut().take(n);
            elements.enumerate().for_each(|(i, element)| *element = (i as f32).to_le_bytes());
        }
        let gguf = Gguf::from_bytes(Path::new("(a self-measurement)"), file)?;
        let program = Program {
            arch: "(a self-measurement)".to_owned(),
            hparams: Hparams {
                n_layer,
                n_embd: registers.n_embd,
                n_ff: vec![registers.n_ff; n_layer],
                n_expert: 0,
                n_expert_used: 0,
                n_ff_expert: None,
                n_head: registers.n_q / HEAD_DIM,
                n_head_kv: registers.n_kv / HEAD_DIM,
                head_dim: HEAD_DIM,
                n_vocab: 1,
                n_ctx_train: usize::MAX,
                rms_eps: EPS,
            },
            registers,
            weights: self.weights,
            ropes: vec![Rope { pairing: RopePairing::NeoX, freqs: vec![0.01; HEAD_DIM / 2], magnitude: 1.0 }],
            one_scale_per_token: false,
            blocks: self.blocks,
            unused: Vec::new(),
        };
        Ok(Probe { gguf: Arc::new(gguf), program: Arc::new(program) })
    }
}
