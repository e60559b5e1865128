//! Cutting text into pieces, through the `tokenizers` crate's `Split`.

use std::ops::Range;

use tokenizers::pattern::Pattern;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    OffsetReferential, OffsetType, Offsets, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior,
};

use super::pre_table::{Pre, Stage};

/// The stages of one pre-tokenizer, compiled.
pub(crate) struct PreTokenizer {
    stages: Vec<Compiled>,
    /// Whether long runs of white space are all alike to the patterns (no pattern counts them).
    shorten: bool,
}

enum Compiled {
    Split(Split),
    Digits(DigitGroups),
}

impl PreTokenizer {
    /// Compiles the patterns of one row of the registry (a few milliseconds).
    pub(crate) fn new(pre: &Pre) -> PreTokenizer {
        let shorten = !pre.stages.iter().any(|stage| matches!(stage, Stage::Regex(re) if re.contains(r"\s{")));
        PreTokenizer { stages: pre.stages.iter().map(compile).collect(), shorten }
    }

    /// The pieces of `text` in order, as byte ranges that cover it.
    pub(crate) fn pieces(&self, text: &str) -> Vec<Range<usize>> {
        let runs = if self.shorten { long_runs(text) } else { Vec::new() };
        if runs.is_empty() {
            return self.split(text);
        }
        let mut short = String::with_capacity(text.len());
        let mut at = 0;
        for cut in &runs {
            short.push_str(&text[at..cut.start]);
            at = cut.end;
        }
        short.push_str(&text[at..]);
        let mut pieces = self.split(&short);
        lengthen(&mut pieces, &runs);
        pieces
    }

    fn split(&self, text: &str) -> Vec<Range<usize>> {
        let mut pieces = PreTokenizedString::from(text);
        for stage in &self.stages {
            let done = match stage {
                Compiled::Split(split) => split.pre_tokenize(&mut pieces),
                Compiled::Digits(groups) => {
                    pieces.split(|_, piece| piece.split(groups, SplitDelimiterBehavior::Isolated))
                }
            };
            // The only failures of these calls are offsets off a character boundary, and matches never are. If one
            // did fail, the text in one piece still becomes tokens that spell it.
            if done.is_err() {
                return vec![0..text.len()];
            }
        }
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| start..end).collect()
    }
}

fn compile(stage: &Stage) -> Compiled {
    match stage {
        Stage::Regex(re) => Compiled::Split(
            Split::new(SplitPattern::Regex((*re).to_owned()), SplitDelimiterBehavior::Isolated, false)
                .expect("the registry's patterns are constants, and a test compiles them all"),
        ),
        Stage::DigitGroups => Compiled::Digits(DigitGroups { words_too: true }),
        Stage::WordDigitGroups => Compiled::Digits(DigitGroups { words_too: false }),
    }
}

/// Above this many bytes a run of white space is shortened for the regex engine: it keeps a stack entry per character
/// of `\s+(?!\S)` and gives up at a million of them.
const LONG_RUN: usize = 1 << 16;

/// How much of a long run stays at either end.
const KEEP: usize = 1 << 10;

/// The middles of very long runs of white space without line ends, or of line ends only. Leaving out a middle changes
/// no cut of a pattern that does not count.
fn long_runs(text: &str) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    if text.len() <= LONG_RUN {
        return cuts;
    }
    let kind = |c: char| if matches!(c, '\n' | '\r') { 2 } else { u8::from(c.is_whitespace()) };
    let (mut start, mut last) = (0, 0);
    for (at, this) in text.char_indices().map(|(at, c)| (at, kind(c))).chain([(text.len(), 0)]) {
        if this != last || this == 0 {
            if last != 0 && at - start > LONG_RUN {
                cuts.push(text.ceil_char_boundary(start + KEEP)..text.floor_char_boundary(at - KEEP));
            }
            start = at;
            last = this;
        }
    }
    cuts
}

/// Turns ranges of the shortened text into ranges of the whole one. `cuts` are ranges of the whole text, ascending.
fn lengthen(pieces: &mut [Range<usize>], cuts: &[Range<usize>]) {
    let mut cuts = cuts.iter().peekable();
    let mut removed = 0;
    for piece in pieces {
        piece.start += removed;
        while let Some(cut) = cuts.next_if(|cut| cut.start < piece.end + removed) {
            removed += cut.len();
        }
        piece.end += removed;
    }
}

