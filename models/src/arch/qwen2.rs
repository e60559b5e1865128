//! Qwen 2 and 2.5, dense and with experts: Llama's layer with half-paired RoPE and biases on Q, K and V (found in the file).

use tandem_loader::Gguf;

use crate::builder::Builder;
use crate::error::Result;
use crate::hparams::Keys;
use crate::program::Activation;
use crate::rope::{Rope, RopePairing};

pub(super) fn build(b: &mut Builder<'_>, keys: &Keys<'_>, gguf: &Gguf) -> Result<()> {
    let rope = b.add_rope(Rope::read(RopePairing::NeoX, keys, &b.hp, gguf)?);
    let n_ff_shared = keys.optional_size("expert_shared_feed_forward_length")?;
    b.embed(1.0);
    for l in 0..b.hp.n_layer {
        b.attention(l, |b| {
            b.pre_norm("attn_norm");
            b.qkv();
            b.attend(rope, None, None);
            b.add_attention_output();
        });
        match b.hp.n_expert {
            0 => b.gated_feed_forward(l, Activation::Silu),
            _ => b.feed_forward(l, |b| {
                b.pre_norm("ffn_norm");
                b.add_experts(b.hp.expert_width(l), Activation::Silu, false);
                b.add_gated_shared_expert(n_ff_shared.unwrap_or(b.hp.n_ff[l]), Activation::Silu);
            }),
        }
    }
    b.head(None);
    Ok(())
}
