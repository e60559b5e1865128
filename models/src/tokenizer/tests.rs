//! Tokenizers of small vocabularies made here.

use std::fmt::Write as _;

use proptest::prelude::*;
use tandem_loader::Gguf;

use super::*;

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const PARSE: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const ALL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

/// Metadata in the making, as a GGUF file without tensors.
#[derive(Clone, Default)]
struct File {
    count: u64,
    bytes: Vec<u8>,
}

impl File {
    fn key(mut self, key: &str, value_type: u32) -> File {
        self.count += 1;
        self.text(key.as_bytes());
        self.bytes.extend(value_type.to_le_bytes());
        self
    }

    fn text(&mut self, text: &[u8]) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text);
    }

    fn str(self, key: &str, value: &str) -> File {
        let mut file = self.key(key, 8);
        file.text(value.as_bytes());
        file
    }

    fn u32(self, key: &str, value: u32) -> File {
        let mut file = self.key(key, 4);
        file.bytes.extend(value.to_le_bytes());
        file
    }

    fn bool(self, key: &str, value: bool) -> File {
        let mut file = self.key(key, 7);
        file.bytes.push(u8::from(value));
        file
    }

    fn array<T>(self, key: &str, element: u32, values: &[T], write: impl Fn(&mut File, &T)) -> File {
        let mut file = self.key(key, 9);
        file.bytes.extend(element.to_le_bytes());
        file.bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| write(&mut file, value));
        file
    }

    fn strings<T: AsRef<[u8]>>(self, key: &str, values: &[T]) -> File {
        self.array(key, 8, values, |file, value| file.text(value.as_ref()))
    }

    fn i32s(self, key: &str, values: &[i32]) -> File {
        self.array(key, 5, values, |file, value| file.bytes.extend(value.to_le_bytes()))
    }

    fn f32s(self, key: &str, values: &[f32]) -> File {
        self.array(key, 6, values, |file, value| file.bytes.extend(value.to_le_bytes()))
    }

    fn gguf(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(&self.bytes);
        bytes
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        let gguf = Gguf::from_bytes("test.gguf".as_ref(), self.gguf()).unwrap();
        Tokenizer::from_metadata(gguf.metadata())
    }
}

/// Token texts and types of a byte-level vocabulary: all bytes, a few words, and special tokens.
fn byte_tokens() -> (Vec<String>, Vec<i32>) {
    let mut tokens: Vec<String> = (0..=255u8)
        .map(|byte| {
            let mut text = Vec::new();
            byte_level::encode(&[byte], &mut text);
            String::from_utf8(text).unwrap()
        })
        .collect();
    let words = ["he", "ll", "hell", "hello", "Ġhello", "Ġw", "aa", "aaaa", "unreached", "Ã©"];
    tokens.extend(words.map(String::from));
    let mut types = vec![1; tokens.len()];
    for (text, token_type) in [("<|im_end|>", 3), ("<|im_end|><|im_end|>", 3), ("<tool>", 4), ("<|x|>", 3), ("", 5)] {
        tokens.push(text.to_owned());
        types.push(token_type);
    }
    (tokens, types)
}

const MERGES: &[&str] = &["h e", "l l", "he ll", "hell o", "Ġ hello", "a a", "aa aa", "Ġ w", "Ã ©"];

fn byte_file(pre: &str, merges: &[&str]) -> File {
    let (tokens, types) = byte_tokens();
    File::default()
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .strings("tokenizer.ggml.merges", merges)
}

