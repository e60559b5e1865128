//! `quantize`: what comes out, and what is refused without leaving a file.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tandem_loader::{Gguf, Metadata, TensorSpec, Value as GgufValue, Writer};

use crate::command::{Ran, arg, tandem};
use crate::tiny;

/// A new folder of this process, empty.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("quantize-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn quantize(input: &Path, output: &Path, ty: &str, more: &[&str]) -> Ran {
    tandem(&[&["quantize", arg(input), arg(output), ty], more].concat())
}

fn info(model: &Path) -> Value {
    tandem(&["info", "-m", arg(model), "--tensors", "--json"]).json()
}

fn type_of(info: &Value, tensor: &str) -> String {
    let tensors = info["tensors"].as_array().unwrap();
    tensors.iter().find(|t| t["name"] == tensor).unwrap()["type"].as_str().unwrap().to_owned()
}

/// Names of all files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn a_mix_gives_each_tensor_its_type_and_the_model_runs() {
    let folder = folder("mix");
    let out = folder.join("out.gguf");
    let ran = quantize(Path::new(tiny::model()), &out, "q5_k_m", &["--json"]);
    // Rows of 64 do not divide into blocks of 256.
    assert!(ran.stderr.contains("in place of Q5_K"), "{}", ran.stderr);
    let report = ran.json();
    let read = info(&out);
    assert_eq!(type_of(&read, "blk.0.attn_q.weight"), "Q5_1");
    assert_eq!(type_of(&read, "blk.0.attn_norm.weight"), "F32");
    assert_eq!(read["metadata"]["general.file_type"], 17);
    for tensor in report["tensors"].as_array().unwrap() {
        assert_eq!(type_of(&read, tensor["name"].as_str().unwrap()), tensor["type"].as_str().unwrap());
    }
    let answer = tandem(&["run", "-m", arg(&out), "--raw", "-n", "4", "--temp", "0", "hello"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert_eq!(names(&folder), ["out.gguf"]);
}

#[test]
fn types_can_be_chosen_by_name_and_for_embedding_and_output() {
    let out = folder("chosen").join("out.gguf");
    let chosen = ["--tensor-type", "attn_(q|k)=Q8_0", "--tensor-type", "attn=Q5_0", "--embedding-type", "F16"];
    quantize(Path::new(tiny::model()), &out, "Q4_0", &chosen).ok();
    let read = info(&out);
    assert_eq!(type_of(&read, "blk.1.attn_k.weight"), "Q8_0");
    assert_eq!(type_of(&read, "blk.1.attn_v.weight"), "Q5_0");
    assert_eq!(type_of(&read, "blk.1.ffn_up.weight"), "Q4_0");
    assert_eq!(type_of(&read, "token_embd.weight"), "F16");
    let out = folder("chosen-output").join("out.gguf");
    // The embedding is the output matrix too.
    quantize(Path::new(tiny::model()), &out, "Q4_0", &["--output-type", "Q5_1"]).ok();
    assert_eq!(type_of(&info(&out), "token_embd.weight"), "Q5_1");
}

#[test]
fn what_was_decoded_is_encoded_to_the_same_weights() {
    let folder = folder("again");
    let [once, plain, twice, again] = ["once", "f32", "twice", "again"].map(|name| folder.join(format!("{name}.gguf")));
    for ty in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"] {
        names(&folder).iter().for_each(|name| std::fs::remove_file(folder.join(name)).unwrap());
        quantize(Path::new(tiny::model()), &once, ty, &["--pure"]).ok();
        quantize(&once, &plain, "F32", &[]).ok();
        quantize(&plain, &twice, ty, &["--pure", "-t", "1"]).ok();
        // A block that does not use all of its steps can say the same weights in several ways: weights are compared.
        quantize(&twice, &again, "F32", &[]).ok();
        assert!(std::fs::read(&plain).unwrap() == std::fs::read(&again).unwrap(), "{ty}");
    }
}

