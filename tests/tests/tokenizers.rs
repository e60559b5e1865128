//! Tokenizers against reference token ids: whole vocabularies, and two real models.

#![allow(clippy::unwrap_used)] // a failed unwrap is how a test fails, in its helpers too

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_loader::Gguf;
use tandem_models::tokenizer::{EncodeOptions, Tokenizer};

/// The vocabularies beside the project, with the number of cases each has.
const VOCABULARIES: &[&str] =
    &["command-r", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "starcoder"];

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const PARSE: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const ALL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

fn load(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Tokenizer::from_metadata(gguf.metadata()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn vocabularies_give_the_reference_ids() {
    let Some(dir) = tandem_tests::fixtures("tokenizers") else { return };
    let mut wrong = Vec::new();
    for name in VOCABULARIES {
        let path = dir.join(format!("ggml-vocab-{name}.gguf"));
        let tokenizer = load(&path);
        let read = |ext: &str| std::fs::read_to_string(path.with_extension(format!("gguf.{ext}"))).unwrap();
        let (inputs, outputs) = (read("inp"), read("out"));
        let outputs: Vec<Vec<u32>> = outputs.lines().map(numbers).collect();
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").take(outputs.len()).collect();
        assert!(outputs.len() >= 40 && inputs.len() == outputs.len(), "{name}: {} cases", outputs.len());
        for (input, expected) in inputs.iter().zip(&outputs) {
            let ids = tokenizer.encode(input, PLAIN);
            if ids != *expected {
                wrong.push(format!("{name}: {input:?}\n  expected {expected:?}\n  found    {ids:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn numbers(line: &str) -> Vec<u32> {
    line.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn ids(case: &Value, key: &str) -> Vec<u32> {
    case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// All ids and texts of one case that differ from the reference.
fn check_case(tokenizer: &Tokenizer, case: &Value, wrong: &mut Vec<String>) {
    let input = unhex(case["input_hex"].as_str().unwrap());
    let shown = String::from_utf8_lossy(&input).into_owned();
    let found = [PLAIN, PARSE, ALL].map(|options| tokenizer.encode(&input, options));
    if case["category"] == "invalid_utf8" {
        // How damaged text is shown may differ, but none of the text around it may be lost.
        let (back, lossy) = (tokenizer.decode(&found[0], true), String::from_utf8_lossy(&input));
        assert_eq!(String::from_utf8_lossy(&back), lossy);
        return;
    }
    let keys = ["ids", "ids_parse_special", "ids_add_special_parse_special"];
    for (key, found) in keys.into_iter().zip(&found) {
        let expected = ids(case, key);
        if *found != expected {
            wrong.push(format!("{shown:?} {key}\n  expected {expected:?}\n  found    {found:?}"));
        }
    }
    let texts = [("detok_hex", "ids", true), ("detok_parse_special_hex", "ids_parse_special", true)];
    for (key, ids_key, special) in
        texts.into_iter().chain([("detok_parse_special_hidden_hex", "ids_parse_special", false)])
    {
        let Some(expected) = case[key].as_str().map(unhex) else { continue };
        let tokens = ids(case, ids_key);
        let found = tokenizer.decode(&tokens, special);
        if found != expected {
            wrong.push(format!("{shown:?} {key}: found {:?}", String::from_utf8_lossy(&found)));
        }
        let mut stream = tokenizer.stream(special);
        let mut streamed: String = tokens.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        assert_eq!(streamed, String::from_utf8_lossy(&expected), "{key}");
    }
}

fn check_cases(model: &str, cases: &str) {
    let (Some(dir), Some(path)) = (tandem_tests::fixtures("tokenizers"), tandem_tests::model(model)) else { return };
    let tokenizer = load(&path);
    let cases: Value = serde_json::from_slice(&std::fs::read(dir.join(cases)).unwrap()).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 70);
    let mut wrong = Vec::new();
    for case in cases {
        check_case(&tokenizer, case, &mut wrong);
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn smollm2_gives_the_reference_ids() {
    check_cases("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m.cases.json");
}

#[test]
fn gemma3_gives_the_reference_ids() {
    check_cases("gemma-3-270m-q4_k_m.gguf", "gemma3-270m.cases.json");
}

#[test]
fn malformed_files_never_panic() {
    let Some(dir) = tandem_tests::fixtures("malformed") else { return };
    let mut tokenizers = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let Ok(gguf) = Gguf::open(&path) else { continue };
        let Ok(tokenizer) = Tokenizer::from_metadata(gguf.metadata()) else {
            assert!(!path.ends_with("valid.gguf"));
            continue;
        };
        let ids = tokenizer.encode("then <s> é", ALL);
        assert!(ids.iter().all(|&id| tokenizer.is_valid(id)), "{}", path.display());
        tokenizers += 1;
    }
    assert!(tokenizers > 0, "not even the valid file has a tokenizer");
}

/// Every vocabulary that is there.
fn all_paths() -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if let Some(dir) = tandem_tests::fixtures("tokenizers") {
        paths.extend(VOCABULARIES.iter().map(|name| dir.join(format!("ggml-vocab-{name}.gguf"))));
    }
    paths.extend(
        ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"].into_iter().filter_map(tandem_tests::model),
    );
    paths
}

/// Loading must not be felt: the limit is far above what an optimised build takes on an idle machine, so that only a
/// change of complexity trips it. The figures are printed.
#[test]
fn loading_is_fast() {
    for path in all_paths() {
        let gguf = Gguf::open(&path).unwrap();
        let time = |_| {
            let start = Instant::now();
            let tokenizer = Tokenizer::from_metadata(gguf.metadata()).unwrap();
            (start.elapsed(), tokenizer.n_vocab())
        };
        let (best, n_vocab) = (0..5).map(time).min().unwrap();
        println!("{n_vocab:>7} tokens in {best:>10.2?}  {}", path.file_name().unwrap().display());
        assert!(best < Duration::from_millis(500), "{}: {best:?}", path.display());
    }
}

/// Texts that are quadratic for a careless implementation.
#[test]
fn a_megabyte_of_anything_is_encoded_in_time() {
    const N: usize = 1_000_000;
    let texts = [
        ("a", "a".repeat(N)),
        ("space", " ".repeat(N)),
        ("spaces, then a word", " ".repeat(N) + "x"),
        ("newline", "\n".repeat(N)),
        ("digit", "1".repeat(N)),
        ("punctuation", "!".repeat(N)),
        ("han", "漢".repeat(N / 3)),
        ("prose", "The quick brown fox, it's 42 — naïve café!\n  ".repeat(N / 46)),
        ("almost a special token", "<|im_".repeat(N / 5)),
    ];
    for path in all_paths() {
        let tokenizer = load(&path);
        for (name, text) in &texts {
            let start = Instant::now();
            let ids = tokenizer.encode(text, PARSE);
            let took = start.elapsed();
            println!("{:>10.2?} {:>8} tokens  {name}  {}", took, ids.len(), path.file_name().unwrap().display());
            assert!(took < Duration::from_secs(10), "{name}: {took:?}");
            assert_eq!(tokenizer.decode(&ids, true).len(), text.len(), "{name}");
        }
    }
}
