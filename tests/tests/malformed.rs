//! The malformed reference files: each is refused quickly, in a message that names what is wrong and where.

use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_loader::Gguf;

/// File, what its message must name, and the byte of the value at fault.
const EXPECTED: &[(&str, &[&str])] = &[
    ("bad_magic.gguf", &["'GGUX'", "at byte 0"]),
    ("version_99.gguf", &["version 99", "at byte 4"]),
    ("trunc_kv_key.gguf", &["tensor count", "truncated", "at byte 8"]),
    ("trunc_tensor_data.gguf", &["`blk.0.ffn_down.weight`", "outside the file", "at byte "]),
    ("huge_n_tensors.gguf", &["tensor count", "at byte 8"]),
    ("huge_key_length.gguf", &["metadata key 0", "at byte 32"]),
    ("array_length_overflow.gguf", &["metadata key `x.arr`", "does not fit", "at byte "]),
    ("kv_unknown_type.gguf", &["metadata key `x.y`", "unknown value type 42", "at byte "]),
    ("unknown_ggml_type.gguf", &["`blk.0.attn_q.weight`", "type id 200", "at byte "]),
    ("dims_overflow.gguf", &["`blk.0.attn_q.weight`", "overflows", "at byte "]),
    ("tensor_offset_beyond_eof.gguf", &["`blk.0.attn_q.weight`", "outside the file", "at byte "]),
    ("alignment_0.gguf", &["`general.alignment`", "at byte "]),
];

/// Well-formed files of impossible models: refused one level up.
const OF_THE_MODEL: &[&str] = &["missing_architecture.gguf", "wrong_type_block_count.gguf", "shape_mismatch.gguf"];

#[test]
fn each_malformed_file_is_refused() {
    let Some(dir) = tandem_tests::fixtures("malformed") else { return };
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    for case in manifest["cases"].as_array().unwrap() {
        let file = case["file"].as_str().unwrap();
        let start = Instant::now();
        let result = Gguf::open(&dir.join(file));
        assert!(start.elapsed() < Duration::from_secs(1), "{file} took {:?}", start.elapsed());
        if OF_THE_MODEL.contains(&file) {
            assert!(result.is_ok(), "{file}: {}", result.unwrap_err());
            continue;
        }
        let Some((_, words)) = EXPECTED.iter().find(|e| e.0 == file) else { panic!("{file} is not in this test") };
        let message = result.err().unwrap_or_else(|| panic!("{file} was opened")).to_string();
        for word in words.iter().chain(&[file]) {
            assert!(message.contains(word), "{file}: {message:?} does not say {word:?}");
        }
    }
}

#[test]
fn the_valid_file_opens() {
    let Some(dir) = tandem_tests::fixtures("malformed") else { return };
    let gguf = Gguf::open(&dir.join("valid.gguf")).unwrap();
    assert_eq!(gguf.metadata().str("general.architecture").unwrap(), Some("llama"));
    assert!(gguf.tensor("blk.0.attn_q.weight").is_some());
}
