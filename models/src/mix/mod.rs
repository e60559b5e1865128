//! Mixes: which type each tensor of a model gets when it is quantized as `Q4_K_M`, `IQ3_XS`, ...
//!
//! A mix has a base type, and rules that give tensors which matter more a better one. The mixes and their rules are
//! those that users of `llama-quantize` know (`src/llama-quant.cpp` of <https://github.com/ggml-org/llama.cpp>), so that
//! a name means the same thing in every program.

mod allowed;
mod rules;

use tandem_loader::{GgmlType, Gguf, TensorInfo, TypeClass};

use rules::{Model, Place};

/// A mix: what users name as the type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Name, as in `Q4_K_M`.
    pub name: &'static str,
    /// Its number in the metadata, `general.file_type`.
    pub file_type: u32,
    /// The type that tensors have where no rule gives another.
    pub base: GgmlType,
}

macro_rules! mixes {
    ($($name:ident = $file_type:literal, $base:ident;)*) => {
        /// All mixes, by bits per weight.
        pub const MIXES: &[Mix] =
            &[$(Mix { name: stringify!($name), file_type: $file_type, base: GgmlType::$base }),*];
    };
}

// name, general.file_type, base type
mixes! {
    Q1_0 = 40, Q1_0;
    IQ1_S = 24, IQ1_S;
    TQ1_0 = 36, TQ1_0;
    IQ1_M = 31, IQ1_M;
    IQ2_XXS = 19, IQ2_XXS;
    TQ2_0 = 37, TQ2_0;
    Q2_0 = 41, Q2_0;
    IQ2_XS = 20, IQ2_XS;
    IQ2_S = 28, IQ2_XS;
    IQ2_M = 29, IQ2_S;
    Q2_K_S = 21, Q2_K;
    Q2_K = 10, Q2_K;
    IQ3_XXS = 23, IQ3_XXS;
    IQ3_XS = 22, IQ3_S;
    IQ3_S = 26, IQ3_S;
    Q3_K_S = 11, Q3_K;
    IQ3_M = 27, IQ3_S;
    Q3_K_M = 12, Q3_K;
    Q3_K_L = 13, Q3_K;
    IQ4_XS = 30, IQ4_XS;
    MXFP4 = 38, MXFP4;
    MXFP4_MOE = 38, MXFP4;
    NVFP4 = 39, NVFP4;
    Q4_0 = 2, Q4_0;
    IQ4_NL = 25, IQ4_NL;
    Q4_K_S = 14, Q4_K;
    Q4_K_M = 15, Q4_K;
    Q4_1 = 3, Q4_1;
    Q5_0 = 8, Q5_0;
    Q5_K_S = 16, Q5_K;
    Q5_K_M = 17, Q5_K;
    Q5_1 = 9, Q5_1;
    Q6_K = 18, Q6_K;
    Q8_0 = 7, Q8_0;
    F16 = 1, F16;
    BF16 = 32, BF16;
    F32 = 0, F32;
}

/// Other names of mixes.
const ALIASES: &[(&str, &str)] = &[("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

impl Mix {
    /// The mix of this name, whatever the case.
    pub fn named(name: &str) -> Option<&'static Mix> {
        let alias = ALIASES.iter().find(|row| row.0.eq_ignore_ascii_case(name));
        let name = alias.map_or(name, |row| row.1);
        MIXES.iter().find(|mix| mix.name.eq_ignore_ascii_case(name))
    }
}

/// What a user asks for beyond the mix.
pub struct Wishes<'a> {
    /// No rules: the base type for all.
    pub pure: bool,
    /// Whether an importance matrix is there; some rules spend fewer bits then.
    pub imatrix: bool,
    /// The type of the output matrix (of the embedding, where it is used for both).
    pub output: Option<GgmlType>,
    /// The type of the token embedding.
    pub embedding: Option<GgmlType>,
    /// The type of single tensors by name; goes before the rules.
    pub by_name: &'a dyn Fn(&str) -> Option<GgmlType>,
}

/// What becomes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The type it gets.
    pub ty: GgmlType,
    /// The type it would have got, where its rows do not divide into that type's blocks.
    pub instead_of: Option<GgmlType>,
}

/// The types of all tensors of a file, in its order. Tensors that no mix touches (norms, biases, small ones) keep theirs.
///
/// # Errors
/// Metadata of the wrong type.
pub fn choose(gguf: &Gguf, mix: &Mix, wishes: &Wishes<'_>) -> crate::Result<Vec<Choice>> {
    let model = Model::new(gguf, wishes.imatrix)?;
    let tensors = gguf.tensors();
    let mut choices: Vec<Choice> = tensors.iter().map(|t| Choice { ty: t.ty, instead_of: None }).collect();
    // Rules count tensors of a kind by layer, whatever their order in the file.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|a, b| {
        let key = |i: usize| (rules::layer(&tensors[i].name), &tensors[i].name);
        key(*a).cmp(&key(*b))
    });
    let mut counts = rules::Counts::default();
    for i in order {
        let tensor = &tensors[i];
        if !allowed::is_quantized(tensor) {
            continue;
        }
        let place = model.place(&tensor.name, &mut counts);
        let wanted = wanted(tensor, mix, wishes, &model, &place);
        let ty = fitting(wanted, tensor.row_len());
        choices[i] = Choice { ty, instead_of: (ty != wanted).then_some(wanted) };
    }
    Ok(choices)
}

/// The type a tensor should have, before its shape is looked at.
fn wanted(tensor: &TensorInfo, mix: &Mix, wishes: &Wishes<'_>, model: &Model, place: &Place) -> GgmlType {
    if let Some(ty) = wishes.embedding.filter(|_| place.is_embedding()) {
        return ty;
    }
    if let Some(ty) = wishes.output.filter(|_| place.is_output() || model.tied && place.is_embedding()) {
        return ty;
    }
    if let Some(ty) = (wishes.by_name)(&tensor.name) {
        return ty;
    }
    if wishes.pure || mix.base.class() == TypeClass::Float {
        return mix.base;
    }
    rules::choose(mix, model, place, tensor)
}

/// The type, or the next better one whose blocks divide the rows.
pub fn fitting(ty: GgmlType, row_len: usize) -> GgmlType {
    use GgmlType::*;
    if row_len.is_multiple_of(ty.block_size()) {
        return ty;
    }
    let other = match ty {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS | NVFP4 => IQ4_NL,
        Q1_0 | Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        // Blocks of 32 already, or no blocks.
        F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL | MXFP4 => F16,
        // Nothing that a weight is quantized to.
        Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => F16,
    };
    if row_len.is_multiple_of(other.block_size()) { other } else { F16 }
}
