//! Models in several files.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use tandem_loader::{Error, Gguf};

const N: u64 = 3;

fn part_path(dir: &Path, no: u64) -> PathBuf {
    dir.join(format!("model-{:05}-of-{N:05}.gguf", no + 1))
}

/// Part `no` as llama-gguf-split writes it: metadata in the first, two tensors in each.
fn part(no: u64) -> Builder {
    let mut file = Builder::new();
    if no == 0 {
        file = file.str("general.architecture", "llama");
    }
    let u16_value = |v: u64| (v as u16).to_le_bytes().to_vec();
    file.value("split.no", 2, u16_value(no))
        .value("split.count", 2, u16_value(N))
        .value("split.tensors.count", 5, (2 * N as i32).to_le_bytes().to_vec())
        .tensor(format!("a{no}"), &[8], 0, vec![no as u8; 32])
        .tensor(format!("b{no}"), &[4], 0, vec![no as u8 + 100; 16])
}

fn write_all(dir: &Path) {
    (0..N).for_each(|no| part(no).write(&part_path(dir, no)));
}

/// The file named by a split error, and its message.
#[track_caller]
fn split_error(path: &Path) -> (PathBuf, String) {
    match Gguf::open(path) {
        Err(Error::Split { path, message }) => (path, message),
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(_) => panic!("was opened"),
    }
}

#[test]
fn all_parts_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    let gguf = Gguf::open(&part_path(dir.path(), 0)).unwrap();
    assert_eq!(gguf.metadata().str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.paths().collect::<Vec<_>>(), (0..N).map(|no| part_path(dir.path(), no)).collect::<Vec<_>>());
    assert_eq!(gguf.file_bytes(), (0..N).map(|no| part(no).build().len() as u64).sum::<u64>());
    for no in 0..N as usize {
        let tensor = gguf.tensor(&format!("b{no}")).unwrap();
        assert_eq!((tensor.part(), gguf.data(tensor)), (no, &[no as u8 + 100; 16][..]));
    }
    assert_eq!(gguf.tensors().len(), 2 * N as usize);
    use_all(&gguf);
}

#[test]
fn a_missing_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    std::fs::remove_file(part_path(dir.path(), 1)).unwrap();
    let (path, message) = split_error(&part_path(dir.path(), 0));
    assert_eq!(path, part_path(dir.path(), 1));
    assert!(message.contains("part 2 of 3 is missing"), "{message}");
}

#[test]
fn another_part_than_the_first_points_to_the_first() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    let (path, message) = split_error(&part_path(dir.path(), 1));
    assert_eq!(path, part_path(dir.path(), 1));
    assert!(message.contains("part 2 of 3") && message.contains("model-00001-of-00003.gguf"), "{message}");
}

#[test]
fn a_renamed_first_part_says_so() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    for name in ["model.gguf", "model-00001-of-00004.gguf", "model-1-of-3.gguf", "00001-of-00003.gguf"] {
        let renamed = dir.path().join(name);
        std::fs::copy(part_path(dir.path(), 0), &renamed).unwrap();
        let (path, message) = split_error(&renamed);
        assert_eq!(path, renamed);
        assert!(message.contains("-00001-of-00003.gguf"), "{message}");
    }
}

#[test]
fn a_part_in_the_place_of_another() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    for wrong in [0, 2] {
        part(wrong).write(&part_path(dir.path(), 1));
        let (path, message) = split_error(&part_path(dir.path(), 0));
        assert_eq!(path, part_path(dir.path(), 1));
        assert!(message.contains(&format!("`split.no` is {wrong} (expected: 1)")), "{message}");
    }
    // The first part under the name of the second.
    part(0).write(&part_path(dir.path(), 1));
    let (path, _) = split_error(&part_path(dir.path(), 1));
    assert_eq!(path, part_path(dir.path(), 1));
}

#[test]
fn a_part_of_another_model() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    // An ordinary file, a part of another count, a part of a model with another number of tensors.
    let mut other_total = part(1);
    other_total.kv[2].2 = 99i32.to_le_bytes().to_vec();
    let mut other_count = part(1);
    other_count.kv[1].2 = vec![9, 0];
    for (file, words) in [
        (Builder::sample(), "`split.no` is missing"),
        (other_count, "`split.count` is 9"),
        (other_total, "`split.tensors.count` is 99"),
    ] {
        file.write(&part_path(dir.path(), 1));
        let (path, message) = split_error(&part_path(dir.path(), 0));
        assert_eq!(path, part_path(dir.path(), 1));
        assert!(message.contains(words), "{message}");
    }
    // The same tensors twice.
    let mut twice = part(1);
    twice.tensors = part(0).tensors;
    twice.write(&part_path(dir.path(), 1));
    let error = Gguf::open(&part_path(dir.path(), 0)).unwrap_err().to_string();
    assert!(error.contains("model-00002") && error.contains("`a0`") && error.contains("twice"), "{error}");
}

#[test]
fn a_part_with_too_few_tensors() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    let mut short = part(2);
    short.tensors.pop();
    short.write(&part_path(dir.path(), 2));
    let (_, message) = split_error(&part_path(dir.path(), 0));
    assert!(message.contains("is 6") && message.contains("hold 5"), "{message}");
}

#[test]
fn a_damaged_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    let mut bytes = part(2).build();
    bytes.pop();
    std::fs::write(part_path(dir.path(), 2), bytes).unwrap();
    let error = Gguf::open(&part_path(dir.path(), 0)).unwrap_err().to_string();
    assert!(error.contains("model-00003-of-00003.gguf") && error.contains("`b2`"), "{error}");
}

#[test]
fn counts_that_are_not_believable() {
    let dir = tempfile::tempdir().unwrap();
    let path = part_path(dir.path(), 0);
    Builder::new().value("split.count", U64, u64::MAX.to_le_bytes().to_vec()).write(&path);
    assert!(split_error(&path).1.contains("not believable"));
    Builder::new().str("split.count", "3").write(&path);
    assert!(Gguf::open(&path).unwrap_err().to_string().contains("`split.count`"));
    for count in [0, 1] {
        Builder::new().u32("split.count", count).write(&path);
        assert!(Gguf::open(&path).is_ok(), "a merged file keeps the key");
    }
}
