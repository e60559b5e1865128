//! The rules of the mixes, by the tensor's place in the model.

use tandem_loader::{GgmlType, Gguf, TensorInfo, Value};

use super::Mix;
use GgmlType::*;

/// What the rules know of the model.
pub(super) struct Model {
    n_layer: usize,
    /// Tensors of attention values, fused ones included.
    n_attn_v: usize,
    n_expert: u64,
    /// Query heads for each key and value head.
    n_gqa: u64,
    is_falcon: bool,
    /// The llama of 80 layers with grouped heads: its value matrices are small and matter much.
    is_70b: bool,
    imatrix: bool,
    /// The embedding is the output matrix too.
    pub(super) tied: bool,
}

/// What a tensor is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Embedding,
    Output,
    AttnQ,
    AttnK,
    /// Values, or a fused matrix with values in it.
    AttnV,
    AttnOutput,
    FfnDown,
    FfnUpOrGate,
    Other,
}

/// A tensor's place: what it is for, and which of its kind.
pub(super) struct Place {
    kind: Kind,
    index: usize,
}

/// How many tensors of each counted kind have been seen.
#[derive(Default)]
pub(super) struct Counts {
    attn_v: usize,
    ffn_down: usize,
    ffn_gate: usize,
    ffn_up: usize,
}

impl Place {
    pub(super) fn is_output(&self) -> bool {
        self.kind == Kind::Output
    }

    pub(super) fn is_embedding(&self) -> bool {
        self.kind == Kind::Embedding
    }
}

/// The layer in a name, as in `blk.12.attn_q.weight`.
pub(super) fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

fn kind(name: &str) -> Kind {
    match name {
        "output.weight" => return Kind::Output,
        "token_embd.weight" | "per_layer_token_embd.weight" => return Kind::Embedding,
        _ => {}
    }
    let kinds = [
        ("attn_qkv.weight", Kind::AttnV),
        ("attn_kv_b.weight", Kind::AttnV),
        ("attn_v.weight", Kind::AttnV),
        ("attn_k.weight", Kind::AttnK),
        ("attn_q.weight", Kind::AttnQ),
        ("attn_output.weight", Kind::AttnOutput),
        ("ffn_up", Kind::FfnUpOrGate),
        ("ffn_gate", Kind::FfnUpOrGate),
        ("ffn_down", Kind::FfnDown),
    ];
    kinds.iter().find(|(part, _)| name.contains(part)).map_or(Kind::Other, |row| row.1)
}

impl Model {
    pub(super) fn new(gguf: &Gguf, imatrix: bool) -> crate::Result<Model> {
        let metadata = gguf.metadata();
        let arch = metadata.str("general.architecture")?.unwrap_or_default();
        // Head counts are one number, or one for each layer: the first layer's is what the rules go by.
        let number = |key: &str| match metadata.get(&format!("{arch}.{key}")) {
            Some(Value::Array(array)) => array.values().next().and_then(|v| v.as_integer()),
            value => value.and_then(Value::as_integer),
        };
        let number = |key: &str| number(key).and_then(|n| u64::try_from(n).ok());
        let n_layer = number("block_count").unwrap_or(0);
        let n_head = number("attention.head_count").unwrap_or(0);
        let n_head_kv = number("attention.head_count_kv").unwrap_or(n_head);
        Ok(Model {
            n_layer: n_layer as usize,
            n_attn_v: gguf.tensors().iter().filter(|t| kind(&t.name) == Kind::AttnV).count(),
            n_expert: number("expert_count").unwrap_or(0),
            n_gqa: n_head.checked_div(n_head_kv).unwrap_or(0),
            is_falcon: arch == "falcon",
            is_70b: arch == "llama" && n_layer == 80 && n_head != n_head_kv,
            imatrix,
            tied: gguf.tensor("output.weight").is_none(),
        })
    }

