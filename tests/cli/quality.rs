//! `perplexity` and `compare` against the same figures computed here from the logits.

use std::path::{Path, PathBuf};

use tandem_loader::Gguf;

use crate::command::{arg, tandem, tandem_with};
use crate::tiny;

/// A file of this process.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("quality-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn text() -> PathBuf {
    let text: String = (0..40).map(|i| format!("line {i} says hello in a line of its own\n")).collect();
    file("text.txt", text.as_bytes())
}

/// Ids of the text, by another command.
fn ids(text: &Path) -> Vec<usize> {
    let ids = tandem(&["tokenize", "-m", tiny::model(), "--add-bos", "-f", arg(text)]).json();
    ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as usize).collect()
}

/// `ln p` of every token of the vocabulary after each of `ids`, by another command.
fn log_probabilities(model: &str, ids: &[usize], name: &str) -> Vec<Vec<f64>> {
    let out = file(name, b"");
    let list: Vec<String> = ids.iter().map(usize::to_string).collect();
    tandem(&["logits", "-m", model, "--tokens", &list.join(","), "--out", arg(&out)]).ok();
    let bytes = std::fs::read(out).unwrap();
    let logits: Vec<f64> = bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
    logits
        .chunks_exact(tiny::N_VOCAB)
        .map(|row| {
            let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            row.iter().map(|x| x - sum).collect()
        })
        .collect()
}

fn close(got: &serde_json::Value, want: f64) {
    let got = got.as_f64().unwrap();
    assert!((got - want).abs() <= 1e-9 * want.abs().max(1e-3), "{got} {want}");
}

#[test]
fn perplexity_is_that_of_the_logits() {
    let text = text();
    let ids = ids(&text);
    let n_windows = ids.len() / 32;
    assert!(n_windows > 3);
    let mut nlls = Vec::new();
    for (w, window) in ids.chunks_exact(32).enumerate() {
        let rows = log_probabilities(tiny::model(), window, &format!("window-{w}"));
        nlls.extend((16..31).map(|row| -rows[row][window[row + 1]]));
    }
    let mean = |nlls: &[f64]| nlls.iter().sum::<f64>() / nlls.len() as f64;
    let args = ["perplexity", "-m", tiny::model(), "-c", "32", "-f", arg(&text)];
    let json = tandem(&[&args[..], &["--json"]].concat()).json();
    close(&json["ppl"], mean(&nlls).exp());
    assert_eq!((&json["n_chunks"], &json["scored_tokens"]), (&n_windows.into(), &(15 * n_windows).into()));
    assert_eq!(json["n_tokens"], ids.len());
    let variance = nlls.iter().map(|nll| (nll - mean(&nlls)).powi(2)).sum::<f64>() / nlls.len() as f64;
    close(&json["stderr"], mean(&nlls).exp() * (variance / (nlls.len() - 1) as f64).sqrt());
    let fewer = tandem(&[&args[..], &["--json", "--chunks", "2"]].concat()).json();
    close(&fewer["ppl"], mean(&nlls[..30]).exp());
    assert_eq!(fewer["running_ppl"].as_array().unwrap()[..], json["running_ppl"].as_array().unwrap()[..2]);
    let shown = tandem(&args).ok();
    assert!(shown.starts_with(&format!("PPL = {:.4} +/- ", mean(&nlls).exp())), "{shown}");
}

#[test]
fn texts_that_are_too_short_are_said() {
    let too_short = tandem_with(&["perplexity", "-m", tiny::model(), "-f", "-"], b"hello").fails(2);
    assert!(too_short.contains("less than one window of 512"), "{too_short}");
    let args = ["perplexity", "-m", tiny::model(), "-f", arg(&text()), "-c", "2"].map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert!(tandem(&args).fails(2).contains("at least 3"));
    assert!(tandem(&["perplexity", "-m", tiny::model(), "-f", "/nowhere"]).fails(1).contains("/nowhere"));
}

