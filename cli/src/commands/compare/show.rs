//! A comparison as text and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};
use tandem_engine::score::Summary;

use super::tensors::Tensors;
use super::{Comparison, Side, TextResult};
use crate::ui;

/// For people.
pub(super) fn text(comparisons: &[Comparison]) -> String {
    comparisons.iter().map(text_of).collect::<Vec<String>>().join("\n")
}

fn text_of(comparison: &Comparison) -> String {
    let mut out = String::new();
    for (letter, side) in ["A", "B"].iter().zip(&comparison.sides) {
        let size = ui::bytes(side.gguf.file_bytes());
        // Writing to a String does not fail.
        let _ = writeln!(out, "{letter}: {}, {size}, {:.2} bits per weight", side.name, side.bits_per_weight());
    }
    if let Some(result) = &comparison.text {
        out.push('\n');
        summary_text(&mut out, result);
    }
    if let Some(tensors) = &comparison.tensors {
        out.push('\n');
        tensors_text(&mut out, tensors);
    }
    out
}

fn summary_text(out: &mut String, result: &TextResult) {
    let Some(s) = result.divergence.summary() else { return };
    for (name, value) in rows(&s) {
        let _ = writeln!(out, "{name:<32} {value}");
    }
    let _ = writeln!(out, "{} windows of {} tokens, {} tokens scored", result.n_windows, result.n_ctx, s.n);
}

/// The figures with their names, as text and page show them.
pub(super) fn rows(s: &Summary) -> Vec<(&'static str, String)> {
    let ppl = |i: usize| format!("{:.4} +/- {:.4}", s.ppl[i], s.ppl_error[i]);
    vec![
        ("PPL of A", ppl(0)),
        ("PPL of B", ppl(1)),
        ("ln(PPL of B / PPL of A)", format!("{:.6} +/- {:.6}", s.ln_ratio.0, s.ln_ratio.1)),
        ("KL(A || B), mean", format!("{:.6} +/- {:.6}", s.kl_mean.0, s.kl_mean.1)),
        ("KL, median", format!("{:.6}", s.kl_median)),
        ("KL, 99 %", format!("{:.6}", s.kl_p99)),
        ("KL, 99.9 %", format!("{:.6}", s.kl_p999)),
        ("KL, largest", format!("{:.6}", s.kl_max)),
        ("same most likely token", format!("{:.3} %", 100.0 * s.top1)),
        ("RMS of the probability change", format!("{:.3} %", 100.0 * s.rms_dp)),
    ]
}

fn tensors_text(out: &mut String, tensors: &Tensors) {
    let width = tensors.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(6);
    let _ = writeln!(
        out,
        "{:<width$} {:<14} {:>10} {:>9} {:>10}  worst block (its RMSE)",
        "tensor", "types", "RMSE", "SQNR, dB", "largest"
    );
    for row in &tensors.rows {
        let types = format!("{} > {}", row.type_a, row.type_b);
        let sqnr = if row.sqnr_db == f64::INFINITY { "same".to_owned() } else { format!("{:.2}", row.sqnr_db) };
        let _ = write!(out, "{:<width$} {types:<14} {:>10.3e} {sqnr:>9} ", ui::plain(&row.name), row.rmse);
        let _ = writeln!(out, "{:>10.3e}  {} ({:.3e})", row.max_error, row.worst_block, row.worst_block_rmse);
    }
    let lists =
        [("only in A", &tensors.only_in_a), ("only in B", &tensors.only_in_b), ("other shape", &tensors.other_shape)];
    for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
        let _ = writeln!(out, "{what}: {}", ui::plain(&names.join(", ")));
    }
}

/// For programs: an object, or an array of several.
pub(super) fn json(comparisons: &[Comparison]) -> String {
    match comparisons {
        [one] => format!("{:#}\n", json_of(one)),
        several => format!("{:#}\n", several.iter().map(json_of).collect::<Value>()),
    }
}

fn json_of(comparison: &Comparison) -> Value {
    let [a, b] = &comparison.sides;
    let mut object = json!({ "a": side_json(a), "b": side_json(b) });
    if let Some(result) = &comparison.text
        && let Some(s) = result.divergence.summary()
    {
        for (i, side) in ["a", "b"].into_iter().enumerate() {
            object[side]["backend"] = json!(result.backends[i]);
            object[side]["ppl"] = json!(s.ppl[i]);
            object[side]["ppl_stderr"] = json!(s.ppl_error[i]);
        }
        object["file"] = json!(result.file);
        object["n_ctx"] = json!(result.n_ctx);
        object["n_chunks"] = json!(result.n_windows);
        object["scored_tokens"] = json!(s.n);
        object["ln_ppl_ratio"] = json!(s.ln_ratio.0);
        object["ln_ppl_ratio_stderr"] = json!(s.ln_ratio.1);
        object["kl"] = json!({
            "mean": s.kl_mean.0, "stderr": s.kl_mean.1, "median": s.kl_median,
            "p99": s.kl_p99, "p999": s.kl_p999, "max": s.kl_max,
        });
        object["top1"] = json!(s.top1);
        object["rms_dp"] = json!(s.rms_dp);
    }
    if let Some(tensors) = &comparison.tensors {
        object["tensors"] = json!(tensors.rows);
        object["only_in_a"] = json!(tensors.only_in_a);
        object["only_in_b"] = json!(tensors.only_in_b);
        object["other_shape"] = json!(tensors.other_shape);
    }
    object
}

fn side_json(side: &Side) -> Value {
    json!({
        "model": side.name,
        "path": side.gguf.path(),
        "file_bytes": side.gguf.file_bytes(),
        "bits_per_weight": side.bits_per_weight(),
    })
}
