//! One test per check of the header: what is refused, for which field, at which byte.

mod common;

use common::*;
use tandem_loader::{Error, GgmlType, Gguf, Value};

/// The message of a file that is not taken for a GGUF file of our kind.
fn not_gguf(bytes: Vec<u8>) -> String {
    match open(bytes) {
        Err(Error::NotGguf { message, .. }) => message,
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(_) => panic!("was opened"),
    }
}

/// A valid file with one F32 tensor `w` whose directory entry the test spoils.
fn with_tensor(dims: &[u64], ty: u32, offset: impl Into<Option<u64>>, n_bytes: usize) -> (Vec<u8>, usize) {
    let bytes = Builder::new().str("k", "v").tensor_at("w_name", dims, ty, offset, vec![0; n_bytes]).build();
    let dims_at = find(&bytes, "w_name") + 6;
    (bytes, dims_at)
}

const W: &str = "tensor `w_name`";

#[test]
fn everything_in_a_good_file_is_read() {
    for version in [2, 3] {
        let gguf = Builder { version, ..Builder::sample() }.open().unwrap();
        assert_eq!(gguf.version(), version);
        let meta = gguf.metadata();
        assert_eq!(meta.str("general.architecture").unwrap(), Some("llama"));
        assert_eq!(meta.str("empty").unwrap(), Some(""));
        assert_eq!(meta.u32("scalar.0").unwrap(), Some(200));
        assert_eq!(meta.get("scalar.1").and_then(Value::as_integer), Some(-128));
        assert_eq!(meta.u32("scalar.2").unwrap(), Some(60_000));
        assert_eq!(meta.get("scalar.3").and_then(Value::as_integer), Some(-300));
        assert_eq!(meta.u32("scalar.4").unwrap(), Some(4_000_000_000));
        assert_eq!(meta.get("scalar.5").and_then(Value::as_integer), Some(-5));
        assert_eq!(meta.f32("scalar.6").unwrap(), Some(1.5));
        assert_eq!(meta.bool("scalar.7").unwrap(), Some(true));
        assert_eq!(meta.u64("scalar.10").unwrap(), Some(u64::MAX));
        assert_eq!(meta.get("scalar.11").and_then(Value::as_integer), Some(i64::MIN.into()));
        assert_eq!(meta.get("scalar.12").and_then(Value::as_float), Some(-0.1));
        let tokens: Vec<&[u8]> = meta.string_array("tokens").unwrap().unwrap().strings().unwrap().collect();
        assert_eq!(tokens, [b"a".as_slice(), b"", &[0xff, 0xfe]]);
        assert_eq!(meta.f32_array("scores").unwrap(), Some(vec![1.0, -2.0]));
        assert!(meta.string_array("none").unwrap().unwrap().is_empty());
        assert_eq!(meta.i32_array("no_numbers").unwrap(), Some(vec![]));
        assert_eq!(meta.str("absent").unwrap(), None);

        let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["f32", "q8_0", "q4_k", "i64"]);
        let f32 = gguf.tensor("f32").unwrap();
        assert_eq!((f32.dims(), f32.ty, f32.n_bytes(), f32.offset() % 32), (&[2, 3][..], GgmlType::F32, 24, 0));
        assert_eq!(gguf.dequantize(f32).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(gguf.data(gguf.tensor("q8_0").unwrap()), [1; 136]);
        assert_eq!(gguf.data(gguf.tensor("i64").unwrap()), [7; 16]);
        use_all(&gguf);
    }
}

#[test]
fn wrong_magic() {
    let message = not_gguf(Builder { magic: *b"GGUX", ..Builder::sample() }.build());
    assert!(message.contains("'GGUX'") && message.contains("at byte 0"), "{message}");
    let message = not_gguf(Builder { magic: *b"lmgg", ..Builder::sample() }.build());
    assert!(message.contains("before GGUF"), "{message}");
    let message = not_gguf(b"<html><body>404".to_vec());
    assert!(message.contains("'<htm'"), "{message}");
}

#[test]
fn versions_that_are_not_read() {
    let message = |version| not_gguf(Builder { version, ..Builder::sample() }.build());
    assert!(message(1).contains("version 1"));
    assert!(message(99).contains("version 99"));
    assert!(message(0).contains("version 0") && !message(0).contains("big-endian"));
    for version in 1u32..=3 {
        assert!(message(version.swap_bytes()).contains(&format!("big-endian GGUF file (version {version})")));
    }
}

