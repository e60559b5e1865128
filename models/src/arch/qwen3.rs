//! Qwen 3, dense and with experts: Qwen 2 without biases and with an RMS norm on every query and key head.

use tandem_loader::Gguf;

use crate::builder::Builder;
use crate::error::Result;
use crate::hparams::Keys;
use crate::program::Activation;
use crate::rope::{Rope, RopePairing};

pub(super) fn build(b: &mut Builder<'_>, keys: &Keys<'_>, gguf: &Gguf) -> Result<()> {
    let rope = b.add_rope(Rope::read(RopePairing::NeoX, keys, &b.hp, gguf)?);
    b.embed(1.0);
    for l in 0..b.hp.n_layer {
        b.attention(l, |b| {
            b.pre_norm("attn_norm");
            b.qkv();
            b.head_norm();
            b.attend(rope, None, None);
            b.add_attention_output();
        });
        match b.hp.n_expert {
            0 => b.gated_feed_forward(l, Activation::Silu),
            _ => b.routed_feed_forward(l, b.hp.expert_width(l), Activation::Silu),
        }
    }
    b.head(None);
    Ok(())
}
