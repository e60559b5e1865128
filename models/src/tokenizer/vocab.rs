//! The token table: texts in one arena, attributes, and lookup by text.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use tandem_loader::{ArrayValue, Metadata};

use super::error::{Result, TokenizerError};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

/// What a token is. A set, because well-known control texts are marked so beside what the file says of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attr(u8);

impl Attr {
    pub(crate) const NORMAL: Attr = Attr(1);
    pub(crate) const UNKNOWN: Attr = Attr(1 << 1);
    pub(crate) const CONTROL: Attr = Attr(1 << 2);
    pub(crate) const USER_DEFINED: Attr = Attr(1 << 3);
    pub(crate) const BYTE: Attr = Attr(1 << 4);
    /// White space before the token belongs to it.
    pub(crate) const LSTRIP: Attr = Attr(1 << 5);
    /// White space after the token belongs to it.
    pub(crate) const RSTRIP: Attr = Attr(1 << 6);

    /// From the ids of `tokenizer.ggml.token_type`; 5 (unused) and anything else have no attribute and no text.
    fn from_id(id: i32) -> Attr {
        match id {
            1 => Attr::NORMAL,
            2 => Attr::UNKNOWN,
            3 => Attr::CONTROL,
            4 => Attr::USER_DEFINED,
            6 => Attr::BYTE,
            _ => Attr::default(),
        }
    }

    pub(crate) const fn with(self, other: Attr) -> Attr {
        Attr(self.0 | other.0)
    }

    pub(crate) const fn without(self, other: Attr) -> Attr {
        Attr(self.0 & !other.0)
    }

    /// Whether any of `other`'s bits is set.
    pub(crate) const fn any(self, other: Attr) -> bool {
        self.0 & other.0 != 0
    }
}

/// All tokens of a model, by id and by text.
pub(crate) struct Vocab {
    /// All texts, one after the other.
    arena: Vec<u8>,
    /// `ends[id]` is where the text of `id` ends in the arena; it starts where the one before ends.
    ends: Vec<u32>,
    attrs: Vec<Attr>,
    by_text: HashTable<u32>,
    hasher: DefaultHashBuilder,
    max_len: usize,
}

impl Vocab {
    /// Reads the token texts and types. Empty texts are allowed (padding) but cannot be looked up.
    pub(crate) fn from_metadata(meta: &Metadata) -> Result<Vocab> {
        let Some(tokens) = meta.string_array(TOKENS)? else { return Err(Metadata::missing(TOKENS).into()) };
        let mut vocab = Vocab::with_texts(tokens)?;
        if let Some(types) = meta.i32_array(TOKEN_TYPE)? {
            same_length(TOKEN_TYPE, types.len(), vocab.len())?;
            vocab.attrs = types.into_iter().map(Attr::from_id).collect();
        }
        Ok(vocab)
    }

    fn with_texts(tokens: &ArrayValue) -> Result<Vocab> {
        let n = tokens.len();
        if n == 0 || n >= i32::MAX as usize {
            return Err(TokenizerError::malformed(TOKENS, format!("there are {n} tokens")));
        }
        let mut vocab = Vocab {
            arena: Vec::with_capacity(n * 8),
            ends: Vec::with_capacity(n),
            attrs: vec![Attr::NORMAL; n],
            by_text: HashTable::with_capacity(n),
            hasher: DefaultHashBuilder::default(),
            max_len: 0,
        };
        for text in tokens.strings().into_iter().flatten() {
            vocab.push(text)?;
        }
        Ok(vocab)
    }

    fn push(&mut self, text: &[u8]) -> Result<()> {
        let id = self.ends.len() as u32;
        let hash = self.hasher.hash_one(text);
        if let Some(first) = self.find(hash, text) {
            let shown = String::from_utf8_lossy(text);
            return Err(TokenizerError::malformed(
                TOKENS,
                format!("tokens {first} and {id} have the same text `{shown}`"),
            ));
        }
        self.arena.extend_from_slice(text);
        let end = u32::try_from(self.arena.len())
            .map_err(|_| TokenizerError::malformed(TOKENS, "the token texts take more than 4 GiB"))?;
        self.ends.push(end);
        self.max_len = self.max_len.max(text.len());
        if !text.is_empty() {
            let Vocab { arena, ends, by_text, hasher, .. } = self;
            by_text.insert_unique(hash, id, |&id| hasher.hash_one(slice(arena, ends, id)));
        }
        Ok(())
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Length of the longest text, in bytes.
    pub(crate) fn max_len(&self) -> usize {
        self.max_len
    }

    /// The text of a token as the file has it, empty for ids that do not exist.
    pub(crate) fn text(&self, id: u32) -> &[u8] {
        if (id as usize) < self.len() { slice(&self.arena, &self.ends, id) } else { &[] }
    }

    /// The token with exactly this text.
    pub(crate) fn id(&self, text: &[u8]) -> Option<u32> {
        self.find(self.hasher.hash_one(text), text)
    }

    fn find(&self, hash: u64, text: &[u8]) -> Option<u32> {
        self.by_text.find(hash, |&id| slice(&self.arena, &self.ends, id) == text).copied()
    }

    /// A token's attributes, none for ids that do not exist.
    pub(crate) fn attr(&self, id: u32) -> Attr {
        self.attrs.get(id as usize).copied().unwrap_or_default()
    }

    pub(crate) fn set_attr(&mut self, id: u32, attr: Attr) {
        if let Some(slot) = self.attrs.get_mut(id as usize) {
            *slot = attr;
        }
    }

    /// The ids having any of the attributes in `mask`, ascending.
    pub(crate) fn ids_with(&self, mask: Attr) -> impl Iterator<Item = u32> {
        self.attrs.iter().enumerate().filter(move |(_, attr)| attr.any(mask)).map(|(id, _)| id as u32)
    }
}

fn slice<'a>(arena: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &arena[start..ends[id] as usize]
}

/// Refuses a per-token array whose length is not the number of tokens.
pub(crate) fn same_length(key: &'static str, len: usize, n_vocab: usize) -> Result<()> {
    if len == n_vocab {
        return Ok(());
    }
    Err(TokenizerError::malformed(key, format!("has {len} elements, but there are {n_vocab} tokens")))
}

/// The id of the byte token `<0xNN>` for every byte that has one.
pub(crate) fn byte_tokens(vocab: &Vocab) -> [Option<u32>; 256] {
    std::array::from_fn(|byte| vocab.id(format!("<0x{byte:02X}>").as_bytes()))
}

/// The value of a byte token's text `<0xNN>`.
pub(crate) fn byte_value(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.len() == 2 && !hex.starts_with('+'))?;
    u8::from_str_radix(hex, 16).ok()
}