    /// The place of the next tensor; to be asked in order of layers.
    pub(super) fn place(&self, name: &str, counts: &mut Counts) -> Place {
        let kind = kind(name);
        let count = match kind {
            Kind::AttnV => &mut counts.attn_v,
            Kind::FfnDown => &mut counts.ffn_down,
            Kind::FfnUpOrGate if name.contains("ffn_up") => &mut counts.ffn_up,
            Kind::FfnUpOrGate => &mut counts.ffn_gate,
            Kind::Embedding | Kind::Output | Kind::AttnQ | Kind::AttnK | Kind::AttnOutput | Kind::Other => {
                return Place { kind, index: 0 };
            }
        };
        let seen = *count;
        *count += 1;
        // A layer of experts may have several such tensors: there the name says which layer it is.
        let by_name = self.n_expert > 1 && kind != Kind::AttnV;
        Place { kind, index: if by_name { layer(name).unwrap_or(seen) } else { seen } }
    }
}

/// The layers whose loss matters most: the first and last eighth, and every third between.
fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// Whether the mix is one of these.
fn is(mix: &Mix, names: &[&str]) -> bool {
    names.contains(&mix.name)
}

/// The mixes with less than 3 bits that use codebooks.
fn is_tiny(mix: &Mix) -> bool {
    is(mix, &["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"])
}

/// The type that a mix gives to a tensor.
pub(super) fn choose(mix: &Mix, model: &Model, place: &Place, tensor: &TensorInfo) -> GgmlType {
    let index = place.index;
    let output = place.kind == Kind::Output || model.tied && place.kind == Kind::Embedding;
    if output {
        return output_type(mix, model, tensor.row_len());
    }
    if mix.name == "MXFP4_MOE" {
        let experts = tensor.dims().get(2).is_some_and(|n| *n > 1);
        return if experts { MXFP4 } else { Q8_0 };
    }
    if place.kind == Kind::Embedding {
        return embedding_type(mix);
    }
    if is_tiny(mix) {
        return tiny_type(mix, model, place.kind, index);
    }
    match place.kind {
        Kind::AttnV => attn_v_type(mix, model, index),
        Kind::AttnK if model.n_expert == 8 => Q8_0,
        Kind::AttnK | Kind::AttnQ if mix.name == "IQ3_XS" => IQ3_XXS,
        Kind::AttnK | Kind::AttnQ if mix.name == "IQ3_XXS" => IQ2_S,
        Kind::FfnDown => ffn_down_type(mix, model, index),
        Kind::AttnOutput => attn_output_type(mix, model),
        Kind::FfnUpOrGate if mix.name == "IQ3_XS" => {
            let inner = index >= model.n_layer / 8 && index < 7 * model.n_layer / 8;
            if inner { IQ3_XXS } else { mix.base }
        }
        Kind::AttnK | Kind::AttnQ | Kind::FfnUpOrGate | Kind::Other | Kind::Embedding | Kind::Output => mix.base,
    }
}

fn output_type(mix: &Mix, model: &Model, row_len: usize) -> GgmlType {
    if mix.base == MXFP4 || model.is_falcon || !row_len.is_multiple_of(mix.base.block_size()) {
        return Q8_0;
    }
    match mix.name {
        "IQ1_S" | "IQ1_M" | "IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ2_M" | "IQ3_XXS" => Q5_K,
        "Q8_0" => Q8_0,
        _ => Q6_K,
    }
}

fn embedding_type(mix: &Mix) -> GgmlType {
    match mix.name {
        "IQ1_S" | "IQ1_M" | "IQ2_XXS" | "IQ2_XS" => Q2_K,
        "IQ2_S" | "IQ2_M" | "IQ3_XXS" => IQ3_S,
        "TQ1_0" | "TQ2_0" | "Q2_0" => Q4_K,
        _ => mix.base,
    }
}

