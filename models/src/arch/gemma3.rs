//! Gemma 3 (text): scaled embeddings, norms before and after each half-layer, GeGLU, and layers that alternate between a
//! sliding window (with its own RoPE base) and the whole context. Norm weights in the file already include Gemma's `1 +`.

use tandem_loader::{Gguf, Value};

use crate::builder::Builder;
use crate::error::Result;
use crate::hparams::Keys;
use crate::program::{Activation, Reg};
use crate::rope::{Rope, RopePairing, n_rot};

/// Layers of the 27B model, the only one whose attention scale is not `1 / sqrt(head_dim)`.
const N_LAYER_27B: usize = 62;
/// Without a pattern in the file, every sixth layer sees the whole context.
const DEFAULT_PATTERN: usize = 6;

pub(super) fn build(b: &mut Builder<'_>, keys: &Keys<'_>, gguf: &Gguf) -> Result<()> {
    // As in llama.cpp: without a window (or with one of 0) all layers are as those that see the whole context.
    let window = match keys.meta.u64(&keys.name("attention.sliding_window"))? {
        None | Some(0) => None,
        Some(_) => keys.size("attention.sliding_window")?,
    };
    let windowed = if window.is_some() { windowed_layers(keys, b.hp.n_layer)? } else { vec![false; b.hp.n_layer] };
    let global = b.add_rope(Rope::read(RopePairing::NeoX, keys, &b.hp, gguf)?);
    let local_base = keys.positive("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let local = b.add_rope(Rope::plain(RopePairing::NeoX, n_rot(keys, &b.hp)?, f64::from(local_base)));
    let scale = (b.hp.n_layer == N_LAYER_27B).then(|| 1.0 / ((b.hp.n_embd / b.hp.n_head) as f32).sqrt());
    let soft_cap = keys.f32("final_logit_softcapping")?.filter(|cap| *cap > 0.0);

    b.embed((b.hp.n_embd as f32).sqrt());
    for l in 0..b.hp.n_layer {
        let (rope, window) = if windowed[l] { (local, window) } else { (global, None) };
        b.attention(l, |b| {
            b.pre_norm("attn_norm");
            b.qkv();
            b.head_norm();
            b.attend(rope, scale, window);
            b.attention_output(Reg::H, false);
            b.norm("post_attention_norm", Reg::H, Reg::X, true);
        });
        b.feed_forward(l, |b| {
            b.pre_norm("ffn_norm");
            b.glu(Activation::GeluTanh);
            b.ffn_down(Reg::H, false);
            b.norm("post_ffw_norm", Reg::H, Reg::X, true);
        });
    }
    b.head(soft_cap);
    Ok(())
}

/// Which layers have a sliding window: an array with one flag per layer, or a period whose last layer has none.
fn windowed_layers(keys: &Keys<'_>, n_layer: usize) -> Result<Vec<bool>> {
    let key = "attention.sliding_window_pattern";
    if let Some(Value::Array(_)) = keys.meta.get(&keys.name(key)) {
        let flags = keys.meta.i32_array(&keys.name(key))?.unwrap_or_default();
        if flags.len() < n_layer {
            return Err(keys.bad(key, format!("has {} values for {n_layer} layers", flags.len())));
        }
        return Ok(flags[..n_layer].iter().map(|f| *f != 0).collect());
    }
    let period = keys.size(key)?.unwrap_or(DEFAULT_PATTERN);
    Ok((0..n_layer).map(|l| l % period < period - 1).collect())
}
