//! The builder that architecture files call: each call emits a step, finds its tensors and checks their shapes.
//!
//! Calls do not return errors, so that an architecture reads like a forward pass; the first error is kept and returned
//! by [`Builder::finish`].

use std::collections::{HashMap, HashSet};

use tandem_loader::Gguf;

use crate::error::{Error, Result};
use crate::hparams::{Hparams, Keys};
use crate::program::*;
use crate::rope::Rope;

pub(crate) struct Builder<'a> {
    gguf: &'a Gguf,
    pub(crate) hp: Hparams,
    weights: Vec<Weight>,
    ids: HashMap<(String, bool), WeightId>,
    ropes: Vec<Rope>,
    blocks: Vec<Block>,
    one_scale_per_token: bool,
    /// Tensors that are scales of matrices.
    scales: Vec<String>,
    steps: Vec<Step>,
    block_weights: Vec<WeightId>,
    /// Prefix of tensor names in the current block: `blk.3.` or nothing.
    prefix: String,
    layer: usize,
    /// Width of the widest feed-forward hidden so far.
    width_f: usize,
    /// Number of experts, once there was a router.
    width_r: usize,
    error: Option<Error>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(gguf: &'a Gguf, keys: &Keys<'_>) -> Result<Builder<'a>> {
        Ok(Builder {
            gguf,
            hp: Hparams::read(keys, gguf)?,
            weights: Vec::new(),
            ids: HashMap::new(),
            ropes: Vec::new(),
            blocks: Vec::new(),
            one_scale_per_token: false,
            scales: Vec::new(),
            steps: Vec::new(),
            block_weights: Vec::new(),
            prefix: String::new(),
            layer: 0,
            width_f: 1,
            width_r: 0,
            error: None,
        })
    }

    // Blocks.

    /// Adds a rotary embedding for [`Builder::attend`] to name.
    pub(crate) fn add_rope(&mut self, rope: Rope) -> usize {
        self.ropes.push(rope);
        self.ropes.len() - 1
    }

    /// See [`Program::one_scale_per_token`].
    pub(crate) fn one_scale_per_token(&mut self) {
        self.one_scale_per_token = true;
    }

    /// The embedding block: `X = scale * token_embd[token]`.
    pub(crate) fn embed(&mut self, scale: f32) {
        let table = self.weight("token_embd.weight", WeightRole::Table, self.hp.n_embd, self.hp.n_vocab);
        self.steps.push(Step::Embed { table, scale });
        self.end_block(BlockKind::Embed);
    }

    /// The attention half of layer `l`.
    pub(crate) fn attention(&mut self, l: usize, body: impl FnOnce(&mut Self)) {
        self.layer_block(l, body, BlockKind::Attention(l));
    }

    /// The feed-forward half of layer `l`.
    pub(crate) fn feed_forward(&mut self, l: usize, body: impl FnOnce(&mut Self)) {
        self.layer_block(l, body, BlockKind::FeedForward(l));
    }

    /// The usual feed-forward half of layer `l`: `X += ffn_down (act(ffn_gate H) * ffn_up H)`, `H = rmsnorm(X)`.
    pub(crate) fn gated_feed_forward(&mut self, l: usize, act: Activation) {
        self.feed_forward(l, |b| {
            b.pre_norm("ffn_norm");
            b.glu(act);
            b.ffn_down(Reg::X, true);
        });
    }

    /// The feed-forward half of layer `l` as a mixture of experts of width `n_ff`: as [`Builder::gated_feed_forward`], the sum
    /// over the experts that the router chooses for each token, with weights that sum to 1.
    pub(crate) fn routed_feed_forward(&mut self, l: usize, n_ff: usize, act: Activation) {
        self.feed_forward(l, |b| {
            b.pre_norm("ffn_norm");
            b.add_experts(n_ff, act, true);
        });
    }

    /// The output head: final norm, then `output.weight` or, where the file ties it, the embedding.
    pub(crate) fn head(&mut self, soft_cap: Option<f32>) {
        self.norm("output_norm", Reg::X, Reg::H, false);
        let tied = self.gguf.tensor("output.weight").is_none();
        let linear = self.linear(if tied { "token_embd" } else { "output" }, self.hp.n_embd, self.hp.n_vocab);
        self.steps.push(Step::Logits { linear, soft_cap });
        self.end_block(BlockKind::Head);
    }

    // Steps. Tensor names are relative to the layer.

    /// `output = rmsnorm(input)`, or `output += rmsnorm(input)`.
    pub(crate) fn norm(&mut self, name: &str, input: Reg, output: Reg, add: bool) {
        let norm = self.vector(name, self.hp.n_embd);
        self.steps.push(Step::Norm { norm, input, output, add });
    }

    /// `H = rmsnorm(X)`: the start of a half-layer.
    pub(crate) fn pre_norm(&mut self, name: &str) {
        self.norm(name, Reg::X, Reg::H, false);
    }

    /// `reg = rmsnorm(reg)`, for A or F: the norm before an output projection.
    pub(crate) fn sub_norm(&mut self, name: &str, reg: Reg) {
        let width = if reg == Reg::F { self.hp.n_ff[self.layer] } else { self.n_q() };
        let norm = self.vector(name, width);
        self.steps.push(Step::Norm { norm, input: reg, output: reg, add: false });
    }

    /// `Q, K, V` from `H`.
    pub(crate) fn qkv(&mut self) {
        let (n_embd, n_q, n_kv) = (self.hp.n_embd, self.n_q(), self.n_kv());
        let q = self.linear("attn_q", n_embd, n_q);
        let k = self.linear("attn_k", n_embd, n_kv);
        let v = self.linear("attn_v", n_embd, n_kv);
        self.steps.push(Step::Qkv { q, k, v });
    }

    /// RMS norm of each query and key head.
    pub(crate) fn head_norm(&mut self) {
        let q = self.vector("attn_q_norm", self.hp.head_dim);
        let k = self.vector("attn_k_norm", self.hp.head_dim);
        self.steps.push(Step::HeadNorm { q, k });
    }

    /// Rotates Q and K, stores K and V, attends with the usual scale `1 / sqrt(head_dim)` unless another is given.
    pub(crate) fn attend(&mut self, rope: usize, scale: Option<f32>, window: Option<usize>) {
        let layer = self.layer;
        let scale = scale.unwrap_or(1.0 / (self.hp.head_dim as f32).sqrt());
        self.steps.push(Step::Rope { rope });
        self.steps.push(Step::StoreKv { layer });
        self.steps.push(Step::Attend { layer, scale, window });
    }

    /// `X += attn_output A`.
    pub(crate) fn add_attention_output(&mut self) {
        self.attention_output(Reg::X, true);
    }

    /// `output = attn_output A`, or `output += ...`.
    pub(crate) fn attention_output(&mut self, output: Reg, add: bool) {
        let linear = self.linear("attn_output", self.n_q(), self.hp.n_embd);
        self.steps.push(Step::Linear { linear, input: Reg::A, output, add });
    }

    /// `F = act(ffn_gate H) * ffn_up H`.
    pub(crate) fn glu(&mut self, act: Activation) {
        self.glu_of(["ffn_gate", "ffn_up"], self.hp.n_ff[self.layer], act);
    }

    fn glu_of(&mut self, [gate, up]: [&str; 2], n_ff: usize, act: Activation) {
        self.width_f = self.width_f.max(n_ff);
        let gate = self.linear(gate, self.hp.n_embd, n_ff);
        let up = self.linear(up, self.hp.n_embd, n_ff);
        self.steps.push(Step::Glu { gate, up, act });
    }

    /// `output = ffn_down F`, or `output += ...`.
    pub(crate) fn ffn_down(&mut self, output: Reg, add: bool) {
        self.down_of("ffn_down", self.hp.n_ff[self.layer], output, add);
    }

    fn down_of(&mut self, name: &str, n_ff: usize, output: Reg, add: bool) {
        let linear = self.linear(name, n_ff, self.hp.n_embd);
        self.steps.push(Step::Linear { linear, input: Reg::F, output, add });
    }

    /// `X += sum of w ffn_down_exps (act(ffn_gate_exps H) * ffn_up_exps H)` over the experts that the router chooses, `w` their
    /// weights, of which `normalize` makes the sum 1.
    pub(crate) fn add_experts(&mut self, n_ff: usize, act: Activation, normalize: bool) {
        let (n_embd, n_expert) = (self.hp.n_embd, self.hp.n_expert);
        let router = self.linear("ffn_gate_inp", n_embd, n_expert);
        let gate = self.experts("ffn_gate_exps", n_embd, n_ff);
        let up = self.experts("ffn_up_exps", n_embd, n_ff);
        let down = self.experts("ffn_down_exps", n_ff, n_embd);
        self.width_r = n_expert;
        self.width_f = self.width_f.max(n_ff * self.hp.n_expert_used);
        self.steps.push(Step::Route { router, normalize });
        self.steps.push(Step::ExpertGlu { gate, up, act });
        self.steps.push(Step::ExpertDown { down, output: Reg::X, add: true });
    }

    /// `X += s ffn_down_shexp (act(ffn_gate_shexp H) * ffn_up_shexp H)`, `s = sigmoid(ffn_gate_inp_shexp H)`: the expert that
    /// every token uses.
    pub(crate) fn add_gated_shared_expert(&mut self, n_ff: usize, act: Activation) {
        self.glu_of(["ffn_gate_shexp", "ffn_up_shexp"], n_ff, act);
        let weight = self.vector("ffn_gate_inp_shexp", self.hp.n_embd).weight;
        self.steps.push(Step::SigmoidGate { weight, n_ff });
        self.down_of("ffn_down_shexp", n_ff, Reg::X, true);
    }

    /// The finished program, or the first error met.
    pub(crate) fn finish(self, arch: &str) -> Result<Program> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let weights = self.weights.iter().map(|w| &w.tensor).chain(&self.scales).map(String::as_str);
        let used: HashSet<&str> = weights.chain(["rope_freqs.weight"]).collect();
        let unused = self.gguf.tensors().iter().map(|t| &t.name).filter(|name| !used.contains(name.as_str()));
        let unused: Vec<String> = unused.cloned().collect();
        if let Some(name) = unused.iter().find(|name| !is_beside(name, self.hp.n_layer)) {
            return Err(Error::Unsupported { what: format!("tensor `{name}` in a model of architecture `{arch}`") });
        }
        let registers = Registers {
            n_embd: self.hp.n_embd,
            n_q: self.hp.n_head * self.hp.head_dim,
            n_kv: self.hp.n_head_kv * self.hp.head_dim,
            n_ff: self.width_f,
            n_expert: self.width_r,
        };
        Ok(Program {
            arch: arch.to_owned(),
            unused,
            registers,
            hparams: self.hp,
            weights: self.weights,
            ropes: self.ropes,
            one_scale_per_token: self.one_scale_per_token,
            blocks: self.blocks,
        })
    }

    fn n_q(&self) -> usize {
        self.hp.n_head * self.hp.head_dim
    }

    fn n_kv(&self) -> usize {
        self.hp.n_head_kv * self.hp.head_dim
    }

    fn layer_block(&mut self, l: usize, body: impl FnOnce(&mut Self), kind: BlockKind) {
        self.prefix = format!("blk.{l}.");
        self.layer = l;
        body(self);
        self.prefix.clear();
        self.end_block(kind);
    }

    fn end_block(&mut self, kind: BlockKind) {
        let steps = std::mem::take(&mut self.steps);
        let weights = std::mem::take(&mut self.block_weights);
        self.blocks.push(Block { kind, steps, weights });
    }

    /// `NAME.weight` as a norm vector of `n` elements.
    fn vector(&mut self, name: &str, n: usize) -> Vector {
        let tensor = format!("{}{name}.weight", self.prefix);
        Vector { weight: self.weight(&tensor, WeightRole::Vector, n, 1), eps: self.hp.rms_eps }
    }

    /// `NAME.weight` and, where the file has them, `NAME.bias` and `NAME.scale`.
    fn linear(&mut self, name: &str, n_in: usize, n_out: usize) -> Linear {
        let tensor = format!("{}{name}.weight", self.prefix);
        let weight = self.weight(&tensor, WeightRole::Matrix, n_in, n_out);
        let bias = format!("{}{name}.bias", self.prefix);
        let bias = self.gguf.tensor(&bias).is_some().then(|| self.weight(&bias, WeightRole::Vector, n_out, 1));
        let scale = match self.scale(name) {
            Ok(scale) => scale,
            Err(error) => {
                self.error.get_or_insert(error);
                1.0
            }
        };
        Linear { weight, bias, scale }
    }

    /// `NAME.scale`, one number, or 1 where the file has none.
    fn scale(&mut self, name: &str) -> Result<f32> {
        let tensor = format!("{}{name}.scale", self.prefix);
        let Some(info) = self.gguf.tensor(&tensor) else { return Ok(1.0) };
        if !without_trailing_ones(info.dims()).is_empty() {
            let (found, expected) = (info.dims().to_vec(), vec![1]);
            return Err(Error::Shape { tensor, found, expected, offset: info.offset() });
        }
        let scale = self.gguf.dequantize(info)?[0];
        self.scales.push(tensor);
        Ok(scale)
    }

    /// `NAME.weight` as one matrix per expert.
    fn experts(&mut self, name: &str, n_in: usize, n_out: usize) -> WeightId {
        let tensor = format!("{}{name}.weight", self.prefix);
        let scale = format!("{}{name}.scale", self.prefix);
        if self.gguf.tensor(&scale).is_some() {
            self.error
                .get_or_insert(Error::Unsupported { what: format!("a scale for each expert (tensor `{scale}`)") });
        }
        self.weight(&tensor, WeightRole::Experts { n_expert: self.hp.n_expert }, n_in, n_out)
    }

    fn weight(&mut self, tensor: &str, role: WeightRole, n_in: usize, n_out: usize) -> WeightId {
        if let Err(error) = self.check(tensor, role, n_in, n_out) {
            self.error.get_or_insert(error);
        }
        let n = self.weights.len();
        let id = *self.ids.entry((tensor.to_owned(), role == WeightRole::Table)).or_insert(WeightId(n));
        if id.0 == n {
            self.weights.push(Weight { tensor: tensor.to_owned(), role, n_in, n_out });
        }
        if !self.block_weights.contains(&id) {
            self.block_weights.push(id);
        }
        id
    }

    fn check(&self, tensor: &str, role: WeightRole, n_in: usize, n_out: usize) -> Result<()> {
        let Some(info) = self.gguf.tensor(tensor) else {
            return Err(Error::MissingTensor { tensor: tensor.to_owned() });
        };
        let expected = match role {
            WeightRole::Vector => vec![n_in],
            WeightRole::Matrix | WeightRole::Table => vec![n_in, n_out],
            WeightRole::Experts { n_expert } => vec![n_in, n_out, n_expert],
        };
        if without_trailing_ones(info.dims()) == without_trailing_ones(&expected) {
            return Ok(());
        }
        Err(Error::Shape { tensor: tensor.to_owned(), found: info.dims().to_vec(), expected, offset: info.offset() })
    }
}

/// Sizes of 1 at the end carry no meaning, and some writers leave them out.
fn without_trailing_ones(dims: &[usize]) -> &[usize] {
    let n = dims.iter().rposition(|d| *d != 1).map_or(0, |last| last + 1);
    &dims[..n]
}

/// Whether a tensor says nothing about the text that a model of `n_layer` layers writes: layers that predict further ahead
/// come after them, and some files hold the parts that see and hear. Any other tensor that is not used would be missed in
/// what is computed.
fn is_beside(name: &str, n_layer: usize) -> bool {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    let is_further = layer.is_some_and(|l| l >= n_layer);
    let is_other_part = ["v.", "a.", "mm."].iter().any(|part| name.starts_with(part));
    // Angles, which follow from the metadata; the scale of inputs in training.
    let is_known = [".attn_rot_embd.weight", ".input_scale"].iter().any(|end| name.ends_with(end));
    is_further || is_other_part || is_known
}
