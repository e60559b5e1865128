//! The facts that `tandem info` shows beside metadata and tensors.

use std::collections::BTreeMap;

use serde::Serialize;
use tandem_engine::{DEFAULT_CTX, KvType, Precision};
use tandem_loader::{GgmlType, Gguf};
use tandem_models::template::ChatTemplate;
use tandem_models::tokenizer::Tokenizer;
use tandem_models::{Program, WeightRole};

use crate::args::ContextArgs;

/// Tensors of one type.
#[derive(Debug, Default, Serialize)]
pub(super) struct TypeRow {
    /// Type name.
    #[serde(rename = "type")]
    pub(super) ty: &'static str,
    /// Tensors.
    pub(super) n_tensors: usize,
    /// Their weights.
    pub(super) n_weights: u64,
    /// Their bytes in the file.
    pub(super) n_bytes: u64,
}

/// A special token.
#[derive(Debug, Serialize)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) text: String,
}

/// The tokenizer.
#[derive(Debug, Serialize)]
pub(super) struct TokenizerFacts {
    /// `tokenizer.ggml.model`.
    pub(super) kind: String,
    /// `tokenizer.ggml.pre`.
    pub(super) pre: Option<String>,
    pub(super) n_vocab: usize,
    pub(super) bos: Option<Token>,
    pub(super) eos: Option<Token>,
    /// Tokens that end generation.
    pub(super) end_of_generation: Vec<Token>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
}

/// A mixture of experts.
#[derive(Debug, Serialize)]
pub(super) struct Experts {
    /// Experts in a layer.
    pub(super) count: usize,
    /// Experts that a token uses of them.
    pub(super) used: usize,
    /// Layers that have experts.
    pub(super) layers: usize,
}

/// Memory for running the model.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    /// Positions of the KV cache.
    pub(super) n_ctx: usize,
    /// Element type of the KV cache.
    pub(super) kv_type: &'static str,
    /// Bytes of the weights that are multiplied, as in the file.
    pub(super) weights: u64,
    /// Bytes of the KV cache.
    pub(super) kv_cache: u64,
}

/// All of it.
pub(super) struct Report {
    pub(super) architecture: Option<String>,
    /// Why the model cannot be run, if so.
    pub(super) not_runnable: Option<String>,
    /// Weights of all tensors.
    pub(super) n_params: u64,
    pub(super) by_type: Vec<TypeRow>,
    /// The experts, where the model can be run and has some.
    pub(super) experts: Option<Experts>,
    /// The tokenizer, or why there is none.
    pub(super) tokenizer: Result<TokenizerFacts, String>,
    /// Names of the chat templates; the one without a name is `default`.
    pub(super) templates: Vec<String>,
    pub(super) memory: Option<Memory>,
}

impl Report {
    pub(super) fn new(gguf: &Gguf, program: &Result<Program, String>, context: &ContextArgs) -> Report {
        let metadata = gguf.metadata();
        Report {
            architecture: metadata.str("general.architecture").ok().flatten().map(str::to_owned),
            not_runnable: program.as_ref().err().cloned(),
            n_params: gguf.tensors().iter().map(|t| t.n_elements() as u64).sum(),
            by_type: by_type(gguf),
            experts: program.as_ref().ok().and_then(experts),
            tokenizer: tokenizer(gguf),
            templates: ChatTemplate::names(metadata),
            memory: program.as_ref().ok().map(|program| memory(gguf, program, context)),
        }
    }
}

/// Rows by type, most bytes first.
fn by_type(gguf: &Gguf) -> Vec<TypeRow> {
    let mut rows: BTreeMap<GgmlType, TypeRow> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let row = rows.entry(tensor.ty).or_insert_with(|| TypeRow { ty: tensor.ty.name(), ..TypeRow::default() });
        row.n_tensors += 1;
        row.n_weights += tensor.n_elements() as u64;
        row.n_bytes += tensor.n_bytes() as u64;
    }
    let mut rows: Vec<TypeRow> = rows.into_values().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.n_bytes));
    rows
}

fn experts(program: &Program) -> Option<Experts> {
    let layers = program.blocks.iter().filter(|block| block.has_experts()).count();
    let (count, used) = (program.hparams.n_expert, program.hparams.n_expert_used);
    (layers > 0).then_some(Experts { count, used, layers })
}

fn tokenizer(gguf: &Gguf) -> Result<TokenizerFacts, String> {
    let metadata = gguf.metadata();
    let tokenizer = Tokenizer::from_metadata(metadata).map_err(|error| error.to_string())?;
    let token = |id: u32| Token { id, text: String::from_utf8_lossy(tokenizer.token_text(id)).into_owned() };
    let text = |key| metadata.str(key).ok().flatten().map(str::to_owned);
    Ok(TokenizerFacts {
        kind: text("tokenizer.ggml.model").unwrap_or_default(),
        pre: text("tokenizer.ggml.pre"),
        n_vocab: tokenizer.n_vocab(),
        bos: tokenizer.bos().map(token),
        eos: tokenizer.eos().map(token),
        end_of_generation: tokenizer.eog().iter().map(|id| token(*id)).collect(),
        add_bos: tokenizer.add_bos(),
        add_eos: tokenizer.add_eos(),
    })
}

fn memory(gguf: &Gguf, program: &Program, context: &ContextArgs) -> Memory {
    let hparams = &program.hparams;
    let n_ctx = context.ctx.unwrap_or(hparams.n_ctx_train.min(DEFAULT_CTX));
    let kv_type = if Precision::from(context.precision) == Precision::Exact { KvType::F32 } else { context.kv_type };
    // Tables are read from the file, row by row.
    let held = program.weights.iter().filter(|weight| weight.role != WeightRole::Table);
    let weights = held.filter_map(|weight| gguf.tensor(&weight.tensor)).map(|tensor| tensor.n_bytes() as u64).sum();
    let per_position = (hparams.n_layer * kv_type.bytes(program.kv_elements_per_position())) as u64;
    Memory { n_ctx, kv_type: kv_type.name(), weights, kv_cache: per_position.saturating_mul(n_ctx as u64) }
}
