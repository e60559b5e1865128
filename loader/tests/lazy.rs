//! Opening reads the header, not the weights.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use common::*;
use tandem_loader::Gguf;

/// Writes `header` and makes the file `len` bytes long without writing the rest.
fn sparse(dir: &tempfile::TempDir, header: &[u8], len: u64) -> std::path::PathBuf {
    let path = dir.path().join("big.gguf");
    let mut file = File::create(&path).unwrap();
    file.write_all(header).unwrap();
    file.set_len(len).unwrap();
    path
}

#[test]
fn a_20_gb_file_opens_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let n = 5_000_000_000u64; // f32 weights
    let header = Builder::new().str("k", "v").tensor("big", &[50_000, n / 50_000], 0, vec![]).sections().0;
    let path = sparse(&dir, &header, header.len().next_multiple_of(32) as u64 + 4 * n);
    let start = Instant::now();
    let gguf = Gguf::open(&path).unwrap();
    let took = start.elapsed();
    let tensor = gguf.tensor("big").unwrap();
    assert_eq!(tensor.n_bytes() as u64, 4 * n);
    // Reading 20 GB takes seconds on any machine; opening takes well under a millisecond.
    assert!(took < Duration::from_millis(200), "{took:?}");
    assert_eq!(gguf.data(tensor)[tensor.n_bytes() - 1], 0);
    gguf.forget(tensor, 0..tensor.n_bytes());
    assert_eq!(gguf.data(tensor)[0], 0);
}

/// A header that claims as much as a 20 GB file of zeros can hold is refused without reading or copying it.
#[test]
fn a_20_gb_file_of_lies_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let big = 20_000_000_000u64;
    let len = |n: u64| n.to_le_bytes().to_vec();
    let lies = [
        Builder::new().value("k", STRING, len(19_000_000_000)),
        Builder::new().value("k", ARRAY, array(STRING, 2_000_000_000, &[])),
        Builder::new().value("k", ARRAY, array(U8, 19_000_000_000, &[])),
        Builder { n_kv: Some(1_000_000_000), ..Builder::new() },
        Builder { n_tensors: Some(500_000_000), ..Builder::new() },
        Builder { n_tensors: Some(1 << 20), ..Builder::new() },
        Builder { n_kv: Some(1 << 20), ..Builder::new() },
    ];
    for (i, lie) in lies.iter().enumerate() {
        let path = sparse(&dir, &lie.sections().0, big);
        let start = Instant::now();
        assert!(Gguf::open(&path).is_err(), "lie {i}");
        assert!(start.elapsed() < Duration::from_secs(1), "lie {i}: {:?}", start.elapsed());
    }
    let mut key = Builder { n_kv: Some(1), ..Builder::new() }.sections().0;
    key.extend(len(19_000_000_000));
    let start = Instant::now();
    assert!(Gguf::open(&sparse(&dir, &key, big)).is_err());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