/// Groups of three digits, counted from the end of each run of digits.
struct DigitGroups {
    /// Whether runs followed by a word character are grouped, too.
    words_too: bool,
}

impl Pattern for &DigitGroups {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        let mut found = Vec::new();
        let mut rest = 0;
        let mut chars = inside.char_indices().peekable();
        while let Some((start, c)) = chars.next() {
            if !c.is_numeric() {
                continue;
            }
            let mut starts = vec![start];
            while let Some((at, _)) = chars.next_if(|(_, c)| c.is_numeric()) {
                starts.push(at);
            }
            let end = chars.peek().map_or(inside.len(), |&(at, _)| at);
            if !self.words_too && chars.peek().is_some_and(|&(_, c)| c.is_alphanumeric() || c == '_') {
                continue;
            }
            if rest < start {
                found.push(((rest, start), false));
            }
            let first = starts.len() % 3;
            let mut from = start;
            for next in (first..starts.len()).step_by(3).filter(|&i| i > 0).map(|i| starts[i]).chain([end]) {
                found.push(((from, next), true));
                from = next;
            }
            rest = end;
        }
        if rest < inside.len() || inside.is_empty() {
            found.push(((rest, inside.len()), false));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pre_table;
    use super::*;

    fn cut<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        let pre = PreTokenizer::new(pre_table::find(name).unwrap());
        pre.pieces(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn every_pattern_compiles_and_covers_the_text() {
        let text = "It's 12345 Über-Straße's  日本語 を…\r\n\n  \t x\u{301}y  <sentinel:1> 각 ٣٤٥٦ a_1234b 🙂\u{a0} ";
        for pre in pre_table::PRE_TOKENIZERS {
            assert_eq!(cut(pre.name, text).concat(), text, "{}", pre.name);
            assert!(cut(pre.name, "").is_empty());
        }
    }

    #[test]
    fn names_are_unique() {
        for (i, pre) in pre_table::PRE_TOKENIZERS.iter().enumerate() {
            assert!(pre_table::PRE_TOKENIZERS[..i].iter().all(|other| other.name != pre.name), "{}", pre.name);
        }
    }

    #[test]
    fn words_digits_and_spaces() {
        assert_eq!(
            cut("gpt-2", "it's  two  words 123a\n\n x"),
            ["it", "'s", " ", " two", " ", " words", " 123", "a", "\n\n", " x"]
        );
        assert_eq!(cut("llama-bpe", "IT'S 12345\n\n  x"), ["IT", "'S", " ", "123", "45", "\n\n", " ", " x"]);
        assert_eq!(cut("qwen2", "a12"), ["a", "1", "2"]);
        assert_eq!(cut("gpt-4o", "HelloWorld's"), ["Hello", "World's"]);
        assert_eq!(cut("tekken", "HelloWorld's 12"), ["Hello", "World", "'s", " ", "1", "2"]);
        assert_eq!(cut("starcoder", "a 12"), ["a", " ", "1", "2"]);
        assert_eq!(cut("deepseek-v3", "12345日本x"), ["123", "45", "日本", "x"]);
        assert_eq!(cut("kimi-k2", "abc漢字 Don't"), ["abc", "漢字", " Don't"]);
        assert_eq!(cut("qwen35", "e\u{301}a"), ["e\u{301}a"]);
    }

    #[test]
    fn digit_groups_count_from_the_end() {
        assert_eq!(cut("superbpe", "1234567 12"), ["1", "234", "567", " ", "12"]);
        assert_eq!(cut("afmoe", "12345"), ["12", "345"]);
        assert_eq!(cut("tiny_aya", "1234567"), ["1", "234", "567"]);
        assert_eq!(cut("tiny_aya", "1234a"), ["123", "4", "a"]);
    }

    #[test]
    fn runs_of_spaces_beyond_the_regex_engine() {
        for n in [LONG_RUN - 1, LONG_RUN, LONG_RUN + 1, 1_200_000] {
            let spaces = " ".repeat(n);
            assert_eq!(cut("llama-bpe", &format!("a{spaces}b")), ["a", &spaces[1..], " b"], "{n}");
            assert_eq!(cut("llama-bpe", &format!("{spaces}\n{spaces}")), [format!("{spaces}\n"), spaces.clone()]);
            let newlines = "\n".repeat(n);
            assert_eq!(cut("gpt-2", &format!("a{newlines}b{spaces}")), ["a", &newlines[1..], "\n", "b", &spaces]);
        }
    }
}
