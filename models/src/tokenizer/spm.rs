//! SentencePiece-style BPE (`tokenizer.ggml.model` = `llama`): adjacent symbols merge while their text is a token, best
//! score first, leftmost among equals. Spaces are written as U+2581; characters without a token become byte tokens.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use memchr::memmem;
use tandem_loader::Metadata;

use super::error::Result;
use super::vocab::{Vocab, byte_tokens, same_length};

const SCORES: &str = "tokenizer.ggml.scores";

/// How a space is written in token texts: U+2581.
const SPACE: &[u8] = "\u{2581}".as_bytes();

/// A SentencePiece-style encoder.
pub(crate) struct Spm {
    /// Scores by token id, as integers in the same order.
    scores: Vec<u32>,
    /// The token of each single byte.
    bytes: [Option<u32>; 256],
}

/// A symbol of the text. Links are indices; a symbol that was merged away has length 0.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
}

/// The end of a chain of symbols.
const NONE: u32 = u32::MAX;

/// Text is worked on in parts of at most this many bytes, so that 32-bit positions do (and memory stays bounded).
const MAX_PART: usize = 1 << 28;

/// A possible merge: score, then leftmost, then the length both sides had when it was found.
type Bigram = (u32, Reverse<u32>, u32);

impl Spm {
    pub(crate) fn from_metadata(meta: &Metadata, vocab: &Vocab, unknown: Option<u32>) -> Result<Spm> {
        let Some(scores) = meta.f32_array(SCORES)? else { return Err(Metadata::missing(SCORES).into()) };
        same_length(SCORES, scores.len(), vocab.len())?;
        let tokens = byte_tokens(vocab);
        let bytes = std::array::from_fn(|byte| tokens[byte].or_else(|| vocab.id(&[byte as u8])).or(unknown));
        Ok(Spm { scores: scores.into_iter().map(order_key).collect(), bytes })
    }

    /// Appends the tokens of `text`, with a space in front if `space_prefix`.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &[u8], space_prefix: bool, out: &mut Vec<u32>) {
        let mut escaped = Vec::with_capacity(text.len() + text.len() / 2 + SPACE.len());
        if space_prefix {
            escaped.extend_from_slice(SPACE);
        }
        for &byte in text {
            match byte {
                b' ' => escaped.extend_from_slice(SPACE),
                _ => escaped.push(byte),
            }
        }
        for part in escaped.chunks(MAX_PART) {
            self.merge(vocab, part, out);
        }
    }

    /// O(n log n) in the length of `text`.
    fn merge(&self, vocab: &Vocab, text: &[u8], out: &mut Vec<u32>) {
        let mut symbols = split_chars(text);
        let mut queue = BinaryHeap::with_capacity(symbols.len());
        for left in 0..symbols.len() {
            queue.extend(self.bigram(vocab, text, &symbols, left as u32));
        }
        while let Some((_, Reverse(left), len)) = queue.pop() {
            let this = symbols[left as usize];
            let Some(&right) = symbols.get(this.next as usize) else { continue };
            if this.len == 0 || this.len + right.len != len {
                continue;
            }
            symbols[this.next as usize].len = 0;
            symbols[left as usize] = Symbol { len, next: right.next, ..this };
            if let Some(after) = symbols.get_mut(right.next as usize) {
                after.prev = left;
            }
            if this.prev != NONE {
                queue.extend(self.bigram(vocab, text, &symbols, this.prev));
            }
            queue.extend(self.bigram(vocab, text, &symbols, left));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let bytes = &text[symbol.start as usize..][..symbol.len as usize];
            match vocab.id(bytes) {
                Some(id) => out.push(id),
                None => out.extend(bytes.iter().filter_map(|&byte| self.bytes[byte as usize])),
            }
        }
    }

    /// The merge of `left` with its right neighbour, if both together are a token.
    fn bigram(&self, vocab: &Vocab, text: &[u8], symbols: &[Symbol], left: u32) -> Option<Bigram> {
        let this = symbols[left as usize];
        let right = symbols.get(this.next as usize)?;
        let len = this.len + right.len;
        if len as usize > vocab.max_len() {
            return None;
        }
        let id = vocab.id(&text[this.start as usize..][..len as usize])?;
        Some((self.scores[id as usize], Reverse(left), len))
    }
}

/// A token's text with spaces for U+2581.
pub(crate) fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    let finder = memmem::Finder::new(SPACE);
    let mut out = Vec::new();
    let mut at = 0;
    for found in finder.find_iter(text) {
        out.extend_from_slice(&text[at..found]);
        out.push(b' ');
        at = found + SPACE.len();
    }
    if at == 0 {
        return Cow::Borrowed(text);
    }
    out.extend_from_slice(&text[at..]);
    Cow::Owned(out)
}

/// One symbol per UTF-8 character, and one per byte that belongs to none.
fn split_chars(text: &[u8]) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    let mut start = 0;
    for chunk in text.utf8_chunks() {
        let chars = chunk.valid().chars().map(|c| c.len_utf8() as u32);
        for len in chars.chain(chunk.invalid().iter().map(|_| 1)) {
            let at = symbols.len() as u32;
            symbols.push(Symbol { start, len, prev: at.wrapping_sub(1), next: at + 1 });
            start += len;
        }
    }
    if let Some(last) = symbols.last_mut() {
        last.next = NONE;
    }
    symbols
}

/// Integers in the order of the scores. -0 equals 0; what is not a number goes last.
fn order_key(score: f32) -> u32 {
    if score.is_nan() {
        return 0;
    }
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

#[cfg(test)]
mod tests {
    use super::order_key;

    #[test]
    fn order_of_scores() {
        let ordered = [f32::NAN, f32::NEG_INFINITY, -1000.0, -1.5, -0.0, 1e-9, 2.0, f32::INFINITY];
        for pair in ordered.windows(2) {
            assert!(order_key(pair[0]) < order_key(pair[1]), "{pair:?}");
        }
        assert_eq!(order_key(-0.0), order_key(0.0));
    }
}