fn tiny_type(mix: &Mix, model: &Model, kind: Kind, index: usize) -> GgmlType {
    let better = if is(mix, &["IQ2_S", "IQ2_M"]) { IQ3_S } else { Q2_K };
    match kind {
        Kind::AttnV if model.n_gqa >= 4 || model.n_expert >= 4 => Q4_K,
        Kind::AttnV => better,
        Kind::AttnK if model.n_expert == 8 => Q4_K,
        Kind::FfnDown if index < model.n_layer / 8 => better,
        Kind::AttnOutput if model.n_expert == 8 => Q5_K,
        Kind::AttnOutput if is(mix, &["IQ1_S", "IQ1_M"]) => IQ2_XXS,
        Kind::AttnOutput if is(mix, &["IQ2_S", "IQ2_M"]) => IQ3_S,
        _ => mix.base,
    }
}

fn attn_v_type(mix: &Mix, model: &Model, index: usize) -> GgmlType {
    let grouped = model.n_gqa >= 4;
    let ty = match mix.name {
        "Q2_K" if grouped => Q4_K,
        "Q2_K" => Q3_K,
        "Q2_K_S" if grouped => Q4_K,
        "IQ3_XXS" if grouped => Q4_K,
        "IQ3_XXS" if model.imatrix => IQ3_XXS,
        "IQ3_XXS" => IQ3_S,
        "IQ3_XS" | "IQ3_S" if grouped => Q4_K,
        "IQ3_M" => Q4_K,
        "Q3_K_M" if index < 2 => Q5_K,
        "Q3_K_M" => Q4_K,
        "Q3_K_L" => Q5_K,
        "IQ4_NL" | "IQ4_XS" if grouped => Q5_K,
        "Q4_K_M" | "Q5_K_M" if more_bits(index, model.n_attn_v) => Q6_K,
        "Q4_K_S" if index < 4 => Q5_K,
        _ => mix.base,
    };
    match ty {
        _ if model.n_expert == 8 => Q8_0,
        Q3_K | Q4_K if model.is_70b => Q5_K,
        ty => ty,
    }
}

fn ffn_down_type(mix: &Mix, model: &Model, index: usize) -> GgmlType {
    let n = model.n_layer;
    let (first_eighth, first_sixteenth, more) = (index < n / 8, index < n / 16, more_bits(index, n));
    match mix.name {
        "Q2_K" => Q3_K,
        "Q2_K_S" if first_eighth => Q4_K,
        "IQ3_XXS" if !model.imatrix => {
            if first_eighth {
                Q4_K
            } else {
                Q3_K
            }
        }
        "Q3_K_M" if first_sixteenth => Q5_K,
        "Q3_K_M" if !model.is_falcon || more => Q4_K,
        "IQ3_M" if first_eighth || model.n_expert == 8 && more => Q4_K,
        "Q3_K_L" => {
            if model.is_falcon {
                Q4_K
            } else {
                Q5_K
            }
        }
        "Q4_K_M" if model.is_falcon && first_sixteenth => Q6_K,
        "Q4_K_M" if model.is_falcon && more => Q5_K,
        "Q4_K_M" if !model.is_falcon && more => Q6_K,
        "IQ4_NL" | "IQ4_XS" if first_eighth && !model.imatrix => Q5_K,
        "Q5_K_M" if more => Q6_K,
        "Q4_K_S" if !model.is_falcon && first_eighth => Q5_K,
        // Without a matrix the minimum of the `_1` types does more harm than good here.
        "Q4_0" if model.imatrix && first_eighth => Q4_1,
        "Q5_0" if model.imatrix && first_eighth => Q5_1,
        _ => mix.base,
    }
}

fn attn_output_type(mix: &Mix, model: &Model) -> GgmlType {
    if model.is_falcon {
        return if mix.name == "Q3_K_L" { Q4_K } else { mix.base };
    }
    if model.n_expert == 8 {
        let small =
            ["Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS"];
        return if is(mix, &small) { Q5_K } else { mix.base };
    }
    match mix.name {
        "Q2_K" => Q3_K,
        "IQ3_XXS" => IQ3_S,
        "Q3_K_M" | "IQ3_M" => Q4_K,
        "Q3_K_L" => Q5_K,
        _ => mix.base,
    }
}
