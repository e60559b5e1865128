//! Llama and the many models that share its layer: pre-norm, grouped-query attention with neighbour-paired RoPE, SwiGLU;
//! with experts, Mixtral.

use tandem_loader::Gguf;

use crate::builder::Builder;
use crate::error::Result;
use crate::hparams::Keys;
use crate::program::Activation;
use crate::rope::{Rope, RopePairing};

pub(super) fn build(b: &mut Builder<'_>, keys: &Keys<'_>, gguf: &Gguf) -> Result<()> {
    let rope = b.add_rope(Rope::read(RopePairing::Normal, keys, &b.hp, gguf)?);
    let scale = keys.f32("attention.scale")?.filter(|s| *s != 0.0);
    b.embed(1.0);
    for l in 0..b.hp.n_layer {
        b.attention(l, |b| {
            b.pre_norm("attn_norm");
            b.qkv();
            b.attend(rope, scale, None);
            b.add_attention_output();
        });
        match b.hp.n_expert {
            0 => b.gated_feed_forward(l, Activation::Silu),
            _ => b.routed_feed_forward(l, b.hp.n_ff[l], Activation::Silu),
        }
    }
    b.head(None);
    Ok(())
}
