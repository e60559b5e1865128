//! Qwen 2 and 2.5: Llama's layer with half-paired RoPE and biases on Q, K and V (found in the file).

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
            b.attend(rope, None, None);
            b.add_attention_output();
        });
        b.gated_feed_forward(l, Activation::Silu);
    }
    b.head(None);
    Ok(())
}