#[test]
fn counts_that_cannot_fit() {
    for n in [u64::MAX, 1 << 63, 1 << 40, 1 << 20] {
        refused(Builder { n_tensors: Some(n), ..Builder::sample() }.open(), "tensor count", 8, "cannot fit");
        refused(Builder { n_kv: Some(n), ..Builder::sample() }.open(), "metadata count", 16, "cannot fit");
    }
    // Small enough to pass that check, but more than there are.
    assert!(Builder { n_tensors: Some(5), ..Builder::sample() }.open().is_err());
    assert!(Builder { n_kv: Some(20), ..Builder::sample() }.open().is_err());
}

#[test]
fn counts_that_no_model_has() {
    let mut bytes = Builder { n_kv: Some((1 << 20) + 1), ..Builder::new() }.build();
    bytes.resize(20 << 20, 0);
    refused(open(bytes), "metadata count", 16, "at most 1048576");
}

#[test]
fn keys_of_impossible_length() {
    for len in [u64::MAX, i64::MAX as u64, 1 << 40, 1000] {
        let mut bytes = Builder::sample().build();
        bytes[24..32].copy_from_slice(&len.to_le_bytes());
        bytes.truncate(500);
        refused(open(bytes), "metadata key 0", 32, "truncated or damaged");
    }
    refused(Builder::new().str("", "v").open(), "metadata key 0", 24, "is empty");
    refused(Builder::new().str(&"k".repeat(65_536), "v").open(), "metadata key 0", 24, "length 65536");
    assert!(Builder::new().str(&"k".repeat(65_535), "v").open().is_ok());
    refused(Builder::new().value([b'k', 0xff], U8, vec![1]).open(), "metadata key 0", 24, "UTF-8 from its byte 1");
}

#[test]
fn string_values_of_impossible_length() {
    let huge = (1u64 << 62).to_le_bytes().to_vec();
    refused(Builder::new().value("k", STRING, huge).open(), "metadata key `k`", 45, "truncated or damaged");
    let long = Builder::new().str("k", vec![b' '; (64 << 20) + 1]);
    refused(long.open(), "metadata key `k`", 37, "at most 67108864");
}

#[test]
fn string_values_need_not_be_utf8() {
    let gguf = Builder::new().str("general.author", b"Andr\xe9").open().unwrap();
    assert_eq!(gguf.metadata().str("general.author").unwrap(), Some("Andr\u{fffd}"));
}

#[test]
fn any_byte_but_0_is_true() {
    for (byte, expected) in [(0, false), (1, true), (2, true), (255, true)] {
        let gguf = Builder::new().value("b", BOOL, vec![byte]).open().unwrap();
        assert_eq!(gguf.metadata().bool("b").unwrap(), Some(expected));
    }
}

#[test]
fn value_types_that_do_not_exist() {
    for ty in [13, 42, u32::MAX] {
        let file = Builder::new().value("k", ty, vec![0; 16]);
        refused(file.open(), "metadata key `k`", 33, &format!("unknown value type {ty}"));
    }
}

#[test]
fn arrays_that_cannot_be() {
    let file = |element, len, bytes: &[u8]| Builder::new().value("k", ARRAY, array(element, len, bytes)).open();
    refused(file(U64, (1 << 61) + 1, &[0; 64]), "metadata key `k`", 41, "does not fit");
    refused(file(U32, 1 << 62, &[0; 64]), "metadata key `k`", 41, "does not fit");
    refused(file(STRING, u64::MAX, &[0; 64]), "metadata key `k`", 41, "does not fit");
    refused(file(U8, 65, &[0; 64]), "metadata key `k`", 41, "array of 65 u8 does not fit in the 64 bytes");
    refused(file(13, 1, &[0; 64]), "metadata key `k`", 37, "unknown array element type 13");
    refused(file(ARRAY, 1, &array(U8, 1, &[0])), "metadata key `k`", 37, "arrays of arrays");
    // The second string of the array is longer than the file.
    let strings = [string("a"), (1u64 << 33).to_le_bytes().to_vec()].concat();
    refused(file(STRING, 2, &strings), "metadata key `k`", 66, "truncated or damaged");
    refused(file(U8, (64 << 20) + 1, &vec![0; (64 << 20) + 1]), "metadata key `k`", 41, "at most 67108864");
}

#[test]
fn keys_that_appear_twice() {
    let file = Builder::new().u32("k", 1).u32("other", 2).u32("k", 3);
    let bytes = file.build();
    let second = bytes.len() - 4 - 4 - 1 - 8;
    refused(open(bytes), "metadata key `k`", second, "appears twice");
}

