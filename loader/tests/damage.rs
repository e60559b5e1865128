//! Damaged files: an error or a usable file, never a panic, a hang, or memory out of proportion.

mod common;

use common::*;
use proptest::prelude::*;
use tandem_loader::Error;

/// Opens and, where that succeeds, reads everything.
fn survive(bytes: Vec<u8>) -> bool {
    open(bytes).inspect(|gguf| assert!(use_all(gguf) > 0)).is_ok()
}

#[test]
fn cut_at_every_length() {
    let whole = Builder::sample().build();
    assert!(survive(whole.clone()));
    for len in 0..whole.len() {
        match open(whole[..len].to_vec()) {
            Ok(_) => panic!("opened although cut to {len} of {} bytes", whole.len()),
            Err(Error::Malformed { offset, .. }) => assert!(offset <= len as u64),
            Err(other) => panic!("cut to {len}: {other}"),
        }
    }
}

#[test]
fn every_header_byte_changed() {
    let file = Builder::sample();
    let whole = file.build();
    let (header, _) = file.sections();
    let mut opened = 0;
    for at in 0..header.len() {
        let old = whole[at];
        for new in [0, 1, 2, 9, 0x7f, 0x80, 0xff, old ^ 1, old ^ 0x80, old.wrapping_add(1), old.wrapping_sub(1)] {
            let mut bytes = whole.clone();
            bytes[at] = new;
            opened += usize::from(survive(bytes));
        }
    }
    // Many changes are harmless (letters of names, values): the test reaches the code behind the checks too.
    assert!(opened > 1000, "{opened}");
}

#[test]
fn every_aligned_and_unaligned_u64_changed() {
    let file = Builder::sample();
    let whole = file.build();
    let (header, _) = file.sections();
    for at in 4..header.len() - 8 {
        for value in [0, 1, 0xffff_ffff, 1 << 31, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 31, i64::MAX as u64] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            survive(bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_after_the_magic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        survive([b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
    }

    #[test]
    fn small_counts_and_random_bytes(
        (n_tensors, n_kv) in (0u64..4, 0u64..4),
        tail in proptest::collection::vec(prop_oneof![3 => 0u8..16, 1 => any::<u8>()], 0..600),
    ) {
        let counts = [n_tensors.to_le_bytes(), n_kv.to_le_bytes()].concat();
        survive([b"GGUF\x03\0\0\0".as_slice(), &counts, &tail].concat());
    }

    /// Several edits at once: bytes set, stretches removed, doubled or swapped.
    #[test]
    fn mutations(edits in proptest::collection::vec((0u8..4, any::<u16>(), any::<u16>(), any::<u8>()), 1..8)) {
        let mut bytes = Builder::sample().build();
        for (what, at, len, value) in edits {
            let at = at as usize % bytes.len();
            let end = (at + len as usize % 40).min(bytes.len());
            match what {
                0 => bytes[at] = value,
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let stretch = bytes[at..end].to_vec();
                    bytes.splice(at..at, stretch);
                }
                _ => bytes[at..end].reverse(),
            }
            if bytes.is_empty() {
                break;
            }
        }
        survive(bytes);
    }

    /// Metadata and tensors of any content come back as they were written.
    #[test]
    fn what_is_written_is_read(
        strings in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..20),
        numbers in proptest::collection::vec(any::<u32>(), 0..20),
        dims in proptest::collection::vec(1u64..5, 1..=4),
        (alignment, version) in (0u32..10, 2u32..=3),
    ) {
        let encoded: Vec<u8> = strings.iter().flat_map(string).collect();
        let n: u64 = dims.iter().product();
        let data: Vec<u8> = (0..n * 4).map(|i| i as u8).collect();
        let file = Builder { version, ..Builder::new() }
            .align(1 << alignment)
            .value("s", ARRAY, array(STRING, strings.len() as u64, &encoded))
            .value("n", ARRAY, array(U32, numbers.len() as u64, &numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>()))
            .tensor("first", &[1], 24, vec![9])
            .tensor("w", &dims, 0, data.clone());
        let gguf = file.open().unwrap();
        let read: Vec<Vec<u8>> =
            gguf.metadata().string_array("s").unwrap().unwrap().strings().unwrap().map(<[u8]>::to_vec).collect();
        prop_assert_eq!(read, strings);
        let read: Vec<i128> =
            gguf.metadata().array("n").unwrap().unwrap().values().filter_map(|v| v.as_integer()).collect();
        prop_assert_eq!(read, numbers.iter().map(|&n| n.into()).collect::<Vec<i128>>());
        let tensor = gguf.tensor("w").unwrap();
        prop_assert_eq!(tensor.dims(), dims.iter().map(|&d| d as usize).collect::<Vec<_>>());
        prop_assert_eq!(gguf.data(tensor), data);
    }
}
