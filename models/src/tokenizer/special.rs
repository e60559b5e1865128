//! Tokens with a role: beginning, end of sequence, end of turn, and everything that ends generation.
//!
//! Files name some of them by id; others are known by their text only. The texts and the rules are those of llama.cpp
//! (`llama-vocab.cpp`), so that generation stops where it stops there.

use tandem_loader::{Metadata, Value};

use super::error::Result;
use super::vocab::{Attr, Vocab};

/// Texts that end a turn, by preference: the first one in the vocabulary is the end-of-turn token of a file that names
/// none.
const EOT_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

const EOM_TEXTS: &[&str] = &["<|eom_id|>"];

/// Further texts that end generation wherever they are tokens.
const EOG_TEXTS: &[&str] = &[
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];

/// Roles of fill-in-the-middle models: the key, the texts, and whether the token ends generation.
const FIM_ROLES: &[(&str, &[&str], bool)] = &[
    (
        "tokenizer.ggml.fim_pre_token_id",
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        false,
    ),
    (
        "tokenizer.ggml.fim_suf_token_id",
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        false,
    ),
    (
        "tokenizer.ggml.fim_mid_token_id",
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        false,
    ),
    ("tokenizer.ggml.fim_pad_token_id", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"], true),
    ("tokenizer.ggml.fim_rep_token_id", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"], true),
    ("tokenizer.ggml.fim_sep_token_id", &["<|file_sep|>"], true),
];

/// Texts of channel markup that a reader of the output needs, so they are never hidden.
const ALWAYS_SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Which tokens have which role.
#[derive(Debug, Default)]
pub(crate) struct Special {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) eot: Option<u32>,
    pub(crate) eom: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
    /// Tokens that end generation, ascending.
    pub(crate) eog: Vec<u32>,
}

impl Special {
    /// Reads the roles, and marks tokens known by their text in `vocab`. `defaults` are the ids of (bos, eos, unknown)
    /// for files that do not say.
    pub(crate) fn from_metadata(meta: &Metadata, vocab: &mut Vocab, defaults: [Option<u32>; 3]) -> Special {
        let n_vocab = vocab.len();
        let id = |key: &str, default: Option<u32>| token_id(meta, key, default, n_vocab);
        let mut special = Special {
            bos: id("tokenizer.ggml.bos_token_id", defaults[0]),
            eos: id("tokenizer.ggml.eos_token_id", defaults[1]),
            eot: id("tokenizer.ggml.eot_token_id", None),
            eom: id("tokenizer.ggml.eom_token_id", None),
            unknown: id("tokenizer.ggml.unknown_token_id", defaults[2]),
            padding: id("tokenizer.ggml.padding_token_id", None),
            eog: Vec::new(),
        };
        special.eot = special.eot.or_else(|| mark_first(vocab, EOT_TEXTS));
        special.eom = special.eom.or_else(|| mark_first(vocab, EOM_TEXTS));
        for &(key, texts, ends_generation) in FIM_ROLES {
            let found = id(key, None).or_else(|| mark_first(vocab, texts));
            special.eog.extend(found.filter(|_| ends_generation));
        }
        for text in [EOT_TEXTS, EOM_TEXTS, EOG_TEXTS].into_iter().flatten() {
            special.eog.extend(mark_first(vocab, &[text]));
        }
        for text in ALWAYS_SHOWN {
            if let Some(id) = vocab.id(text.as_bytes()) {
                vocab.set_attr(id, Attr::USER_DEFINED);
            }
        }
        special.eog.extend([special.eos, special.eot, special.eom].into_iter().flatten());
        special.except(vocab);
        special.eog.sort_unstable();
        special.eog.dedup();
        special
    }

    /// Two families use a text that ends generation elsewhere in the middle of an answer.
    fn except(&mut self, vocab: &mut Vocab) {
        let ends = |text: &str| vocab.id(text.as_bytes()).filter(|id| self.eog.contains(id));
        let harmony = ends("<|return|>").is_some() && ends("<|call|>").or(ends("<|calls|>")).is_some();
        let solar = ends("<|flush|>").is_some() && ends("<|call|>").or(ends("<|calls|>")).is_some();
        let not_end = ends("<|end|>").filter(|_| harmony || solar);
        let not_s = ends("</s>").filter(|_| ends("<|tool_response>").is_some());
        for (id, attr) in [(not_end, Attr::USER_DEFINED), (not_s, Attr::NORMAL)] {
            if let Some(id) = id {
                self.eog.retain(|&eog| eog != id);
                vocab.set_attr(id, attr);
            }
        }
    }
}

/// A token id from the metadata. Ids that do not exist are passed over, as files in circulation have them (for example
/// -1 for "none").
fn token_id(meta: &Metadata, key: &str, default: Option<u32>, n_vocab: usize) -> Option<u32> {
    let exists = |id: &u32| (*id as usize) < n_vocab;
    let id = meta.get(key).and_then(Value::as_integer).and_then(|id| u32::try_from(id).ok());
    id.filter(exists).or(default.filter(exists))
}

/// The first of `texts` that is a token, made a control token.
fn mark_first(vocab: &mut Vocab, texts: &[&str]) -> Option<u32> {
    let id = texts.iter().find_map(|text| vocab.id(text.as_bytes()))?;
    vocab.set_attr(id, vocab.attr(id).with(Attr::CONTROL));
    Some(id)
}

/// Marks the tokens that swallow white space beside them. Files do not say which do; it depends on the model.
pub(crate) fn mark_strip(meta: &Metadata, vocab: &mut Vocab) -> Result<()> {
    let name = meta.str("general.name")?.unwrap_or_default().to_lowercase();
    let pre = meta.str("tokenizer.ggml.pre")?.unwrap_or_default();
    if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|jina| pre.contains(jina)) {
        if let Some(id) = vocab.id(b"<mask>") {
            vocab.set_attr(id, vocab.attr(id).with(Attr::LSTRIP));
        }
    } else if name.contains("phi-3") || name.contains("phi3") {
        let special = Attr::CONTROL.with(Attr::USER_DEFINED).with(Attr::UNKNOWN);
        let ids: Vec<u32> = vocab.ids_with(special).chain(vocab.id(b"</s>")).collect();
        for id in ids {
            vocab.set_attr(id, vocab.attr(id).with(Attr::RSTRIP));
        }
        for text in ["<unk>", "<s>", "<|endoftext|>"] {
            if let Some(id) = vocab.id(text.as_bytes()) {
                vocab.set_attr(id, vocab.attr(id).without(Attr::RSTRIP));
            }
        }
    }
    Ok(())
}
