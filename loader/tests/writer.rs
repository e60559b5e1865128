//! Files that are written, and files that are not.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

mod common;

use std::path::Path;

use common::*;
use tandem_loader::{ArrayValue, Error, GgmlType, Gguf, Metadata, TensorSpec, Value, Writer};

fn spec(name: &str, ty: GgmlType, dims: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), ty, dims: dims.to_vec() }
}

/// What is in a folder.
fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Writes all of `gguf` again, data in pieces of `piece` bytes.
fn copy(gguf: &Gguf, metadata: &Metadata, path: &Path, piece: usize) {
    let specs: Vec<TensorSpec> = gguf.tensors().iter().map(|t| TensorSpec::like(t, t.ty)).collect();
    let mut writer = Writer::create(path, metadata, &specs).unwrap();
    let data: Vec<u8> = gguf.tensors().iter().flat_map(|t| gguf.data(t).to_vec()).collect();
    data.chunks(piece).for_each(|bytes| writer.write(bytes).unwrap());
    writer.finish().unwrap().publish().unwrap();
}

#[test]
fn a_file_written_again_is_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    for (i, (alignment, piece)) in [(None, 7), (Some(8), 1000), (Some(256), 1)].into_iter().enumerate() {
        let mut file = Builder::sample();
        if let Some(alignment) = alignment {
            file = file.align(alignment);
        }
        let gguf = file.open().unwrap();
        let path = folder.path().join(format!("{i}.gguf"));
        copy(&gguf, gguf.metadata(), &path, piece);
        let mut expected = file.build();
        // Tensor data ends on an aligned place too, as llama.cpp writes it.
        expected.resize(expected.len().next_multiple_of(file.alignment), 0);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
}

#[test]
fn tensors_can_come_in_any_order() {
    let gguf = Builder::sample().open().unwrap();
    let specs: Vec<TensorSpec> = gguf.tensors().iter().map(|t| TensorSpec::like(t, t.ty)).collect();
    let folder = tempfile::tempdir().unwrap();
    let [forward, backward] = ["forward", "backward"].map(|name| folder.path().join(name));
    copy(&gguf, gguf.metadata(), &forward, 5);
    let mut writer = Writer::create(&backward, gguf.metadata(), &specs).unwrap();
    for (i, tensor) in gguf.tensors().iter().enumerate().rev() {
        writer.select(i).unwrap();
        // Begun, and begun again.
        writer.write(&gguf.data(tensor)[..1]).unwrap();
        writer.select(i).unwrap();
        gguf.data(tensor).chunks(3).for_each(|bytes| writer.write(bytes).unwrap());
    }
    writer.finish().unwrap().publish().unwrap();
    assert_eq!(std::fs::read(&forward).unwrap(), std::fs::read(&backward).unwrap());
    // With the first two missing it goes on there; all of the first is not enough.
    let missing = folder.path().join("missing");
    let mut writer = Writer::create(&missing, gguf.metadata(), &specs).unwrap();
    writer.select(1).unwrap();
    gguf.tensors()[1..].iter().for_each(|tensor| writer.write(gguf.data(tensor)).unwrap());
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("tensor 0 is not complete"), "{error}");
    assert!(!missing.exists());
}

#[test]
fn data_of_a_tensor_can_be_replaced() {
    let mut gguf = Builder::sample().open().unwrap();
    let tensor = gguf.tensors()[0].clone();
    let wide = GgmlType::F32.row_bytes(tensor.n_elements()).unwrap();
    let before = gguf.clone();
    gguf.replace(&tensor.name, GgmlType::F32, vec![7; wide]).unwrap();
    let replaced = gguf.tensor(&tensor.name).unwrap();
    assert_eq!((replaced.ty, gguf.data(replaced), replaced.dims()), (GgmlType::F32, &vec![7; wide][..], tensor.dims()));
    let old = before.tensor(&tensor.name).unwrap();
    assert_eq!((old, before.data(old).len()), (&tensor, tensor.n_bytes()));
    let error = gguf.replace(&tensor.name, GgmlType::F32, vec![7; wide + 1]).unwrap_err().to_string();
    assert!(error.contains(&tensor.name) && error.contains("bytes"), "{error}");
    assert!(gguf.replace("none", GgmlType::F32, vec![]).unwrap_err().to_string().contains("none"));
}

