//! Sizes of a model, read from its metadata and checked once.

use tandem_loader::{Gguf, Metadata, Value};

use crate::error::{Error, Result};

/// Largest size accepted for any single dimension: far above every real model, far below overflow.
const MAX_DIM: usize = 1 << 24;

/// Sizes of a model. All are at least 1, but for the experts of a dense model.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// Number of layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the feed-forward hidden, by layer.
    pub n_ff: Vec<usize>,
    /// Experts of each feed-forward half that has some; 0 in a dense model.
    pub n_expert: usize,
    /// Experts that a token uses of them; 0 in a dense model.
    pub n_expert_used: usize,
    /// Width of an expert's hidden, where it is not `n_ff`.
    pub n_ff_expert: Option<usize>,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head (equal for queries, keys and values).
    pub head_dim: usize,
    /// Number of tokens in the vocabulary: the rows of the embedding table.
    pub n_vocab: usize,
    /// Context length the model was trained for.
    pub n_ctx_train: usize,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
}

/// Metadata of one architecture: keys are given without the `llama.` prefix.
pub(crate) struct Keys<'a> {
    arch: &'a str,
    pub(crate) meta: &'a Metadata,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(arch: &'a str, meta: &'a Metadata) -> Keys<'a> {
        Keys { arch, meta }
    }

    pub(crate) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        Ok(self.meta.str(&self.name(key))?)
    }

    pub(crate) fn f32(&self, key: &str) -> Result<Option<f32>> {
        match self.meta.f32(&self.name(key))? {
            Some(v) if !v.is_finite() => Err(self.bad(key, format!("{v} is not a finite number"))),
            v => Ok(v),
        }
    }

    /// A finite number above 0.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f32>> {
        match self.f32(key)? {
            Some(v) if v <= 0.0 => Err(self.bad(key, format!("{v} is not above 0"))),
            v => Ok(v),
        }
    }

    /// An error about a key.
    pub(crate) fn bad(&self, key: &str, message: impl Into<String>) -> Error {
        Error::Hparam { key: self.name(key), message: message.into() }
    }

    /// A size: an integer from 1 to [`MAX_DIM`].
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.meta.u64(&self.name(key))? {
            Some(v) if v == 0 || v > MAX_DIM as u64 => {
                Err(self.bad(key, format!("{v} is not between 1 and {MAX_DIM}")))
            }
            v => Ok(v.map(|v| v as usize)),
        }
    }

    /// As [`Keys::size`], but 0 means that there is none.
    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        if self.meta.u64(&self.name(key))? == Some(0) { Ok(None) } else { self.size(key) }
    }

    pub(crate) fn require_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| Metadata::missing(&self.name(key)).into())
    }

    /// A size that may be one number for all layers or an array with one per layer.
    pub(crate) fn size_per_layer(&self, key: &str, n_layer: usize) -> Result<Option<Vec<usize>>> {
        let name = self.name(key);
        if !matches!(self.meta.get(&name), Some(Value::Array(_))) {
            return Ok(self.size(key)?.map(|v| vec![v; n_layer]));
        }
        let values = self.meta.i32_array(&name)?.unwrap_or_default();
        if values.len() < n_layer {
            return Err(self.bad(key, format!("has {} values for {n_layer} layers", values.len())));
        }
        let check = |&v: &i32| match usize::try_from(v) {
            Ok(v) if (1..=MAX_DIM).contains(&v) => Ok(v),
            _ => Err(self.bad(key, format!("{v} is not between 1 and {MAX_DIM}"))),
        };
        values[..n_layer].iter().map(check).collect::<Result<Vec<_>>>().map(Some)
    }

    /// A size per layer that must be the same for all of them.
    fn uniform_size(&self, key: &str, n_layer: usize) -> Result<Option<usize>> {
        let Some(sizes) = self.size_per_layer(key, n_layer)? else { return Ok(None) };
        if sizes.iter().any(|s| *s != sizes[0]) {
            return Err(Error::Unsupported { what: format!("`{}` with different values per layer", self.name(key)) });
        }
        Ok(Some(sizes[0]))
    }
}

impl Hparams {
    /// Width of an expert's hidden where the file may leave it out: the experts of one token together are then as wide as
    /// the dense hidden.
    pub(crate) fn expert_width(&self, l: usize) -> usize {
        self.n_ff_expert.unwrap_or((self.n_ff[l] / self.n_expert_used.max(1)).max(1))
    }