/// The texts of the tokens of `text`, separated by `|`.
fn shown(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> String {
    let mut out = String::new();
    for id in tokenizer.encode(text, options) {
        write!(out, "|{}", String::from_utf8_lossy(tokenizer.token_text(id))).unwrap();
    }
    out
}

#[test]
fn merges_go_by_rank_then_from_the_left() {
    let tokenizer = byte_file("gpt-2", MERGES).tokenizer().unwrap();
    assert_eq!(shown(&tokenizer, "hello hello", PLAIN), "|hello|Ġhello");
    assert_eq!(shown(&tokenizer, "aaaaaaa", PLAIN), "|aaaa|aa|a");
    assert_eq!(shown(&tokenizer, "helloé\n", PLAIN), "|hello|Ã©|Ċ");
    assert_eq!(shown(&tokenizer, "unreached", PLAIN), "|u|n|r|e|a|c|he|d");
    assert_eq!(shown(&tokenizer, "", ALL), "");
}

#[test]
fn whole_pieces_come_before_merges_where_the_model_wants_it() {
    let tokenizer = byte_file("llama-bpe", MERGES).tokenizer().unwrap();
    assert_eq!(shown(&tokenizer, "unreached", PLAIN), "|unreached");
}

#[test]
fn special_tokens_longest_first() {
    let tokenizer = byte_file("gpt-2", MERGES).tokenizer().unwrap();
    let text = "<|im_end|><|im_end|><|im_end|>aa<tool>";
    assert_eq!(shown(&tokenizer, text, PARSE), "|<|im_end|><|im_end|>|<|im_end|>|aa|<tool>");
    assert!(shown(&tokenizer, text, PLAIN).ends_with("|aa|<tool>"), "user-defined tokens are always found");
    assert!(shown(&tokenizer, text, PLAIN).starts_with("|<|||i|m"));
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert!(tokenizer.is_eog(end) && tokenizer.is_special(end));
    assert_eq!((tokenizer.eot(), tokenizer.eos(), tokenizer.bos()), (Some(end), None, None));
    assert_eq!(tokenizer.decode(&[end, 97], false), tokenizer.decode(&[97], true));
    let mut stream = tokenizer.stream(false);
    assert_eq!(stream.push(end) + &stream.push(97), "a");
}

#[test]
fn ids_that_do_not_exist_are_harmless() {
    let tokenizer = byte_file("gpt-2", MERGES).tokenizer().unwrap();
    for id in [tokenizer.n_vocab() as u32, u32::MAX] {
        assert!(!tokenizer.is_valid(id) && !tokenizer.is_special(id) && !tokenizer.is_eog(id));
        assert!(tokenizer.piece(id).is_empty() && tokenizer.token_text(id).is_empty());
        assert_eq!(tokenizer.decode(&[id, 97, id], true), b"a");
        assert_eq!(tokenizer.stream(true).push(id), "");
    }
}

#[test]
fn added_tokens() {
    let file = byte_file("gpt-2", MERGES).u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
    let tokenizer = file.clone().bool("tokenizer.ggml.add_eos_token", true).tokenizer().unwrap();
    assert_eq!(tokenizer.encode("aa", ALL), [tokenizer.token_id("aa").unwrap(), 2]);
    let tokenizer = file.bool("tokenizer.ggml.add_bos_token", true).tokenizer().unwrap();
    assert_eq!(tokenizer.encode("", ALL), [1]);
    assert!(tokenizer.encode("", PARSE).is_empty());
    // An id that does not exist is no token, and is not added.
    let file = byte_file("llama-bpe", MERGES).u32("tokenizer.ggml.bos_token_id", u32::MAX);
    let tokenizer = file.tokenizer().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.add_bos()), (None, false));
    assert!(tokenizer.encode("", ALL).is_empty());
}

/// A vocabulary in the manner of SentencePiece.
fn spm_file() -> File {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut types = vec![2, 3, 3];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), 6);
    tokens.extend(["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁▁", "é", "<turn>"].map(String::from));
    types.resize(tokens.len() - 1, 1);
    types.push(4);
    let score = |text: &String| match text.as_str() {
        "bc" => -1.0,
        "ab" => -2.0,
        "▁a" => -3.0,
        "▁▁" => -4.0,
        _ => -10.0,
    };
    let scores: Vec<f32> = tokens.iter().map(score).collect();
    File::default()
        .str("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .f32s("tokenizer.ggml.scores", &scores)
}

#[test]
fn sentencepiece_merges_by_score() {
    let tokenizer = spm_file().tokenizer().unwrap();
    assert_eq!(shown(&tokenizer, "abab", PLAIN), "|▁|ab|ab");
    assert_eq!(shown(&tokenizer, "abc", PLAIN), "|▁a|bc", "bc first, then ▁a before abc");
    assert_eq!(shown(&tokenizer, "a   ac", PLAIN), "|▁a|▁▁|▁a|c");
    assert_eq!(shown(&tokenizer, "é日", PLAIN), "|▁|é|<0xE6>|<0x97>|<0xA5>");
    assert_eq!(shown(&tokenizer, "a<turn>a<s>", PARSE), "|▁a|<turn>|▁a|<s>");
    assert_eq!(shown(&tokenizer, "", ALL), "|<s>");
    assert_eq!(tokenizer.decode(&tokenizer.encode(" a b", ALL), false), b" a b");
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unknown()), (Some(1), Some(2), Some(0)));
    let tokenizer = spm_file().bool("tokenizer.ggml.add_space_prefix", false).tokenizer().unwrap();
    assert_eq!(shown(&tokenizer, "abc", PLAIN), "|abc");
    assert_eq!(tokenizer.decode(&tokenizer.encode(" a", PLAIN), true), b" a");
}

