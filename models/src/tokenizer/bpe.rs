//! Byte-pair encoding by ranked merges (`tokenizer.ggml.model` = `gpt2` and `gemma4`).
//!
//! The merge table is our own: the `tokenizers` crate's BPE model wants a `String` per token and two per merge, and
//! takes 0.27 s to build for a vocabulary of 128,256 tokens and 280,147 merges, several times as long as this one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::OnceLock;

use hashbrown::HashMap;
use tandem_loader::{ArrayValue, Metadata};

use super::byte_level;
use super::error::{Result, TokenizerError};
use super::pre_table::Pre;
use super::pretokenize::PreTokenizer;
use super::vocab::{Vocab, byte_tokens};

const MERGES: &str = "tokenizer.ggml.merges";

/// A symbol that no merge and no token knows.
const NO_SYMBOL: u32 = u32::MAX;

/// Longer pieces (which no pattern makes of real text) are merged in parts, so that 32-bit positions do.
const MAX_PART: usize = 1 << 28;

/// A byte-pair encoder.
pub(crate) struct Bpe {
    pre: &'static Pre,
    /// Compiled when a text is first encoded.
    pre_tokenizer: OnceLock<PreTokenizer>,
    symbols: Symbols,
    /// From (left << 32 | right) to what they merge to.
    merges: HashMap<u64, Merge>,
    /// The symbol of each byte (byte alphabet) or its byte token (raw UTF-8).
    bytes: [u32; 256],
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    /// Lower goes first.
    rank: u32,
    result: u32,
}

/// Symbols are token ids; texts that only occur in merges get the numbers after those.
#[derive(Default)]
struct Symbols {
    n_vocab: u32,
    extra: HashMap<Vec<u8>, u32>,
}

impl Symbols {
    fn find(&self, vocab: &Vocab, text: &[u8]) -> Option<u32> {
        vocab.id(text).or_else(|| self.extra.get(text).copied())
    }

    fn find_or_add(&mut self, vocab: &Vocab, text: &[u8]) -> u32 {
        self.find(vocab, text).unwrap_or_else(|| {
            let symbol = self.n_vocab + self.extra.len() as u32;
            self.extra.insert(text.to_vec(), symbol);
            symbol
        })
    }
}

/// Working memory of [`Bpe::encode`], kept between pieces.
#[derive(Default)]
struct Scratch {
    parts: Vec<Part>,
    queue: BinaryHeap<Reverse<(u32, u32, u64)>>,
    text: Vec<u8>,
}

/// A symbol in a piece. Links are indices; a part that was merged away has length 0.
#[derive(Clone, Copy)]
struct Part {
    symbol: u32,
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
}

/// The end of a chain of parts.
const NONE: u32 = u32::MAX;

impl Bpe {
    pub(crate) fn from_metadata(meta: &Metadata, vocab: &Vocab, pre: &'static Pre) -> Result<Bpe> {
        let Some(lines) = meta.string_array(MERGES)? else { return Err(Metadata::missing(MERGES).into()) };
        let mut symbols = Symbols { n_vocab: vocab.len() as u32, extra: HashMap::new() };
        let merges = read_merges(lines, vocab, &mut symbols)?;
        let bytes = if pre.raw_utf8 {
            byte_tokens(vocab).map(|id| id.unwrap_or(NO_SYMBOL))
        } else {
            std::array::from_fn(|byte| {
                let mut text = Vec::new();
                byte_level::encode(&[byte as u8], &mut text);
                symbols.find(vocab, &text).unwrap_or(NO_SYMBOL)
            })
        };
        Ok(Bpe { pre, pre_tokenizer: OnceLock::new(), symbols, merges, bytes })
    }

    /// Whether symbols are raw UTF-8 rather than the byte alphabet.
    pub(crate) fn raw_utf8(&self) -> bool {
        self.pre.raw_utf8
    }

    /// Whether the model needs a beginning-of-sequence token even where the file says otherwise.
    pub(crate) fn always_bos(&self) -> bool {
        self.pre.raw_utf8 && self.pre.add_bos
    }

