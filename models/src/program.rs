//! The block program: a whole model as data.

use tandem_loader::Gguf;

use crate::arch;
use crate::error::Result;
use crate::hparams::Hparams;
use crate::rope::Rope;

/// Index into [`Program::weights`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightId(pub usize);

/// What a weight is used for, which decides how a backend stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightRole {
    /// A matrix that is multiplied with activations, `[n_out, n_in]`.
    Matrix,
    /// A table whose rows are looked up by token, `[n_vocab, n_embd]`.
    Table,
    /// One matrix per expert in one tensor, `[n_expert, n_out, n_in]`.
    Experts {
        /// How many.
        n_expert: usize,
    },
    /// A vector (norm weight or bias), `[n]`.
    Vector,
}

/// A tensor of the file that the program uses. A tied embedding appears twice: as table and as matrix.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Name in the file.
    pub tensor: String,
    /// Use.
    pub role: WeightRole,
    /// Row length.
    pub n_in: usize,
    /// Number of rows (1 for vectors), of each expert where there are some.
    pub n_out: usize,
}

impl Weight {
    /// Number of weights.
    pub fn n_elements(&self) -> usize {
        match self.role {
            WeightRole::Experts { n_expert } => self.n_in * self.n_out * n_expert,
            WeightRole::Matrix | WeightRole::Table | WeightRole::Vector => self.n_in * self.n_out,
        }
    }
}

/// A vector weight with its use in a normalization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vector {
    /// The weight, `[n]`.
    pub weight: WeightId,
    /// Added to the mean square before the root.
    pub eps: f32,
}

/// `y = s W x + b`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// `W`, `[n_out, n_in]`.
    pub weight: WeightId,
    /// `b`, `[n_out]`.
    pub bias: Option<WeightId>,
    /// `s`: 1 unless the file has a scale for the whole matrix.
    pub scale: f32,
}

/// A register: one row of f32 per token of the batch. [`Registers`] gives the widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reg {
    /// The residual stream, `[n_tokens, n_embd]`: the only register that lives across blocks.
    X,
    /// Normalized or intermediate input, `[n_tokens, n_embd]`.
    H,
    /// Queries, `[n_tokens, n_head * head_dim]`.
    Q,
    /// Keys, `[n_tokens, n_head_kv * head_dim]`.
    K,
    /// Values, `[n_tokens, n_head_kv * head_dim]`.
    V,
    /// Attention output, `[n_tokens, n_head * head_dim]`.
    A,
    /// Feed-forward hidden, `[n_tokens, n_ff]`; of experts `[n_tokens, n_expert_used, n_ff]`, those a token has chosen in
    /// ascending order.
    F,
    /// Routing, `[n_tokens, n_expert]`: the weight of each expert a token has chosen, 0 for the others.
    R,
}

/// Widths of the registers, in floats per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Width of [`Reg::X`] and [`Reg::H`].
    pub n_embd: usize,
    /// Width of [`Reg::Q`] and [`Reg::A`].
    pub n_q: usize,
    /// Width of [`Reg::K`] and [`Reg::V`].
    pub n_kv: usize,
    /// Width of [`Reg::F`]: the largest of all layers.
    pub n_ff: usize,
    /// Width of [`Reg::R`]: 0 without experts.
    pub n_expert: usize,
}

impl Registers {
    /// Floats per token of a register.
    pub fn width(&self, reg: Reg) -> usize {
        match reg {
            Reg::X | Reg::H => self.n_embd,
            Reg::Q | Reg::A => self.n_q,
            Reg::K | Reg::V => self.n_kv,
            Reg::F => self.n_ff,
            Reg::R => self.n_expert,
        }
    }
}

/// The nonlinearity of a gated linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))` (SwiGLU).
    Silu,
    /// The tanh approximation of GELU (GeGLU): `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// One fused step. Every backend handles every step; there is no default.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// `X = scale * table[token]`.
    Embed {
        /// The embedding table.
        table: WeightId,
        /// Factor (gemma: `sqrt(n_embd)`).
        scale: f32,
    },
    /// `output = input / rms(input) * weight`, or added to it when `add`.
    Norm {
        /// Norm weight and epsilon.
        norm: Vector,
        /// Read from.
        input: Reg,
        /// Written to.
        output: Reg,
        /// Add to `output` instead of replacing it.
        add: bool,
    },
    /// `Q, K, V = Wq H, Wk H, Wv H`.
    Qkv {
        /// Query projection.
        q: Linear,
        /// Key projection.
        k: Linear,
        /// Value projection.
        v: Linear,
    },
    /// RMS norm of every head of Q and of K, by itself; weights are `[head_dim]`.
    HeadNorm {
        /// Norm of the queries.
        q: Vector,
        /// Norm of the keys.
        k: Vector,
    },
    /// Rotary position embedding of Q and K.
    Rope {
        /// Index into [`Program::ropes`].
        rope: usize,
    },
    /// Appends K and V to the layer's cache.
    StoreKv {
        /// The layer.
        layer: usize,
    },
    /// `A = softmax(scale Q K^T) V` over the layer's cache, causal.
    Attend {
        /// The layer.
        layer: usize,
        /// Factor of the scores.
        scale: f32,
        /// A token sees itself and the `window - 1` before it; all of them without.
        window: Option<usize>,
    },
    /// `output = W input + b`, or added to it when `add`.
    Linear {
        /// The projection.
        linear: Linear,
        /// Read from.
        input: Reg,
        /// Written to.
        output: Reg,
        /// Add to `output` instead of replacing it.
        add: bool,
    },
    /// `F = act(Wgate H) * (Wup H)`.
    Glu {
        /// Gate projection.
        gate: Linear,
        /// Up projection.
        up: Linear,
        /// Nonlinearity of the gate.
        act: Activation,
    },
    /// `R = softmax(W H + b)` for the `n_expert_used` experts with the largest logits (of equal ones the first), 0 for the
    /// others.
    Route {
        /// The router, `[n_expert, n_embd]`.
        router: Linear,
        /// Scale each token's weights so that they sum to 1.
        normalize: bool,
    },
    /// `F = act(Wgate H) * (Wup H)` for each expert chosen in R.
    ExpertGlu {
        /// Gate projections.
        gate: WeightId,
        /// Up projections.
        up: WeightId,
        /// Nonlinearity of the gate.
        act: Activation,
    },
    /// `output = sum of R Wdown F` over the experts chosen in R, or added to it when `add`.
    ExpertDown {
        /// Down projections.
        down: WeightId,
        /// Written to.
        output: Reg,
        /// Add to `output` instead of replacing it.
        add: bool,
    },
    /// `F = sigmoid(w . H) F`: how much of a shared expert each token takes.
    SigmoidGate {
        /// `w`, `[n_embd]`.
        weight: WeightId,
        /// Width of F.
        n_ff: usize,
    },
    /// `logits = W H`, with `cap tanh(logits / cap)` where a soft cap is given, for the rows asked for.
    Logits {
        /// The output head.
        linear: Linear,
        /// Soft cap.
        soft_cap: Option<f32>,
    },
}

