//! BitNet b1.58: Llama's layer with half-paired RoPE and a norm before each output projection. Weights are ternary, and the
//! model was trained with activations rounded to int8, one scale per token (<https://arxiv.org/abs/2402.17764>).

use tandem_loader::Gguf;

use crate::builder::Builder;
use crate::error::Result;
use crate::hparams::Keys;
use crate::program::{Activation, Reg};
use crate::rope::{Rope, RopePairing};

pub(super) fn build(b: &mut Builder<'_>, keys: &Keys<'_>, gguf: &Gguf) -> Result<()> {
    let rope = b.add_rope(Rope::read(RopePairing::NeoX, keys, &b.hp, gguf)?);
    b.one_scale_per_token();
    b.embed(1.0);
    for l in 0..b.hp.n_layer {
        b.attention(l, |b| {
            b.pre_norm("attn_norm");
            b.qkv();
            b.attend(rope, None, None);
            b.sub_norm("attn_sub_norm", Reg::A);
            b.add_attention_output();
        });
        b.feed_forward(l, |b| {
            b.pre_norm("ffn_norm");
            b.glu(Activation::Silu);
            b.sub_norm("ffn_sub_norm", Reg::F);
            b.ffn_down(Reg::X, true);
        });
    }
    b.head(None);
    Ok(())
}
