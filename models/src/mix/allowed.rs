//! Which tensors a mix may touch.

use tandem_loader::{TensorInfo, TypeClass};

/// Parts of the names of matrices that stay as they are: routers, small or sensitive ones.
const KEPT: &[&str] = &[
    "_norm.weight",
    // routers, and DeepSeek's table from tokens to experts
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    // Gemma 3n: matrices of 4 x 4, and one that is applied once per token
    "altup",
    "laurel",
    "per_layer_model_proj",
    // convolutions of recurrent layers
    "ssm_conv1d",
    "shortconv.conv.weight",
    // MiniMax's indexer
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    // RWKV's low-rank matrices
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    // T5's relative positions
    "attn_rel_b.weight",
    // vision and audio towers
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Whole names of matrices that stay as they are: learned positions and token types.
const KEPT_WHOLE: &[&str] = &["position_embd.weight", "token_types.weight"];

/// Whether a mix may change the tensor's type: matrices called `...weight`, without those named above.
pub(super) fn is_quantized(tensor: &TensorInfo) -> bool {
    // Sizes of 1 at the end are no dimensions.
    let n_dims = tensor.dims().iter().rposition(|dim| *dim != 1).map_or(1, |last| last + 1);
    let name = tensor.name.as_str();
    matches!(tensor.ty.class(), TypeClass::Float | TypeClass::Quantized)
        && n_dims >= 2
        && name.ends_with("weight")
        && !KEPT_WHOLE.contains(&name)
        && !KEPT.iter().any(|part| name.contains(part))
}
