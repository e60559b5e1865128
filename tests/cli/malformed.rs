//! Damaged files: refused by every command that opens them, with exit code 3 and a message that names the fault.

use std::path::Path;

use tandem_loader::{GgmlType, Gguf, Metadata, TensorSpec, Value, Writer};

use crate::command::{arg, tandem, tandem_with};
use crate::tiny;

#[test]
fn reference_files() {
    let Some(folder) = tandem_tests::fixtures("malformed") else { return };
    let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let out = tempfile::tempdir().unwrap();
    let logits = out.path().join("logits");
    for case in manifest["cases"].as_array().unwrap() {
        let file = case["file"].as_str().unwrap();
        let path = folder.join(file);
        for args in [&["info"][..], &["run", "hi"], &["logits", "--tokens", "1,2", "--out", arg(&logits)]] {
            let ran = tandem(&[args, &["-m", arg(&path)]].concat());
            if case["expect"] == "reject" {
                let stderr = ran.fails(3);
                assert!(stderr.contains(file) && stderr.contains('`') || stderr.contains("byte"), "{file}: {stderr}");
            } else {
                assert!([0, 3].contains(&ran.code), "{file}: {}", ran.stderr);
            }
        }
    }
    assert!(!logits.exists());
}

/// Our own damage, so that this needs no reference data.
#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let whole = std::fs::read(tiny::model()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    for keep in [0, 3, 20, 100, 1000, whole.len() / 2, whole.len() - 64] {
        std::fs::write(&path, &whole[..keep]).unwrap();
        let stderr = tandem(&["info", "-m", arg(&path)]).fails(3);
        assert!(stderr.contains("cut.gguf"), "{keep}: {stderr}");
    }
}

#[test]
fn faults_of_the_model_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("renamed.gguf");
    let rename = |from: &[u8], to: &[u8]| {
        let mut bytes = std::fs::read(tiny::model()).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(&path, bytes).unwrap();
    };
    for (from, to, says) in [
        ("general.architecture", "general.architectura", "`general.architecture`"),
        ("llama.block_count", "llama.block_kount", "`llama.block_count`"),
        ("blk.1.attn_k.weight", "blk.1.attn_x.weight", "`blk.1.attn_k.weight`"),
    ] {
        rename(from.as_bytes(), to.as_bytes());
        for args in [&["info"][..], &["run", "hi"]] {
            let stderr = tandem(&[args, &["-m", arg(&path)]].concat()).fails(3);
            assert!(stderr.contains(says) && stderr.contains("renamed.gguf"), "{args:?}: {stderr}");
        }
    }
    // Another architecture can be looked at, and not be run.
    rename(b"llama\x0c", b"lama2\x0c");
    assert!(tandem(&["info", "-m", arg(&path)]).ok().contains("cannot be run"));
    assert!(tandem(&["run", "hi", "-m", arg(&path)]).fails(3).contains("`lama2`"));
}

#[test]
fn a_broken_template_is_in_the_way_of_conversations_only() {
    // Of the same length, so that nothing else moves.
    let whole = b"{% endfor %}";
    let mut bytes = std::fs::read(tiny::model()).unwrap();
    let at = bytes.windows(whole.len()).position(|bytes| bytes == whole).unwrap();
    bytes[at..at + whole.len()].copy_from_slice(b"{% endfox %}");
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, bytes).unwrap();
    for command in ["run", "chat"] {
        let stderr = tandem_with(&[command, "-m", arg(&broken), "-n", "2"], b"hi").fails(3);
        assert!(stderr.contains("broken.gguf: chat template, line 3"), "{stderr}");
    }
    let args = ["run", "-m", arg(&broken), "-n", "2", "--raw", "--temp", "0", "hi"];
    let intact = args.map(|word| if word == arg(&broken) { tiny::model() } else { word });
    assert_eq!(tandem(&args).ok(), tandem(&intact).ok());
}

/// A tensor of a file: its place in it, and its data.
type Tensor = (TensorSpec, Vec<u8>);

/// The model with its metadata and tensors changed.
fn write_changed(path: &Path, change: impl FnOnce(&mut Metadata, &mut Vec<Tensor>)) {
    let gguf = Gguf::open(Path::new(tiny::model())).unwrap();
    let mut metadata = gguf.metadata().clone();
    let tensors = gguf.tensors().iter();
    let mut tensors: Vec<Tensor> =
        tensors.map(|tensor| (TensorSpec::like(tensor, tensor.ty), gguf.data(tensor).to_vec())).collect();
    change(&mut metadata, &mut tensors);
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = Writer::replace(path, &metadata, &specs).unwrap();
    tensors.iter().for_each(|(_, data)| writer.write(data).unwrap());
    writer.finish().unwrap().publish().unwrap();
}

#[test]
fn metadata_of_another_type_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("typed.gguf");
    write_changed(&path, |metadata, _| metadata.set("general.alignment", Value::U32(32)));
    let mut bytes = std::fs::read(&path).unwrap();
    let key = b"general.alignment";
    let at = bytes.windows(key.len()).position(|bytes| bytes == key).unwrap() + key.len();
    // The value's type: F32 in place of U32.
    bytes[at] = 6;
    std::fs::write(&path, bytes).unwrap();
    let stderr = tandem(&["info", "-m", arg(&path)]).fails(3);
    assert!(stderr.contains("typed.gguf") && stderr.contains("`general.alignment`"), "{stderr}");
}

#[test]
fn tensors_that_would_be_missed_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("more.gguf");
    let args = ["run", "-n", "2", "--temp", "0", "hi", "-m"];
    let with = |name: &str| {
        let spec = TensorSpec { name: name.to_owned(), ty: GgmlType::F32, dims: vec![4] };
        write_changed(&path, |_, tensors| tensors.push((spec, vec![0; 16])));
        tandem(&[&args[..], &[arg(&path)]].concat())
    };
    for name in ["blk.0.attn_sinks.weight", "blk.1.attn_norm.bias", "output_norm.bias", "rope_factors_long.weight"] {
        let stderr = with(name).fails(3);
        assert!(stderr.contains("more.gguf") && stderr.contains(&format!("`{name}`")), "{stderr}");
    }
    let text = tandem(&[&args[..], &[tiny::model()]].concat()).ok();
    for name in ["blk.2.nextn.eh_proj.weight", "v.patch_embd.weight", "blk.0.attn_q.input_scale"] {
        assert_eq!(with(name).ok(), text, "{name}");
    }
}

#[test]
fn a_vocabulary_beyond_the_embedding_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.gguf");
    write_changed(&path, |_, tensors| {
        for (spec, data) in tensors.iter_mut().filter(|(spec, _)| spec.dims.last() == Some(&tiny::N_VOCAB)) {
            let row = data.len() / tiny::N_VOCAB;
            data.truncate(row * 100);
            spec.dims[1] = 100;
        }
    });
    let stderr = tandem(&["run", "-m", arg(&path), "--raw", "hi"]).fails(3);
    assert!(stderr.contains("short.gguf") && stderr.contains("rows for 100 only"), "{stderr}");
}