#[test]
fn searching_loses_less_than_rounding_and_importance_moves_the_loss() {
    let folder = folder("methods");
    let text = folder.join("text.txt");
    std::fs::write(&text, "a text that the matrices see\n".repeat(40)).unwrap();
    let imatrix = folder.join("imatrix.gguf");
    tandem(&["imatrix", "-m", tiny::model(), "-c", "32", "-f", arg(&text), "-o", arg(&imatrix)]).ok();
    let loss = |name: &str, more: &[&str]| {
        let report =
            quantize(Path::new(tiny::model()), &folder.join(name), "Q4_0", &[&["--json"], more].concat()).json();
        let tensors = report["tensors"].as_array().unwrap().clone();
        let tensor = tensors.into_iter().find(|t| t["name"] == "blk.0.ffn_up.weight").unwrap();
        (tensor["rmse"].as_f64().unwrap(), tensor["importance"].as_bool().unwrap())
    };
    let (search, absmax) = (loss("search.gguf", &[]), loss("absmax.gguf", &["--method", "absmax"]));
    let weighted = loss("weighted.gguf", &["--imatrix", arg(&imatrix)]);
    assert!(search.0 < absmax.0, "{search:?} {absmax:?}");
    assert!(weighted.0 > search.0 && weighted.1 && !search.1, "{weighted:?} {search:?}");
    let read = info(&folder.join("weighted.gguf"));
    assert_eq!(read["metadata"]["quantize.imatrix.dataset"], arg(&text));
    assert_eq!(read["metadata"]["quantize.imatrix.entries_count"], 15);
}

#[test]
fn gptq_calibrates_on_a_text() {
    let folder = folder("gptq");
    let (text, out) = (folder.join("text.txt"), folder.join("out.gguf"));
    std::fs::write(&text, "a text that the matrices see, as it is, over and over again\n".repeat(40)).unwrap();
    let model = Path::new(tiny::model());
    let gptq = ["--method", "gptq", "--calibration", arg(&text), "-c", "64", "--json"];
    let report = quantize(model, &out, "Q4_0", &gptq).json();
    for tensor in report["tensors"].as_array().unwrap() {
        let method = match tensor["name"].as_str().unwrap() {
            name if name.ends_with("norm.weight") || tensor["type"] == tensor["from"] => &Value::Null,
            "token_embd.weight" => &Value::from("search"),
            _ => &Value::from("gptq"),
        };
        assert_eq!(&tensor["method"], method, "{tensor}");
    }
    let read = info(&out);
    assert_eq!(read["metadata"]["quantize.gptq.dataset"], arg(&text));
    assert_eq!(type_of(&read, "blk.1.ffn_up.weight"), "Q4_0");
    let answer = tandem(&["run", "-m", arg(&out), "--raw", "-n", "4", "--temp", "0", "hello"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    // The embedding, which is the output too, with an importance matrix's importance, and so with other weights.
    let (imatrix, weighed) = (folder.join("imatrix.gguf"), folder.join("weighed.gguf"));
    tandem(&["imatrix", "-m", tiny::model(), "-c", "32", "-f", arg(&text), "-o", arg(&imatrix)]).ok();
    let (pure, plain) = ([&gptq[..], &["--pure"]].concat(), folder.join("plain.gguf"));
    quantize(model, &plain, "Q4_0", &pure).ok();
    let report = quantize(model, &weighed, "Q4_0", &[&pure[..], &["--imatrix", arg(&imatrix)]].concat()).json();
    for tensor in report["tensors"].as_array().unwrap() {
        assert_eq!(tensor["importance"], tensor["name"] == "token_embd.weight", "{tensor}");
    }
    let (without, with) = (Gguf::open(&plain).unwrap(), Gguf::open(&weighed).unwrap());
    let same = |name: &str| without.data(without.tensor(name).unwrap()) == with.data(with.tensor(name).unwrap());
    assert!(!same("token_embd.weight"));
    let none = folder.join("none.gguf");
    tandem(&["imatrix", "-m", tiny::model(), "-c", "32", "-f", arg(&text), "-o", arg(&none), "--process-output=false"])
        .ok();
    let refused = quantize(model, &folder.join("no.gguf"), "Q4_0", &[&pure[..], &["--imatrix", arg(&none)]].concat());
    assert!(refused.fails(2).contains("for the embedding alone"));
    // As one thread makes it.
    let alone = folder.join("alone.gguf");
    quantize(model, &alone, "Q4_0", &[&gptq[..], &["-t", "1"]].concat()).ok();
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&alone).unwrap());
}

