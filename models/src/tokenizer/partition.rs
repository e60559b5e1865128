//! Cutting a text at its special tokens.
//!
//! Longer tokens go first, over the whole text; what is left between them is searched for the next shorter one. Some
//! vocabularies have thousands of special tokens, so one automaton first finds which of them occur at all.

use std::ops::Range;
use std::sync::OnceLock;

use aho_corasick::AhoCorasick;
use memchr::memmem;

use super::vocab::{Attr, Vocab};

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// A special token found in it.
    Token(u32),
    /// Bytes between special tokens, never empty.
    Text(Range<usize>),
}

/// The special tokens of a vocabulary.
pub(crate) struct Partitioner {
    /// Longest first, then by id.
    ids: Vec<u32>,
    /// Made when a text is first cut: loading a model should not wait for it. `None` if it could not be made.
    automaton: OnceLock<Option<AhoCorasick>>,
}

impl Partitioner {
    pub(crate) fn new(vocab: &Vocab) -> Partitioner {
        let special = Attr::CONTROL.with(Attr::USER_DEFINED).with(Attr::UNKNOWN);
        let mut ids: Vec<u32> = vocab.ids_with(special).filter(|&id| !vocab.text(id).is_empty()).collect();
        ids.sort_by_key(|&id| (std::cmp::Reverse(vocab.text(id).len()), id));
        Partitioner { ids, automaton: OnceLock::new() }
    }

    /// Cuts `text`. User-defined tokens are always found; control and unknown tokens only if `parse_special`.
    pub(crate) fn cut(&self, vocab: &Vocab, text: &[u8], parse_special: bool) -> Vec<Fragment> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut fragments = vec![Fragment::Text(0..text.len())];
        let hidden = Attr::CONTROL.with(Attr::UNKNOWN);
        for id in self.present(vocab, text) {
            if parse_special || !vocab.attr(id).any(hidden) {
                fragments = cut_at(fragments, text, id, vocab.text(id), vocab.attr(id));
            }
        }
        fragments
    }

    /// The special tokens whose text occurs in `text`, longest first.
    fn present(&self, vocab: &Vocab, text: &[u8]) -> Vec<u32> {
        let automaton = self.automaton.get_or_init(|| AhoCorasick::new(self.ids.iter().map(|&id| vocab.text(id))).ok());
        let Some(automaton) = automaton else { return self.ids.clone() };
        let mut seen = vec![false; self.ids.len()];
        for found in automaton.find_overlapping_iter(text) {
            seen[found.pattern().as_usize()] = true;
        }
        self.ids.iter().zip(seen).filter(|(_, seen)| *seen).map(|(&id, _)| id).collect()
    }
}

/// Cuts every text fragment at the occurrences of one token, from left to right.
fn cut_at(fragments: Vec<Fragment>, text: &[u8], id: u32, needle: &[u8], attr: Attr) -> Vec<Fragment> {
    let finder = memmem::Finder::new(needle);
    let mut out = Vec::with_capacity(fragments.len() + 2);
    for fragment in fragments {
        let Fragment::Text(Range { mut start, end }) = fragment else {
            out.push(fragment);
            continue;
        };
        while let Some(at) = finder.find(&text[start..end]) {
            let found = start + at;
            let mut left = start..found;
            if attr.any(Attr::LSTRIP) {
                left.end = start + text[left.clone()].iter().rposition(|&b| !is_space(b)).map_or(0, |last| last + 1);
            }
            push_text(&mut out, left);
            out.push(Fragment::Token(id));
            start = found + needle.len();
            if attr.any(Attr::RSTRIP) {
                start += text[start..end].iter().take_while(|&&b| is_space(b)).count();
            }
        }
        push_text(&mut out, start..end);
    }
    out
}

fn push_text(out: &mut Vec<Fragment>, range: Range<usize>) {
    if !range.is_empty() {
        out.push(Fragment::Text(range));
    }
}

/// White space of the C locale, which is what the rule is defined with.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}
