//! The RWKV "world" tokenizer: the longest token that fits, from left to right.

use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, MatchKind};

use super::vocab::Vocab;

/// A greedy encoder. Token texts are escaped like Python string literals.
pub(crate) struct Rwkv {
    /// Made when a text is first encoded. `None` if it could not be made.
    automaton: OnceLock<Option<AhoCorasick>>,
    unknown: Option<u32>,
}

impl Rwkv {
    pub(crate) fn new(unknown: Option<u32>) -> Rwkv {
        Rwkv { automaton: OnceLock::new(), unknown }
    }

    /// Appends the tokens of `text`; a byte that starts no token becomes the unknown token.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &[u8], out: &mut Vec<u32>) {
        let automaton = self.automaton.get_or_init(|| {
            let texts = (0..vocab.len() as u32).map(|id| unescape(vocab.text(id)));
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).ok()
        });
        let mut at = 0;
        for found in automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            if found.is_empty() {
                continue;
            }
            out.extend((at..found.start()).filter_map(|_| self.unknown));
            out.push(found.pattern().as_u32());
            at = found.end();
        }
        out.extend((at..text.len()).filter_map(|_| self.unknown));
    }
}

/// Resolves `\t`, `\n`, `\r`, `\xNN`; any other escaped byte stands for itself.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let Some((&escaped, after)) = rest.split_first() else { break };
        rest = after;
        out.push(match escaped {
            b't' => b'\t',
            b'n' => b'\n',
            b'r' => b'\r',
            b'x' => {
                let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
                let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) else { continue };
                rest = &rest[2..];
                byte
            }
            other => other,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn escapes() {
        assert_eq!(unescape(br"a\n\x00\\\'\xff"), b"a\n\0\\'\xff");
        assert_eq!(unescape(br"\x"), b"");
        assert_eq!(unescape(b"\\"), b"");
    }
}