/// The model in two parts; the first one's path.
fn split_model(folder: &Path) -> PathBuf {
    let gguf = Gguf::open(Path::new(tiny::model())).unwrap();
    let n = gguf.tensors().len();
    let path = |no: usize| folder.join(format!("in-{:05}-of-00002.gguf", no + 1));
    for (no, tensors) in [&gguf.tensors()[..5], &gguf.tensors()[5..]].into_iter().enumerate() {
        let mut metadata = if no == 0 { gguf.metadata().clone() } else { Metadata::default() };
        metadata.set("split.no", GgufValue::U16(no as u16));
        metadata.set("split.count", GgufValue::U16(2));
        metadata.set("split.tensors.count", GgufValue::I32(n as i32));
        let specs: Vec<TensorSpec> = tensors.iter().map(|t| TensorSpec::like(t, t.ty)).collect();
        let mut writer = Writer::create(&path(no), &metadata, &specs).unwrap();
        tensors.iter().for_each(|t| writer.write(gguf.data(t)).unwrap());
        writer.finish().unwrap().publish().unwrap();
    }
    path(0)
}

#[test]
fn parts_stay_parts_where_asked() {
    let folder = folder("split");
    let input = split_model(&folder);
    let text = folder.join("text.txt");
    std::fs::write(&text, "a text that the matrices see, as it is, over and over again\n".repeat(40)).unwrap();
    let gptq = ["--method", "gptq", "--calibration", arg(&text), "-c", "64"];
    for (name, method) in [("search", &[][..]), ("gptq", &gptq[..])] {
        let [one, parts] = ["one", "parts"].map(|what| folder.join(format!("{name}-{what}.gguf")));
        quantize(&input, &one, "Q4_0", method).ok();
        quantize(&input, &parts, "Q4_0", &[method, &["--keep-split"]].concat()).ok();
        assert!(!parts.exists());
        let first = folder.join(format!("{name}-parts-00001-of-00002.gguf"));
        let (whole, split) = (Gguf::open(&one).unwrap(), Gguf::open(&first).unwrap());
        assert_eq!((whole.paths().len(), split.paths().len()), (1, 2));
        assert_eq!(split.tensors()[5].part(), 1);
        for (a, b) in whole.tensors().iter().zip(split.tensors()) {
            assert_eq!((&a.name, a.ty), (&b.name, b.ty));
            assert!(whole.data(a) == split.data(b), "{name}: {}", a.name);
        }
        let answer = tandem(&["run", "-m", arg(&first), "--raw", "-n", "4", "--temp", "0", "hello"]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
    }
}

#[test]
fn rules_and_texts_that_say_nothing_are_warned_of() {
    let folder = folder("idle");
    let (model, text) = (Path::new(tiny::model()), folder.join("text.txt"));
    let rules = ["--tensor-type", "no_match=Q8_0", "--tensor-type", "attn_q=Q8_0", "--tensor-type", "norm=Q8_0"];
    let ran = quantize(model, &folder.join("rules.gguf"), "Q4_0", &rules);
    let warned = |pattern: &str| ran.stderr.contains(&format!("--tensor-type {pattern}=Q8_0: no matrix"));
    assert_eq!(["no_match", "attn_q", "norm"].map(warned), [true, false, true], "{}", ran.stderr);
    std::fs::write(&text, "a text that the matrices see, as it is, over and over again\n").unwrap();
    let gptq = ["--method", "gptq", "--calibration", arg(&text), "-c", "16", "--chunks", "1"];
    let ran = quantize(model, &folder.join("gptq.gguf"), "Q4_0", &gptq);
    assert!(ran.code == 0 && ran.stderr.contains("16 tokens to calibrate on"), "{}", ran.stderr);
}

/// With hardly any damping, and fewer inputs than columns, columns are explained by others to the last digit.
#[test]
fn gptq_stays_sound_where_moments_say_nothing() {
    let folder = folder("damping");
    let text = folder.join("text.txt");
    std::fs::write(&text, "a text that the matrices see, as it is, over and over again\n".repeat(40)).unwrap();
    let worst = |damping: &str| {
        let out = folder.join(format!("{damping}.gguf"));
        let options = ["--method", "gptq", "--calibration", arg(&text), "-c", "64", "--damping", damping, "--json"];
        let report = quantize(Path::new(tiny::model()), &out, "Q4_0", &options).json();
        let rmse = report["tensors"].as_array().unwrap().iter().filter_map(|tensor| tensor["rmse"].as_f64());
        rmse.fold(0.0, f64::max)
    };
    let usual = worst("0.01");
    for damping in ["1e-4", "1e-6", "1e-7", "1e-12"] {
        // 2.7 times as much with the least damping; 15 times where rounding was taken for moments.
        let got = worst(damping);
        assert!(got < 5.0 * usual, "{damping}: {got}, usually {usual}");
    }
}

#[test]
fn gptq_refuses_what_does_not_go_with_it() {
    let folder = folder("gptq-bad");
    let (text, out) = (folder.join("text.txt"), folder.join("out.gguf"));
    std::fs::write(&text, "short").unwrap();
    let refused = |code: i32, more: &[&str]| {
        let error = quantize(Path::new(tiny::model()), &out, "Q4_0", more).fails(code);
        assert_eq!(names(&folder), ["text.txt"]);
        error
    };
    assert!(refused(2, &["--method", "gptq"]).contains("--calibration FILE"));
    assert!(refused(2, &["--calibration", arg(&text)]).contains("--method gptq only"));
    assert!(refused(2, &["--no-act-order"]).contains("--method gptq only"));
    let gptq = ["--method", "gptq", "--calibration", arg(&text)];
    assert!(refused(2, &gptq).contains("less than one window of 512"));
    assert!(refused(2, &[&gptq[..], &["--damping", "0"]].concat()).contains("above 0"));
    assert!(refused(3, &[&gptq[..], &["--imatrix", "no-such-matrix"]].concat()).contains("no-such-matrix"));
    assert!(refused(2, &["--method", "absmax", "--imatrix", "none"]).contains("search and gptq only"));
    assert!(refused(1, &["--method", "gptq", "--calibration", "no-such-text"]).contains("no-such-text"));
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let folder = folder("bad");
    let (model, out) = (Path::new(tiny::model()), folder.join("out.gguf"));
    assert!(quantize(model, &out, "Q9_Z", &[]).fails(2).contains("IQ2_XXS"));
    assert!(quantize(model, &out, "Q4_0", &["--tensor-type", "attn_v"]).fails(2).contains("PATTERN=TYPE"));
    let no_matrix = quantize(model, &out, "Q4_0", &["--imatrix", tiny::model()]).fails(3);
    assert!(no_matrix.contains("no importance matrix"), "{no_matrix}");
    let nowhere = quantize(model, &folder.join("no/out.gguf"), "Q4_0", &[]).fails(1);
    assert!(nowhere.contains("cannot write"), "{nowhere}");
    assert_eq!(names(&folder), [""; 0]);
    std::fs::write(&out, "mine").unwrap();
    assert!(quantize(model, &out, "Q4_0", &[]).fails(2).contains("exists already"));
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let folder = folder("nan");
    let (plain, out) = (folder.join("f32.gguf"), folder.join("out.gguf"));
    quantize(Path::new(tiny::model()), &plain, "F32", &[]).ok();
    let read = info(&plain);
    let last = read["tensors"].as_array().unwrap().last().unwrap().clone();
    let n: u64 = last["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
    let bytes = std::fs::read(&plain).unwrap();
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        // Data of the last tensor ends the file: its rows are multiples of the alignment.
        let damaged = [&bytes[..bytes.len() - 4], &value.to_le_bytes()].concat();
        std::fs::write(&plain, damaged).unwrap();
        let error = quantize(&plain, &out, "Q8_0", &[]).fails(3);
        for part in [last["name"].as_str().unwrap(), shown, &format!("weight {}", n - 1)] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(names(&folder), ["f32.gguf"]);
    }
}

#[cfg(unix)]
#[test]
fn a_disk_that_is_full_leaves_nothing() {
    let folder = folder("full");
    // A limit on the size of files stands for the disk's.
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$@\"";
    let out = folder.join("out.gguf");
    let ran = std::process::Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_tandem"), "quantize", tiny::model(), arg(&out), "F32"])
        .output()
        .unwrap();
    let error = Ran::new(ran).fails(1);
    assert!(error.contains("cannot write") && error.contains("out.gguf"), "{error}");
    assert_eq!(names(&folder), [""; 0]);
}
