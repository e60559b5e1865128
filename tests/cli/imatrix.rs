//! `imatrix`: the sums themselves, and going on after a stop.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tandem_loader::Gguf;

use crate::command::{arg, command, tandem};
use crate::tiny;

/// A path of this process.
fn path(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("imatrix-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

fn text(name: &str, lines: usize) -> PathBuf {
    let text: String = (0..lines).map(|i| format!("line {i} of a text that matrices see\n")).collect();
    std::fs::write(path(name), text).unwrap();
    path(name)
}

/// A tensor of a file as f32.
fn tensor(model: &Path, name: &str) -> Vec<f64> {
    let out = path(&format!("{}-{name}", model.file_name().unwrap().display()));
    tandem(&["info", "-m", arg(model), "--dump-tensor", name, "--out", arg(&out)]).ok();
    let bytes = std::fs::read(out).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

fn imatrix(text: &Path, out: &Path, more: &[&str]) -> crate::command::Ran {
    let args = ["imatrix", "-m", tiny::model(), "-c", "32", "-f", arg(text), "-o", arg(out)];
    tandem(&[&args[..], more].concat())
}

#[track_caller]
fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 2e-6 * want, "{got} {want}");
    }
}

/// What goes into the first layer's projections follows from the embedding and the norm alone.
#[test]
fn sums_of_the_first_layer_are_those_of_the_normed_embeddings() {
    let (text, out) = (text("first.txt", 20), path("first.gguf"));
    imatrix(&text, &out, &["--chunks", "3"]).ok();
    let ids = tandem(&["tokenize", "-m", tiny::model(), "-f", arg(&text)]).json();
    let ids: Vec<usize> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as usize).collect();
    let model = Path::new(tiny::model());
    let (embeddings, norm) = (tensor(model, "token_embd.weight"), tensor(model, "blk.0.attn_norm.weight"));
    let n = norm.len();
    let mut want = vec![0.0; n];
    for id in &ids[..96] {
        let x = &embeddings[id * n..(id + 1) * n];
        let scale = x.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-5;
        want.iter_mut().zip(x).zip(&norm).for_each(|((sum, x), w)| *sum += (x * w).powi(2) / scale);
    }
    for part in ["attn_q", "attn_k", "attn_v"] {
        close(&tensor(&out, &format!("blk.0.{part}.weight.in_sum2")), &want);
    }
    let info = tandem(&["info", "-m", arg(&out), "--tensors", "--json"]).json();
    assert_eq!(info["metadata"]["general.type"], "imatrix");
    assert_eq!(
        (&info["metadata"]["imatrix.chunk_count"], &info["metadata"]["imatrix.chunk_size"]),
        (&3.into(), &32.into())
    );
    assert_eq!(info["metadata"]["imatrix.datasets"][0], arg(&text));
    // Seven matrices in each of two layers, and the output, which is the embedding too; sums and counts.
    let tensors = info["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 30);
    for t in tensors {
        let name = t["name"].as_str().unwrap();
        let n_in = if name.contains("ffn_down") { 2 * n } else { n };
        assert_eq!(t["shape"], serde_json::json!([if name.ends_with(".counts") { 1 } else { n_in }, 1]), "{name}");
        assert_eq!(t["type"], "F32");
        if name.ends_with(".counts") {
            assert_eq!(tensor(&out, name), [96.0], "{name}");
        }
    }
    let without = path("no-output.gguf");
    imatrix(&text, &without, &["--chunks", "1", "--process-output=false"]).ok();
    let info = tandem(&["info", "-m", arg(&without), "--tensors", "--json"]).json();
    assert_eq!(info["tensors"].as_array().unwrap().len(), 28);
}