impl Step {
    /// The weights that it reads.
    pub fn weights(&self) -> Vec<WeightId> {
        let linear = |linear: &Linear| std::iter::once(linear.weight).chain(linear.bias);
        match self {
            Step::Embed { table, .. } => vec![*table],
            Step::Norm { norm, .. } => vec![norm.weight],
            Step::Qkv { q, k, v } => [q, k, v].into_iter().flat_map(linear).collect(),
            Step::HeadNorm { q, k } => vec![q.weight, k.weight],
            Step::Rope { .. } | Step::StoreKv { .. } | Step::Attend { .. } => vec![],
            Step::Linear { linear: l, .. } | Step::Route { router: l, .. } | Step::Logits { linear: l, .. } => {
                linear(l).collect()
            }
            Step::Glu { gate, up, .. } => [gate, up].into_iter().flat_map(linear).collect(),
            Step::ExpertGlu { gate, up, .. } => vec![*gate, *up],
            Step::ExpertDown { down, .. } => vec![*down],
            Step::SigmoidGate { weight, .. } => vec![*weight],
        }
    }
}

/// What part of the model a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Tokens in, X out.
    Embed,
    /// The attention half of a layer.
    Attention(usize),
    /// The feed-forward half of a layer.
    FeedForward(usize),
    /// X in, logits out.
    Head,
}

impl std::fmt::Display for BlockKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BlockKind::Embed => f.write_str("embed"),
            BlockKind::Attention(l) => write!(f, "attn.{l}"),
            BlockKind::FeedForward(l) => write!(f, "ffn.{l}"),
            BlockKind::Head => f.write_str("output"),
        }
    }
}

/// The unit of placement: residual stream in, residual stream out.
#[derive(Debug, Clone)]
pub struct Block {
    /// What it is.
    pub kind: BlockKind,
    /// What it does, in order.
    pub steps: Vec<Step>,
    /// The weights its steps use.
    pub weights: Vec<WeightId>,
}

impl Block {
    /// Whether it chooses among experts: of its weights, a token then reads only a part.
    pub fn has_experts(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Route { .. }))
    }
}

/// A whole model as data: the single source of required tensors, shape checks, bytes per block and scratch sizes.
#[derive(Debug, Clone)]
pub struct Program {
    /// The architecture's name in the file, for people.
    pub arch: String,
    /// Sizes.
    pub hparams: Hparams,
    /// Register widths.
    pub registers: Registers,
    /// All weights.
    pub weights: Vec<Weight>,
    /// Rotary embeddings, each used by some of the layers.
    pub ropes: Vec<Rope>,
    /// Whether the model was trained with activations rounded to int8 by one scale per token (and not per 32), which a
    /// backend that rounds them may follow. The output head is not included.
    pub one_scale_per_token: bool,
    /// Embedding, then the two halves of each layer, then the output head.
    pub blocks: Vec<Block>,
    /// Tensors of the file that the program does not use, and that would change nothing.
    pub unused: Vec<String>,
}

impl Program {
    /// Builds the program of a file.
    ///
    /// # Errors
    /// Unknown architecture, missing or impossible metadata, missing tensors, wrong shapes.
    pub fn from_gguf(gguf: &Gguf) -> Result<Program> {
        arch::build(gguf)
    }

    /// A weight's description.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0]
    }

    /// Number of weights of all tensors used, each counted once.
    pub fn n_params(&self) -> usize {
        let mut seen = std::collections::HashSet::new();
        self.weights.iter().filter(|w| seen.insert(&w.tensor)).map(Weight::n_elements).sum()
    }

    /// Elements of K and V together that one position takes in one layer's cache.
    pub fn kv_elements_per_position(&self) -> usize {
        2 * self.registers.n_kv
    }
}