#[test]
fn metadata_can_be_changed() {
    let gguf = Builder::sample().open().unwrap();
    let mut metadata = gguf.metadata().clone();
    metadata.remove("tokens");
    metadata.remove("tokens");
    metadata.set("scalar.4", Value::F32(0.5));
    metadata.set("general.new", Value::String("ü".into()));
    metadata.set("names", Value::Array(ArrayValue::of_strings(["one", "", "three"])));
    metadata.remove("general.architecture");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.gguf");
    copy(&gguf, &metadata, &path, 100);
    let read = Gguf::open(&path).unwrap();
    let old: Vec<&str> =
        gguf.metadata().iter().map(|e| e.0).filter(|k| !["tokens", "general.architecture"].contains(k)).collect();
    let new: Vec<&str> = read.metadata().iter().map(|e| e.0).collect();
    assert_eq!(new, [old.as_slice(), &["general.new", "names"]].concat());
    assert_eq!(read.metadata().f32("scalar.4").unwrap(), Some(0.5));
    assert_eq!(read.metadata().str("general.new").unwrap(), Some("ü"));
    let names: Vec<&[u8]> = read.metadata().string_array("names").unwrap().unwrap().strings().unwrap().collect();
    assert_eq!(names, [&b"one"[..], b"", b"three"]);
    assert_eq!(read.metadata().get("tokens").map(ToString::to_string), None);
}

#[test]
fn what_is_not_whole_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let specs = [spec("a", GgmlType::F32, &[4]), spec("b", GgmlType::Q8_0, &[32, 2])];
    let create = || Writer::create(&path, &Metadata::default(), &specs).unwrap();
    // Dropped, as after an error elsewhere.
    create().write(&[0; 16]).unwrap();
    // Too little data.
    let mut writer = create();
    writer.write(&[0; 16 + 67]).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, Error::Write { .. }) && error.to_string().contains("tensor 1"), "{error}");
    // Too much.
    assert!(create().write(&[0; 16 + 68 + 1]).unwrap_err().to_string().contains("more tensor data"));
    // Whole, and never given its name.
    let mut writer = create();
    writer.write(&[0; 16 + 68]).unwrap();
    drop(writer.finish().unwrap());
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn names_that_are_taken_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut writer = Writer::create(&path, &Metadata::default(), &[spec("a", GgmlType::F32, &[1])]).unwrap();
    writer.write(&[0; 4]).unwrap();
    std::fs::write(&path, "mine").unwrap();
    let error = writer.finish().unwrap().publish().unwrap_err();
    assert!(matches!(error, Error::Exists { .. }) && error.to_string().contains("m.gguf"), "{error}");
    assert!(matches!(Writer::create(&path, &Metadata::default(), &[]), Err(Error::Exists { .. })));
    assert_eq!((std::fs::read(&path).unwrap().as_slice(), names(folder.path()).len()), (&b"mine"[..], 1));
    let nowhere = folder.path().join("no/such/folder/m.gguf");
    assert!(matches!(Writer::create(&nowhere, &Metadata::default(), &[]), Err(Error::Write { .. })));
}

#[test]
fn impossible_tensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for tensor in [
        spec("half a block", GgmlType::Q8_0, &[48, 2]),
        spec("overflow", GgmlType::F32, &[1 << 40, 1 << 30]),
        spec("no sizes", GgmlType::F32, &[]),
    ] {
        let error = Writer::create(&path, &Metadata::default(), &[tensor]).unwrap_err();
        assert!(matches!(error, Error::Write { .. }), "{error}");
    }
    let mut metadata = Metadata::default();
    metadata.set("general.alignment", Value::U32(24));
    assert!(matches!(Writer::create(&path, &metadata, &[]), Err(Error::Metadata { .. })));
    assert_eq!(names(folder.path()), [""; 0]);
}