/// All sums of a file, in order.
fn sums(file: &Path) -> Vec<f64> {
    let info = tandem(&["info", "-m", arg(file), "--tensors", "--json"]).json();
    let names = info["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap().to_owned());
    names.flat_map(|name| tensor(file, &name)).collect()
}

#[test]
fn a_stopped_run_goes_on() {
    let (text, whole, parts) = (text("resume.txt", 30), path("whole.gguf"), path("parts.gguf"));
    imatrix(&text, &whole, &[]).ok();
    imatrix(&text, &parts, &["--chunks", "2"]).ok();
    let again = imatrix(&text, &parts, &["--chunks", "2"]).fails(2);
    assert!(again.contains("--resume"), "{again}");
    let first = sums(&parts);
    imatrix(&text, &parts, &["--resume"]).ok();
    close(&sums(&parts), &sums(&whole));
    assert!(first.iter().zip(sums(&parts)).all(|(first, all)| *first < all));
    // Nothing is left to do.
    let ran = imatrix(&text, &parts, &["--resume"]);
    assert!(ran.code == 0 && ran.stderr.contains("nothing is left to do"), "{}", ran.stderr);
    close(&sums(&parts), &sums(&whole));
    let without = path("parts-no-output.gguf");
    imatrix(&text, &without, &["--chunks", "2", "--process-output=false"]).ok();
    imatrix(&text, &without, &["--resume", "--process-output=false"]).ok();
    assert!(imatrix(&text, &without, &["--resume"]).fails(2).contains("--process-output"));
}

#[test]
fn a_file_beside_is_left_alone() {
    let (text, out) = (text("beside.txt", 30), path("beside.gguf"));
    let other = path("beside.gguf.new");
    std::fs::write(&other, "precious").unwrap();
    imatrix(&text, &out, &["--chunks", "1"]).ok();
    imatrix(&text, &out, &["--resume", "--chunks", "2"]).ok();
    assert_eq!(std::fs::read(other).unwrap(), b"precious");
}

/// The file with a number of a tensor changed.
fn changed(file: &Path, name: &str, at: usize, value: f32) -> PathBuf {
    let gguf = Gguf::open(file).unwrap();
    let offset = gguf.tensor(name).unwrap().offset() + 4 * at;
    let mut bytes = std::fs::read(file).unwrap();
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    let changed = path("changed.gguf");
    std::fs::write(&changed, bytes).unwrap();
    changed
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let (text, out) = (text("damaged.txt", 30), path("damaged.gguf"));
    imatrix(&text, &out, &["--chunks", "2"]).ok();
    let (sums, counts) = ("blk.1.ffn_up.weight.in_sum2", "blk.1.ffn_up.weight.counts");
    for (name, at, value, words) in [
        (sums, 5, f32::NAN, "sum 5 is NaN"),
        (sums, 6, -1e9, "sum 6 is -1000000000"),
        (counts, 0, f32::INFINITY, "count 0 is inf"),
        (counts, 0, -5.0, "count 0 is -5"),
        (counts, 0, 1e30, "other counts than 2 windows"),
        (counts, 0, 0.0, "other counts than 2 windows"),
    ] {
        let damaged = changed(&out, name, at, value);
        let stderr = imatrix(&text, &damaged, &["--resume"]).fails(3);
        assert!(stderr.contains(words) && stderr.contains("blk.1.ffn_up.weight"), "{stderr}");
        if !words.contains("windows") {
            let made = path("of-damaged.gguf");
            let args = ["quantize", tiny::model(), arg(&made), "Q4_0", "--imatrix", arg(&damaged)];
            assert!(tandem(&args).fails(3).contains(words));
        }
    }
}

#[test]
fn what_cannot_be_gone_on_with_is_said() {
    let (text, other, out) = (text("one.txt", 20), text("two.txt", 21), path("one.gguf"));
    imatrix(&text, &out, &["--chunks", "1"]).ok();
    assert!(imatrix(&other, &out, &["--resume"]).fails(2).contains("another text"));
    assert!(imatrix(&text, &out, &["--resume", "-c", "16"]).fails(2).contains("cannot be used multiple times"));
    let args = ["imatrix", "-m", tiny::model(), "-f", arg(&text), "-o", arg(&out), "--resume", "-c", "16"];
    assert!(tandem(&args).fails(2).contains("another window"));
    let args = ["imatrix", "-m", tiny::other_model(), "-f", arg(&text), "-o", arg(&out), "--resume", "-c", "32"];
    assert!(tandem(&args).fails(2).contains("another model"));
    let model = path("model.gguf");
    std::fs::copy(tiny::model(), &model).unwrap();
    assert!(imatrix(&text, &model, &["--resume"]).fails(2).contains("no importance matrix"));
    assert_eq!(std::fs::read(&model).unwrap(), std::fs::read(tiny::model()).unwrap());
    let nowhere = path("no-folder").join("out.gguf");
    imatrix(&text, &nowhere, &["--chunks", "1"]).fails(1);
    let folder = nowhere.parent().unwrap().parent().unwrap();
    assert!(imatrix(&text, folder, &["--resume"]).fails(1).contains("it is a folder"));
}

#[cfg(unix)]
#[test]
fn stopped_it_keeps_whole_windows() {
    let (text, whole) = (text("long.txt", 400), path("long-whole.gguf"));
    imatrix(&text, &whole, &[]).ok();
    for signal in ["-INT", "-TERM"] {
        stop_and_go_on(signal, &text, &whole);
    }
}

#[cfg(unix)]
fn stop_and_go_on(signal: &str, text: &Path, whole: &Path) {
    let out = path(&format!("long{signal}.gguf"));
    let args = ["imatrix", "-m", tiny::model(), "-c", "32", "-f", arg(text), "-o", arg(&out), "--save-every", "1"];
    let child = command(&args).spawn().unwrap();
    let start = Instant::now();
    while !out.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was saved");
        std::thread::sleep(Duration::from_millis(1));
    }
    let killed = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("--resume"), "{stderr}");
    imatrix(text, &out, &["--resume"]).ok();
    close(&sums(&out), &sums(whole));
}