#[test]
fn alignments_that_cannot_be() {
    for alignment in [0, 3, 33, u32::MAX] {
        let file = Builder::sample().u32("general.alignment", alignment);
        let at = find(&file.build(), "general.alignment") - 8;
        refused(file.open(), "metadata key `general.alignment`", at, "not a power of two");
    }
    let error = Builder::new().str("general.alignment", "32").open().unwrap_err().to_string();
    assert!(error.contains("`general.alignment`") && error.contains("at byte 24"), "{error}");
}

#[test]
fn every_alignment_works_even_one() {
    for alignment in [1, 2, 8, 64, 4096] {
        let mut file = Builder::sample().align(alignment);
        file.kv.insert(0, (b"shift".to_vec(), U8, vec![0])); // an odd header length
        let gguf = file.open().unwrap();
        assert_eq!(gguf.dequantize(gguf.tensor("f32").unwrap()).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        use_all(&gguf);
    }
}

#[test]
fn an_alignment_larger_than_the_file() {
    let file = Builder { alignment: 32, ..Builder::sample().u32("general.alignment", 1 << 31) };
    let error = file.open().unwrap_err().to_string();
    assert!(error.contains("tensor `"), "{error}");
    // Without tensors there is nothing to align.
    assert!(Builder::new().u32("general.alignment", 1 << 31).open().is_ok());
}

#[test]
fn files_without_tensors_or_metadata() {
    let gguf = Builder::new().open().unwrap();
    assert!(gguf.tensors().is_empty() && gguf.metadata().iter().len() == 0);
    assert_eq!(Builder::new().str("k", "v").open().unwrap().metadata().str("k").unwrap(), Some("v"));
    assert_eq!(Builder::new().tensor("w", &[1], 0, vec![0; 4]).open().unwrap().tensors().len(), 1);
}

#[test]
fn tensor_names_that_cannot_be() {
    refused(Builder::new().tensor("", &[1], 0, vec![0; 4]).open(), "name of tensor 0", 24, "is empty");
    refused(Builder::new().tensor([0xc3], &[1], 0, vec![0; 4]).open(), "name of tensor 0", 24, "UTF-8");
    let long = Builder::new().tensor("w".repeat(65_536), &[1], 0, vec![0; 4]);
    refused(long.open(), "name of tensor 0", 24, "length 65536");
}

#[test]
fn tensors_that_appear_twice() {
    let file = Builder::new().tensor("w", &[1], 0, vec![0; 4]).tensor("w", &[1], 0, vec![0; 4]);
    refused(file.open(), "tensor `w`", 24 + 8 + 1 + 4 + 8 + 4 + 8, "appears twice");
}

#[test]
fn numbers_of_dimensions() {
    for n in [5, 6, u32::MAX] {
        let (mut bytes, at) = with_tensor(&[1, 1, 1, 1], 0, None, 4);
        bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
        refused(open(bytes), W, at, &format!("has {n} dimensions"));
    }
    // None at all is a single number.
    let gguf = open(with_tensor(&[], 0, None, 4).0).unwrap();
    assert_eq!((gguf.tensors()[0].dims(), gguf.tensors()[0].n_bytes()), (&[1][..], 4));
}

#[test]
fn dimensions_of_zero() {
    for (i, dims) in [[0, 4, 4], [4, 0, 4], [4, 4, 0], [1 << 60, 0, 1 << 60]].iter().enumerate() {
        let (bytes, at) = with_tensor(dims, 0, None, 64);
        refused(open(bytes), W, at + 4 + 8 * [0, 1, 2, 1][i], "dimension of 0");
    }
}

#[test]
fn dimensions_that_overflow() {
    let cases: [(&[u64], usize); 5] = [
        (&[1 << 33, 1 << 33], 1),
        (&[1 << 63], 0),
        (&[u64::MAX], 0),
        (&[1 << 32, 1 << 16, 1 << 16], 2),
        (&[3, u64::MAX / 2], 1),
    ];
    for (dims, at_dim) in cases {
        let (bytes, at) = with_tensor(dims, 0, None, 64);
        refused(open(bytes), W, at + 4 + 8 * at_dim, "overflows");
    }
    // The count fits, its bytes do not.
    let (bytes, at) = with_tensor(&[1 << 62], 28, None, 64);
    refused(open(bytes), W, at + 12, "size in bytes overflows");
}

#[test]
fn tensor_types_that_cannot_be() {
    let refuse = |ty: u32, words: &str| {
        let (bytes, at) = with_tensor(&[256], ty, None, 2048);
        refused(open(bytes), W, at + 12, words);
    };
    for ty in [43, 200, u32::MAX] {
        refuse(ty, &format!("type id {ty} is unknown"));
    }
    for (ty, name) in [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (36, "IQ4_NL_4_4"),
        (37, "IQ4_NL_4_8"),
        (38, "IQ4_NL_8_8"),
    ] {
        refuse(ty, &format!("type {ty} ({name}) was removed"));
    }
    refuse(9, "type Q8_1, a format of intermediate results");
    refuse(15, "type Q8_K, a format of intermediate results");
}

#[test]
fn rows_that_are_not_whole_blocks() {
    for ty in GgmlType::ALL.iter().filter(|ty| ty.block_size() > 1) {
        let (bytes, at) = with_tensor(&[ty.block_size() as u64 * 3 / 2, 2], ty.id(), None, 4096);
        let words = if matches!(ty.name(), "Q8_1" | "Q8_K") { "intermediate" } else { "no multiple of the block size" };
        refused(open(bytes), W, at + 20, words);
    }
}

#[test]
fn offsets_that_cannot_be() {
    let (bytes, at) = with_tensor(&[4], 0, 4, 64);
    refused(open(bytes), W, at + 16, "offset 4 is no multiple of the alignment 32");
    let (bytes, at) = with_tensor(&[4], 0, u64::MAX - 31, 64);
    assert!(open(bytes).unwrap_err().to_string().contains("overflows"), "at {at}");
    let (bytes, at) = with_tensor(&[1 << 60], 27, (1u64 << 63) - 32, 64);
    assert!(open(bytes).unwrap_err().to_string().contains(W), "at {at}");
    // Data that ends one byte behind the file, and exactly with it.
    let (mut bytes, at) = with_tensor(&[4], 0, None, 16);
    assert!(open(bytes.clone()).is_ok());
    bytes.pop();
    refused(open(bytes), W, at - 6 - 8, "lies outside the file");
    let (bytes, at) = with_tensor(&[4], 0, 1 << 40, 64);
    refused(open(bytes), W, at - 6 - 8, "lies outside the file");
}

#[test]
fn tensors_that_overlap() {
    let file = |offset: u64| {
        Builder::new().tensor_at("a", &[16], 0, 0, vec![0; 64]).tensor_at("b", &[16], 0, offset, vec![0; 64])
    };
    for offset in [0, 32] {
        let at = find(&file(offset).build(), "b\x01") - 8;
        refused(file(offset).open(), "tensor `b`", at, "overlaps tensor `a`");
    }
    // Right behind one another, with a gap, and in another order than the directory's.
    for offset in [64, 96] {
        let mut file = file(offset);
        file.tensors[1].data = vec![0; 96];
        assert!(file.open().is_ok(), "{offset}");
        file.tensors.reverse();
        assert!(file.open().is_ok(), "{offset}");
    }
}

#[test]
fn messages_stay_on_one_line_of_bounded_length() {
    let evil = format!("\x1b[31m\nw{}", "x".repeat(60_000));
    let error = Builder::new().tensor(&evil, &[0], 0, vec![]).open().unwrap_err().to_string();
    assert!(error.len() < 400 && !error.contains(char::is_control), "{error:?}");
    let error = Builder::new().value(&evil, 99, vec![0; 8]).open().unwrap_err().to_string();
    assert!(error.len() < 400 && !error.contains(char::is_control), "{error:?}");
    let gguf = Builder::new().str("k", &evil).open().unwrap();
    let error = gguf.metadata().u32("k").unwrap_err().to_string();
    assert!(error.len() < 400 && !error.contains(char::is_control), "{error:?}");
}

#[test]
fn a_value_of_the_wrong_type_names_key_and_place() {
    let gguf = Builder::new().u32("pad", 1).str("llama.block_count", "two").open().unwrap();
    let error = gguf.metadata().u32("llama.block_count").unwrap_err().to_string();
    assert!(
        error.contains("`llama.block_count`") && error.contains("string two") && error.contains("at byte 43"),
        "{error}"
    );
    assert!(gguf.metadata().array("pad").is_err() && gguf.metadata().str("pad").is_err());
    assert!(gguf.metadata().f32_array("pad").is_err() && gguf.metadata().bool("pad").is_err());
}

#[test]
fn paths_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &std::path::Path| Gguf::open(path).unwrap_err().to_string();
    assert!(message(dir.path()).contains("is a directory"));
    assert!(message(&dir.path().join("none.gguf")).contains("cannot open"));
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, []).unwrap();
    assert!(message(&empty).contains("is empty"));
    #[cfg(unix)]
    {
        let pipe = dir.path().join("pipe.gguf");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(message(&pipe).contains("no regular file"), "opening must not wait for a writer");
    }
}