#[test]
fn gemma4_merges_raw_text() {
    let mut tokens = ["<bos>", "a", "▁", "▁a", "\n\n", "日"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![3, 1, 1, 1, 1, 1];
    types.resize(tokens.len(), 6);
    let tokenizer = File::default()
        .str("tokenizer.ggml.model", "gemma4")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .strings("tokenizer.ggml.merges", &["▁ a"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .bool("tokenizer.ggml.add_bos_token", false)
        .tokenizer()
        .unwrap();
    assert_eq!(shown(&tokenizer, "a a\n\n日\né", ALL), "|<bos>|a|▁a|\n\n|日|<0x0A>|<0xC3>|<0xA9>");
    assert_eq!(tokenizer.decode(&tokenizer.encode("a a\n\n日\né\u{2581}", PLAIN), true), "a a\n\n日\né ".as_bytes());
}

#[test]
fn rwkv_takes_the_longest_token() {
    let tokenizer = File::default()
        .str("tokenizer.ggml.model", "rwkv")
        .strings("tokenizer.ggml.tokens", &[r"<s>", "a", "ab", "abc", r"\n", r"\xe6"])
        .tokenizer()
        .unwrap();
    assert_eq!(tokenizer.encode("abcab\na日", PLAIN), [3, 2, 4, 1, 5, 0, 0]);
    assert_eq!(tokenizer.decode(&[3, 4], true), b"abc\n");
}

#[test]
fn models_without_a_tokenizer_say_so() {
    let without = |file: File| matches!(file.tokenizer(), Err(TokenizerError::NoTokenizer { .. }));
    assert!(without(File::default()));
    for model in ["test", "none", "no_vocab"] {
        assert!(without(File::default().str("tokenizer.ggml.model", model)), "{model}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let message = |file: File| file.tokenizer().unwrap_err().to_string();
    let model = message(File::default().str("tokenizer.ggml.model", "bert"));
    assert!(model.contains("`tokenizer.ggml.model`") && model.contains("`bert`") && model.contains("gpt2, llama"));
    let pre = message(byte_file("no-such", MERGES));
    assert!(pre.contains("`tokenizer.ggml.pre`") && pre.contains("`no-such`") && pre.contains("qwen2"));
}

#[test]
fn damaged_vocabularies_are_refused() {
    let base = || File::default().str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "gpt-2");
    let tokens = |texts: &[&str]| base().strings("tokenizer.ggml.tokens", texts);
    let no_merges: &[&str] = &[];
    let cases = [
        (base(), "tokenizer.ggml.tokens"),
        (tokens(&[]).strings("tokenizer.ggml.merges", no_merges), "there are 0 tokens"),
        (tokens(&["a"]), "tokenizer.ggml.merges"),
        (tokens(&["a", "b", "a"]).strings("tokenizer.ggml.merges", no_merges), "tokens 0 and 2"),
        (tokens(&["a"]).i32s("tokenizer.ggml.token_type", &[1, 1]), "has 2 elements"),
        (tokens(&["a"]).strings("tokenizer.ggml.merges", &["aa"]), "merge 0"),
        (base().u32("tokenizer.ggml.tokens", 1), "tokenizer.ggml.tokens"),
        (File::default().u32("tokenizer.ggml.model", 1), "tokenizer.ggml.model"),
        (spm_without_scores(), "tokenizer.ggml.scores"),
    ];
    for (file, expected) in cases {
        let message = file.tokenizer().unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

fn spm_without_scores() -> File {
    File::default().str("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", &["a"])
}

#[test]
fn odd_vocabularies_do_no_harm() {
    // Merges of symbols that are no tokens, of results that are no tokens; tokens that are not UTF-8; no byte tokens.
    let tokenizer = File::default()
        .str("tokenizer.ggml.model", "gpt2")
        .strings("tokenizer.ggml.tokens", &[&b"a"[..], b"b", b"\xff\xfe", b"", b"", b"abx"])
        .strings("tokenizer.ggml.merges", &["a b", "ab x", "q r", "a b"])
        .u32("tokenizer.ggml.eos_token_id", 999)
        .tokenizer()
        .unwrap();
    assert_eq!(tokenizer.encode("abx ab q", PLAIN), [5, 0, 1]);
    assert_eq!(tokenizer.encode([0xff, b'a', 0xc3], PLAIN), [0]);
    assert_eq!(tokenizer.decode(&[2, 3, 4], true), b"\xff\xfe");
    assert_eq!(tokenizer.eos(), None);
}

proptest! {
    #[test]
    fn byte_level_bpe_gives_back_any_text(text in "(?s).{0,80}", pre in 0..pre_table::PRE_TOKENIZERS.len()) {
        let pre = &pre_table::PRE_TOKENIZERS[pre];
        prop_assume!(!pre.raw_utf8);
        let tokenizer = byte_file(pre.name, MERGES).tokenizer().unwrap();
        let ids = tokenizer.encode(&text, PLAIN);
        prop_assert_eq!(tokenizer.decode(&ids, true), text.as_bytes());
        let mut stream = tokenizer.stream(true);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(streamed, text);
    }

    #[test]
    fn any_bytes_are_given_back(text in prop::collection::vec(any::<u8>(), 0..80)) {
        let bpe = byte_file("llama-bpe", MERGES).tokenizer().unwrap();
        prop_assert_eq!(bpe.decode(&bpe.encode(&text, PLAIN), true), text.clone());
        let spm = spm_file().tokenizer().unwrap();
        prop_assert_eq!(spm.decode(&spm.encode(&text, PLAIN), true), text);
    }

    /// Damage anywhere in the metadata gives an error or a tokenizer, never a panic.
    #[test]
    fn damage_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), kind in 0..3) {
        let file = match kind {
            0 => byte_file("llama-bpe", MERGES),
            1 => spm_file(),
            _ => byte_file("gpt-2", MERGES).u32("tokenizer.ggml.bos_token_id", 3).bool("tokenizer.ggml.add_bos_token", true),
        };
        let mut bytes = file.gguf();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(gguf) = Gguf::from_bytes("damaged.gguf".as_ref(), bytes)
            && let Ok(tokenizer) = Tokenizer::from_metadata(gguf.metadata())
        {
            let ids = tokenizer.encode("hello é <|im_end|>\n\n 日本 12345", ALL);
            prop_assert!(ids.iter().all(|&id| tokenizer.is_valid(id)));
            tokenizer.decode(&ids, true);
        }
    }

    /// The queue must find what repeated search for the best pair finds.
    #[test]
    fn merging_equals_the_naive_way(text in "[helo aw]{0,40}") {
        let tokenizer = byte_file("gpt-2", MERGES).tokenizer().unwrap();
        let Model::Bpe(bpe) = &tokenizer.model else { unreachable!() };
        let pieces = pretokenize::PreTokenizer::new(find_pre("gpt-2").unwrap()).pieces(&text);
        let naive: Vec<u32> = pieces.into_iter().flat_map(|piece| naive(&tokenizer, &text[piece])).collect();
        prop_assert!(!bpe.raw_utf8());
        prop_assert_eq!(tokenizer.encode(&text, PLAIN), naive);
    }
}

/// Merges the best pair, the leftmost of equals, until there is none.
fn naive(tokenizer: &Tokenizer, piece: &str) -> Vec<u32> {
    let mut text = Vec::new();
    byte_level::encode(piece.as_bytes(), &mut text);
    let mut parts: Vec<String> = String::from_utf8(text).unwrap().chars().map(String::from).collect();
    for merge in MERGES {
        // All merges of one rank come before those of later ranks, as no merge makes pairs of an earlier one here.
        let (left, right) = merge.split_once(' ').unwrap();
        let mut at = 0;
        while at + 1 < parts.len() {
            if parts[at] == left && parts[at + 1] == right {
                let right = parts.remove(at + 1);
                parts[at] += &right;
            }
            at += 1;
        }
    }
    parts.iter().map(|part| tokenizer.token_id(part).unwrap()).collect()
}