#[test]
fn comparison_is_that_of_the_logits() {
    let text = text();
    let ids = ids(&text);
    let (mut kls, mut changes, mut same, mut nlls) = (Vec::new(), Vec::new(), 0, [0.0; 2]);
    for (w, window) in ids.chunks_exact(32).enumerate() {
        let [a, b] =
            [tiny::model(), tiny::other_model()].map(|model| log_probabilities(model, window, &format!("pair-{w}")));
        for row in 16..31 {
            kls.push(a[row].iter().zip(&b[row]).map(|(a, b)| a.exp() * (a - b)).sum::<f64>());
            let [p, q] = [&a, &b].map(|rows| rows[row][window[row + 1]]);
            changes.push((q.exp() - p.exp()).powi(2));
            nlls = [nlls[0] - p, nlls[1] - q];
            let top = |row: &[f64]| row.iter().enumerate().max_by(|x, y| x.1.total_cmp(y.1)).unwrap().0;
            same += usize::from(top(&a[row]) == top(&b[row]));
        }
    }
    let args = ["compare", tiny::model(), tiny::other_model(), "-c", "32", "-f", arg(&text), "--json"];
    let json = tandem(&args).json();
    let n = kls.len() as f64;
    close(&json["a"]["ppl"], (nlls[0] / n).exp());
    close(&json["b"]["ppl"], (nlls[1] / n).exp());
    close(&json["ln_ppl_ratio"], (nlls[1] - nlls[0]) / n);
    close(&json["kl"]["mean"], kls.iter().sum::<f64>() / n);
    close(&json["kl"]["max"], kls.iter().copied().fold(0.0, f64::max));
    close(&json["top1"], same as f64 / n);
    close(&json["rms_dp"], (changes.iter().sum::<f64>() / n).sqrt());
    let alone = tandem(&["perplexity", "-m", tiny::other_model(), "-c", "32", "-f", arg(&text), "--json"]).json();
    assert_eq!(json["b"]["ppl"], alone["ppl"]);
}

#[test]
fn a_model_equals_itself() {
    let text = text();
    let args = ["compare", tiny::model(), tiny::base_model(), "-c", "64", "-f", arg(&text), "--tensors"];
    let json = tandem(&[&args[..], &["--json"]].concat()).json();
    assert_eq!((json["kl"]["max"].as_f64(), json["top1"].as_f64()), (Some(0.0), Some(1.0)));
    assert!(json["tensors"].as_array().unwrap().iter().all(|row| row["rmse"] == 0.0 && row["sqnr_db"].is_null()));
    let shown = tandem(&args).ok();
    assert!(shown.contains("KL(A || B), mean") && shown.contains("same"), "{shown}");
    // Exact against fast: the same weights, other sums.
    let json = tandem(&[&args[..], &["--json", "--precision-a", "exact"]].concat()).json();
    let kl = json["kl"]["mean"].as_f64().unwrap();
    assert!(kl > 0.0 && kl < 0.1, "{kl}");
}

#[test]
fn several_models_at_once_give_what_each_gives_alone() {
    let text = text();
    let compare = |models: &[&str]| {
        let options = ["-c", "32", "-f", arg(&text), "--tensors", "--json"];
        tandem(&[&["compare", tiny::model()][..], models, &options].concat()).json()
    };
    let (other, base) = (tiny::other_model(), tiny::base_model());
    let several = compare(&[other, base]);
    assert_eq!(several.as_array().unwrap().as_slice(), [compare(&[other]), compare(&[base])]);
    let page = file("several.html", b"");
    let report = ["compare", tiny::model(), other, base, "-f", arg(&text), "--report", arg(&page)];
    assert!(tandem(&report).fails(2).contains("one B"));
}

