//! Tokenizers: text to token ids and back, from the `tokenizer.ggml.*` keys of a model file.
//!
//! | `tokenizer.ggml.model` | what it is |
//! |---|---|
//! | `gpt2` | byte-level BPE; `tokenizer.ggml.pre` names the pre-tokenizer, one row of a table |
//! | `llama` | SentencePiece-style BPE by score, with byte fallback |
//! | `gemma4` | BPE on raw UTF-8, with byte fallback |
//! | `rwkv` | longest match |
//!
//! Token ids equal those of llama.cpp, whose files these are, with three exceptions where it departs from the model's
//! own tokenizer or loses text: bytes that are not UTF-8 keep their byte tokens, decoding does not "clean up" spaces
//! before punctuation (so it gives back what was encoded), and the patterns that tell upper from lower case
//! (`gpt-4o`, `tekken` and their relatives) do so for all scripts, as in training, not only for ASCII.
//!
//! The `tokenizers` crate does the pre-tokenization (its `Split`). Its BPE model is not used, because building it takes
//! longer than loading may take; `bpe.rs` has the figures.
//!
//! ```no_run
//! use tandem_models::tokenizer::{EncodeOptions, Tokenizer};
//!
//! let gguf = tandem_loader::Gguf::open("model.gguf".as_ref())?;
//! let tokenizer = Tokenizer::from_metadata(gguf.metadata())?;
//! let ids = tokenizer.encode("Hello", EncodeOptions { add_special: true, parse_special: false });
//! assert_eq!(tokenizer.decode(&ids, false), b"Hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bpe;
mod byte_level;
mod error;
mod partition;
mod pre_table;
mod pretokenize;
mod rwkv;
mod special;
mod spm;
mod stream;
#[cfg(test)]
mod tests;
mod vocab;

use std::borrow::Cow;
use std::fmt;

use tandem_loader::Metadata;

use bpe::Bpe;
pub use error::{Result, TokenizerError};
use partition::{Fragment, Partitioner};
use pre_table::Pre;
use rwkv::Rwkv;
use special::Special;
use spm::Spm;
pub use stream::{TokenStream, Utf8Stream};
use vocab::{Attr, Vocab};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// How a text is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add the tokens that the model wants at the beginning and the end.
    pub add_special: bool,
    /// Take texts of control tokens, such as `<|im_end|>`, for those tokens. Leave it off for text from users.
    pub parse_special: bool,
}

/// A model's tokenizer.
pub struct Tokenizer {
    vocab: Vocab,
    special: Special,
    partitioner: Partitioner,
    model: Model,
    add_bos: bool,
    add_eos: bool,
}

enum Model {
    Bpe(Box<Bpe>),
    Spm { spm: Box<Spm>, space_prefix: bool },
    Rwkv(Rwkv),
}

/// The kinds of `tokenizer.ggml.model`.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Bpe,
    Gemma4,
    Spm,
    Rwkv,
}

/// The registry of kinds.
const KINDS: &[(&str, Kind)] =
    &[("gpt2", Kind::Bpe), ("llama", Kind::Spm), ("gemma4", Kind::Gemma4), ("rwkv", Kind::Rwkv)];

/// Values that say that there is no tokenizer; `test` is written by test programs that make random models.
const NO_TOKENIZER: &[&str] = &["none", "no_vocab", "test"];

impl Tokenizer {
    /// Reads the tokenizer of a model.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::NoTokenizer`] if the model has none on purpose; otherwise what is wrong or not supported, with
    /// the metadata key.
    pub fn from_metadata(meta: &Metadata) -> Result<Tokenizer> {
        let kind = kind(meta)?;
        let mut vocab = Vocab::from_metadata(meta)?;
        let defaults = match kind {
            Kind::Spm => [Some(1), Some(2), Some(0)],
            _ => [None; 3],
        };
        let special = Special::from_metadata(meta, &mut vocab, defaults);
        special::mark_strip(meta, &mut vocab)?;
        let (model, mut add_bos) = match kind {
            Kind::Bpe => bpe(meta, &vocab, pre(meta)?)?,
            Kind::Gemma4 => bpe(meta, &vocab, find_pre("gemma4")?)?,
            Kind::Spm => {
                let spm = Spm::from_metadata(meta, &vocab, special.unknown)?;
                let space_prefix = meta.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
                (Model::Spm { spm: Box::new(spm), space_prefix }, true)
            }
            Kind::Rwkv => (Model::Rwkv(Rwkv::new(special.unknown.or(Some(0)))), false),
        };
        // Gemma 4 files say false, and the model needs it all the same.
        if !matches!(&model, Model::Bpe(bpe) if bpe.always_bos()) {
            add_bos = meta.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        }
        let add_eos = meta.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let partitioner = Partitioner::new(&vocab);
        Ok(Tokenizer { vocab, special, partitioner, model, add_bos, add_eos })
    }