    pub(crate) fn read(keys: &Keys<'_>, gguf: &Gguf) -> Result<Hparams> {
        let n_layer = keys.require_size("block_count")?;
        if n_layer > gguf.tensors().len() {
            return Err(keys.bad("block_count", format!("{n_layer} layers, but only {} tensors", gguf.tensors().len())));
        }
        let n_embd = keys.require_size("embedding_length")?;
        let missing = |key: &str| -> Error { Metadata::missing(&keys.name(key)).into() };
        let (n_expert, n_expert_used) = read_experts(keys)?;
        let n_ff_expert = keys.optional_size("expert_feed_forward_length")?;
        // Where all layers have experts, nothing need be as wide as this.
        let of_experts = n_ff_expert.filter(|_| n_expert > 0).map(|n_ff| vec![n_ff; n_layer]);
        let n_ff = keys.size_per_layer("feed_forward_length", n_layer)?.or(of_experts);
        let n_ff = n_ff.ok_or_else(|| missing("feed_forward_length"))?;
        let n_head = keys.uniform_size("attention.head_count", n_layer)?;
        let n_head = n_head.ok_or_else(|| missing("attention.head_count"))?;
        let n_head_kv = keys.uniform_size("attention.head_count_kv", n_layer)?.unwrap_or(n_head);
        if !n_head.is_multiple_of(n_head_kv) {
            return Err(keys.bad("attention.head_count_kv", format!("{n_head_kv} does not divide {n_head} heads")));
        }
        let head_dim = match keys.size("attention.key_length")? {
            Some(v) => v,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => return Err(keys.bad("attention.head_count", format!("{n_head} does not divide width {n_embd}"))),
        };
        let value_dim = keys.size("attention.value_length")?.unwrap_or(head_dim);
        if value_dim != head_dim {
            let what = format!("value heads of {value_dim} beside key heads of {head_dim} (`attention.value_length`)");
            return Err(Error::Unsupported { what });
        }
        if head_dim > 1024 {
            return Err(keys.bad("attention.key_length", format!("head size {head_dim} is above 1024")));
        }
        let rms_eps = keys.f32("attention.layer_norm_rms_epsilon")?;
        let rms_eps = rms_eps.ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))?;
        if rms_eps < 0.0 {
            return Err(keys.bad("attention.layer_norm_rms_epsilon", format!("{rms_eps} is negative")));
        }
        let table = gguf.tensor("token_embd.weight");
        let table = table.ok_or(Error::MissingTensor { tensor: "token_embd.weight".to_owned() })?;
        Ok(Hparams {
            n_layer,
            n_embd,
            n_ff,
            n_expert,
            n_expert_used,
            n_ff_expert,
            n_head,
            n_head_kv,
            head_dim,
            n_vocab: table.n_rows(),
            n_ctx_train: keys.size("context_length")?.unwrap_or(2048),
            rms_eps,
        })
    }
}

/// Numbers of experts and of those used. Dense models have no such keys, or zeros. Refuses routers of other kinds than
/// softmax.
fn read_experts(keys: &Keys<'_>) -> Result<(usize, usize)> {
    const COUNT: &str = "expert_count";
    const USED: &str = "expert_used_count";
    if keys.optional_size(COUNT)?.is_none() && keys.optional_size(USED)?.is_none() {
        return Ok((0, 0));
    }
    let (n_expert, n_used) = (keys.require_size(COUNT)?, keys.require_size(USED)?);
    if n_used > n_expert {
        return Err(keys.bad(USED, format!("{n_used} experts used of {n_expert} (`{}`)", keys.name(COUNT))));
    }
    // The format's number of softmax is 1; 0 and no key say nothing.
    let is_softmax = keys.meta.u64(&keys.name("expert_gating_func"))?.unwrap_or(0) <= 1;
    let is_scaled = keys.f32("expert_weights_scale")?.is_some_and(|scale| scale != 0.0 && scale != 1.0);
    let has_groups = keys.optional_size("expert_group_count")?.is_some_and(|n| n > 1);
    for (key, is_known) in
        [("expert_gating_func", is_softmax), ("expert_weights_scale", !is_scaled), ("expert_group_count", !has_groups)]
    {
        if !is_known {
            return Err(Error::Unsupported { what: format!("the value of `{}`", keys.name(key)) });
        }
    }
    Ok((n_expert, n_used))
}