    /// Appends the tokens of `text`. Bytes that are not UTF-8 become the tokens of those bytes.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &[u8], out: &mut Vec<u32>) {
        let pre_tokenizer = self.pre_tokenizer.get_or_init(|| PreTokenizer::new(self.pre));
        let mut scratch = Scratch::default();
        for chunk in text.utf8_chunks() {
            let escaped;
            let valid = if self.pre.raw_utf8 {
                escaped = chunk.valid().replace(' ', "\u{2581}");
                &escaped
            } else {
                chunk.valid()
            };
            for piece in pre_tokenizer.pieces(valid) {
                self.encode_piece(vocab, &valid[piece], &mut scratch, out);
            }
            self.push_bytes(chunk.invalid(), out);
        }
    }

    fn encode_piece(&self, vocab: &Vocab, piece: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        // Gemma 4 has tokens for runs of line ends that its merges do not reach.
        let whole = self.pre.ignore_merges || (self.pre.raw_utf8 && piece.bytes().all(|b| b == b'\n'));
        if whole && let Some(id) = self.whole_token(vocab, piece, &mut scratch.text) {
            out.push(id);
            return;
        }
        let mut rest = piece;
        while !rest.is_empty() {
            let (part, later) = rest.split_at(rest.floor_char_boundary(MAX_PART));
            self.merge(vocab, part, scratch, out);
            rest = later;
        }
    }

    fn whole_token(&self, vocab: &Vocab, piece: &str, text: &mut Vec<u8>) -> Option<u32> {
        if self.pre.raw_utf8 {
            return vocab.id(piece.as_bytes());
        }
        if piece.len() > vocab.max_len() {
            return None;
        }
        text.clear();
        byte_level::encode(piece.as_bytes(), text);
        vocab.id(text)
    }

    /// Merges the symbols of one piece, lowest rank first and leftmost among equals: O(n log n).
    fn merge(&self, vocab: &Vocab, piece: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { parts, queue, .. } = scratch;
        parts.clear();
        queue.clear();
        self.start_parts(vocab, piece, parts);
        for left in 0..parts.len().saturating_sub(1) {
            self.consider(parts, queue, left as u32);
        }
        while let Some(Reverse((_, left, pair))) = queue.pop() {
            let this = parts[left as usize];
            if this.len == 0 || this.next == NONE {
                continue;
            }
            let right = parts[this.next as usize];
            if pair_key(this.symbol, right.symbol) != pair {
                continue;
            }
            let Some(merge) = self.merges.get(&pair) else { continue };
            parts[this.next as usize].len = 0;
            parts[left as usize] = Part { symbol: merge.result, len: this.len + right.len, next: right.next, ..this };
            if right.next != NONE {
                parts[right.next as usize].prev = left;
                self.consider(parts, queue, left);
            }
            if this.prev != NONE {
                self.consider(parts, queue, this.prev);
            }
        }
        for part in parts.iter().filter(|part| part.len > 0) {
            if part.symbol < self.symbols.n_vocab {
                out.push(part.symbol);
            } else {
                self.push_bytes(&piece.as_bytes()[part.start as usize..][..part.len as usize], out);
            }
        }
    }

    /// Queues the merge of `left` with its right neighbour, if there is one.
    fn consider(&self, parts: &[Part], queue: &mut BinaryHeap<Reverse<(u32, u32, u64)>>, left: u32) {
        let this = parts[left as usize];
        let Some(right) = parts.get(this.next as usize) else { return };
        let pair = pair_key(this.symbol, right.symbol);
        if let Some(merge) = self.merges.get(&pair) {
            queue.push(Reverse((merge.rank, left, pair)));
        }
    }

    /// One part per byte, or per character for raw UTF-8.
    fn start_parts(&self, vocab: &Vocab, piece: &str, parts: &mut Vec<Part>) {
        let mut add = |symbol: u32, range: Range<usize>| {
            let at = parts.len() as u32;
            let (start, len) = (range.start as u32, range.len() as u32);
            parts.push(Part { symbol, start, len, prev: at.wrapping_sub(1), next: at + 1 });
        };
        if self.pre.raw_utf8 {
            for (at, c) in piece.char_indices() {
                let range = at..at + c.len_utf8();
                let symbol = self.symbols.find(vocab, &piece.as_bytes()[range.clone()]);
                add(symbol.unwrap_or(NO_SYMBOL), range);
            }
        } else {
            for (at, byte) in piece.bytes().enumerate() {
                add(self.bytes[byte as usize], at..at + 1);
            }
        }
        if let Some(last) = parts.last_mut() {
            last.next = NONE;
        }
    }

    /// Bytes as tokens of single bytes. A vocabulary without such a token has no way to say that byte: it is left out.
    fn push_bytes(&self, bytes: &[u8], out: &mut Vec<u32>) {
        out.extend(bytes.iter().map(|&b| self.bytes[b as usize]).filter(|&id| id < self.symbols.n_vocab));
    }
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Reads lines `left right`; their order is their rank. Of equal lines the first counts.
fn read_merges(lines: &ArrayValue, vocab: &Vocab, symbols: &mut Symbols) -> Result<HashMap<u64, Merge>> {
    let mut merges = HashMap::with_capacity(lines.len());
    let mut joined = Vec::new();
    let mut guess = 0;
    for (rank, line) in lines.strings().into_iter().flatten().enumerate() {
        // The left side may begin with a space where symbols are raw text, so the separator is searched after it.
        let space = line.iter().skip(1).position(|&b| b == b' ');
        let Some((left, right)) = space.map(|at| (&line[..at + 1], &line[at + 2..])) else {
            let shown = String::from_utf8_lossy(line);
            return Err(TokenizerError::malformed(MERGES, format!("merge {rank} is `{shown}`, not two symbols")));
        };
        joined.clear();
        joined.extend_from_slice(left);
        joined.extend_from_slice(right);
        // Most vocabularies list results in merge order, so the next one is usually the token after the last one.
        let result = [guess + 1, guess].into_iter().find(|&id| vocab.text(id) == joined);
        let result = result.unwrap_or_else(|| symbols.find_or_add(vocab, &joined));
        guess = result.min(symbols.n_vocab);
        let pair = pair_key(symbols.find_or_add(vocab, left), symbols.find_or_add(vocab, right));
        merges.entry(pair).or_insert(Merge { rank: rank as u32, result });
    }
    Ok(merges)
}