    /// The tokens of `text`, which need not be UTF-8.
    pub fn encode(&self, text: impl AsRef<[u8]>, options: EncodeOptions) -> Vec<u32> {
        let text = text.as_ref();
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special && self.add_bos {
            ids.extend(self.special.bos);
        }
        let mut after_special = true;
        for fragment in self.partitioner.cut(&self.vocab, text, options.parse_special) {
            after_special = match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    true
                }
                Fragment::Text(range) => {
                    self.encode_text(&text[range], after_special, &mut ids);
                    false
                }
            };
        }
        if options.add_special && self.add_eos {
            ids.extend(self.special.eos);
        }
        ids
    }

    fn encode_text(&self, text: &[u8], after_special: bool, ids: &mut Vec<u32>) {
        match &self.model {
            Model::Bpe(bpe) => bpe.encode(&self.vocab, text, ids),
            Model::Spm { spm, space_prefix } => spm.encode(&self.vocab, text, *space_prefix && after_special, ids),
            Model::Rwkv(rwkv) => rwkv.encode(&self.vocab, text, ids),
        }
    }

    /// The text of a whole sequence of tokens, as bytes (tokens may be parts of characters).
    ///
    /// With `special`, control tokens are written out; without, they are left out. The space that encoding puts in front
    /// of a text, for models that want one, is taken off again.
    pub fn decode(&self, ids: &[u32], special: bool) -> Vec<u8> {
        let mut text = Vec::with_capacity(ids.len() * 4);
        let mut prefix = matches!(self.model, Model::Spm { space_prefix: true, .. });
        for &id in ids {
            let hidden = self.is_special(id);
            if hidden && !special {
                continue;
            }
            let piece = self.piece(id);
            let strip = prefix && !hidden && piece.first() == Some(&b' ');
            text.extend_from_slice(&piece[usize::from(strip)..]);
            prefix &= hidden;
        }
        text
    }

    /// The bytes of one token, empty for ids that do not exist.
    pub fn piece(&self, id: u32) -> Cow<'_, [u8]> {
        let text = self.vocab.text(id);
        let attr = self.vocab.attr(id);
        if let Model::Rwkv(_) = self.model {
            return Cow::Owned(rwkv::unescape(text));
        }
        if attr.any(Attr::CONTROL.with(Attr::UNKNOWN).with(Attr::USER_DEFINED)) {
            Cow::Borrowed(text)
        } else if attr.any(Attr::NORMAL) {
            match &self.model {
                Model::Bpe(bpe) if !bpe.raw_utf8() => Cow::Owned(byte_level::decode(text)),
                _ => spm::unescape(text),
            }
        } else if attr.any(Attr::BYTE) {
            Cow::Owned(vocab::byte_value(text).into_iter().collect())
        } else {
            Cow::Borrowed(&[])
        }
    }

    /// A stream that turns tokens into text as they come. With `special`, control tokens are written out.
    pub fn stream(&self, special: bool) -> TokenStream<'_> {
        TokenStream::new(self, special)
    }

    /// Number of tokens; ids are below it.
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }

    /// Whether there is a token with this id.
    pub fn is_valid(&self, id: u32) -> bool {
        (id as usize) < self.n_vocab()
    }

    /// The token whose text in the file is exactly `text`, such as `<|im_end|>`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text.as_bytes())
    }

    /// The text of a token as the file has it (escaped), empty for ids that do not exist.
    pub fn token_text(&self, id: u32) -> &[u8] {
        self.vocab.text(id)
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// End of turn.
    pub fn eot(&self) -> Option<u32> {
        self.special.eot
    }

    /// End of message (a tool call follows).
    pub fn eom(&self) -> Option<u32> {
        self.special.eom
    }

    /// Stands for text that has no token.
    pub fn unknown(&self) -> Option<u32> {
        self.special.unknown
    }

    /// Fills up batches.
    pub fn padding(&self) -> Option<u32> {
        self.special.padding
    }

    /// Whether `add_special` puts [`Tokenizer::bos`] in front.
    pub fn add_bos(&self) -> bool {
        self.add_bos && self.special.bos.is_some()
    }

    /// Whether `add_special` puts [`Tokenizer::eos`] at the end.
    pub fn add_eos(&self) -> bool {
        self.add_eos && self.special.eos.is_some()
    }

    /// Whether generation ends with this token.
    pub fn is_eog(&self, id: u32) -> bool {
        self.special.eog.binary_search(&id).is_ok()
    }

    /// The tokens that end generation, ascending.
    pub fn eog(&self) -> &[u32] {
        &self.special.eog
    }

    /// Whether a token is markup rather than text (control or unknown), hidden unless asked for.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.attr(id).any(Attr::CONTROL.with(Attr::UNKNOWN))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("n_vocab", &self.n_vocab()).field("special", &self.special).finish()
    }
}

fn kind(meta: &Metadata) -> Result<Kind> {
    let Some(model) = meta.str(MODEL)? else {
        return Err(TokenizerError::NoTokenizer { reason: format!("metadata key `{MODEL}` is missing") });
    };
    if NO_TOKENIZER.contains(&model) {
        return Err(TokenizerError::NoTokenizer { reason: format!("metadata key `{MODEL}` is `{model}`") });
    }
    KINDS.iter().find(|(name, _)| *name == model).map(|&(_, kind)| kind).ok_or_else(|| TokenizerError::Unsupported {
        key: MODEL,
        value: model.to_owned(),
        supported: KINDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })
}

fn bpe(meta: &Metadata, vocab: &Vocab, pre: &'static Pre) -> Result<(Model, bool)> {
    Ok((Model::Bpe(Box::new(Bpe::from_metadata(meta, vocab, pre)?)), pre.add_bos))
}

/// The row of `tokenizer.ggml.pre`. Files from before that key was invented do not have it.
fn pre(meta: &Metadata) -> Result<&'static Pre> {
    find_pre(meta.str(PRE)?.unwrap_or("default"))
}

fn find_pre(name: &str) -> Result<&'static Pre> {
    pre_table::find(name).ok_or_else(|| TokenizerError::Unsupported {
        key: PRE,
        value: name.to_owned(),
        supported: pre_table::names(),
    })
}