fn weights(model: &str, name: &str) -> Vec<f32> {
    let out = file(&format!("weights-{name}"), b"");
    tandem(&["info", "-m", model, "--dump-tensor", name, "--out", arg(&out)]).ok();
    std::fs::read(out).unwrap().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn tensors_are_compared_weight_by_weight() {
    let json = tandem(&["compare", tiny::model(), tiny::other_model(), "--tensors", "--json"]).json();
    assert!(json["kl"].is_null());
    let rows = json["tensors"].as_array().unwrap();
    for name in ["blk.1.ffn_up.weight", "blk.0.attn_k.weight", "output_norm.weight"] {
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        let [a, b] = [tiny::model(), tiny::other_model()].map(|model| weights(model, name));
        let squares: Vec<f64> = a.iter().zip(&b).map(|(a, b)| (f64::from(*b) - f64::from(*a)).powi(2)).collect();
        let sum: f64 = squares.iter().sum();
        close(&row["rmse"], (sum / squares.len() as f64).sqrt());
        close(&row["sqnr_db"], 10.0 * (a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>() / sum).log10());
        close(&row["max_error"], squares.iter().copied().fold(0.0, f64::max).sqrt());
        let block = row["block_size"].as_u64().unwrap() as usize;
        let sums: Vec<f64> = squares.chunks(block).map(|block| block.iter().sum()).collect();
        let worst = sums.iter().copied().fold(0.0, f64::max);
        close(&row["worst_block_rmse"], (worst / block as f64).sqrt());
        assert_eq!(sums[row["worst_block"].as_u64().unwrap() as usize], worst);
    }
}

#[test]
fn a_report_is_one_page_that_needs_nothing_else() {
    let page = file("report.html", b"");
    let args = ["compare", tiny::model(), tiny::other_model(), "-c", "32", "-f", arg(&text()), "--report", arg(&page)]
        .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    tandem(&args).ok();
    let html = std::fs::read_to_string(page).unwrap();
    assert_eq!(html.matches("<svg").count(), 4);
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("ffn_down") && !html.contains("NaN"));
}

#[test]
fn different_vocabularies_are_said() {
    let text = text();
    let stderr = tandem(&["compare", tiny::model(), tiny::foreign_model(), "-f", arg(&text)]).fails(3);
    assert!(stderr.contains("token 0") && stderr.contains("<|start|>"), "{stderr}");
    tandem(&["compare", tiny::model(), tiny::foreign_model(), "--tensors"]).ok();
    assert!(tandem(&["compare", tiny::model(), tiny::model()]).fails(2).contains("--file"));
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let mut bytes = std::fs::read(tiny::model()).unwrap();
    let offset = Gguf::open(Path::new(tiny::model())).unwrap().tensor("output_norm.weight").unwrap().offset();
    bytes[offset..offset + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let damaged = file("nan.gguf", &bytes);
    let text = text();
    let perplexity = tandem(&["perplexity", "-m", arg(&damaged), "-c", "32", "-f", arg(&text)]).fails(3);
    assert!(perplexity.contains("nan.gguf: logits of window 1 are not numbers"), "{perplexity}");
    let compare = tandem(&["compare", tiny::model(), arg(&damaged), "-c", "32", "-f", arg(&text)]).fails(3);
    assert!(compare.contains("nan.gguf: logits of window 1 are not numbers"), "{compare}");
}

#[test]
fn what_is_read_is_not_written_over() {
    let model = file("kept.gguf", &std::fs::read(tiny::model()).unwrap());
    let text = text();
    let args = ["compare", tiny::model(), arg(&model), "-c", "32", "-f", arg(&text), "--report"];
    for (out, words) in [(model.clone(), "is read"), (text.clone(), "is read")] {
        assert!(tandem(&[&args[..], &[arg(&out)]].concat()).fails(2).contains(words));
    }
    let nowhere = model.with_file_name("no-folder").join("report.html");
    assert!(tandem(&[&args[..], &[arg(&nowhere)]].concat()).fails(1).contains("there is no folder"));
    let args = ["info", "-m", arg(&model), "--dump-tensor", "output_norm.weight", "--out", arg(&model)];
    assert!(tandem(&args).fails(2).contains("is read"));
    assert!(std::fs::read(&model).unwrap() == std::fs::read(tiny::model()).unwrap());
}
