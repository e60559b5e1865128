//! How `tandem info` writes a report: as text for people, and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};
use tandem_loader::{Gguf, Value};

use super::report::{Report, Token};
use crate::ui;

/// Longest metadata text shown to people, in characters.
const MAX_TEXT: usize = 96;
/// Longest array shown with its elements in JSON; longer ones (vocabularies) are given as type and length.
const MAX_ARRAY: usize = 256;

/// The report for people.
pub(super) fn text(gguf: &Gguf, report: &Report, tensors: bool) -> String {
    let mut out = String::new();
    head(&mut out, gguf, report);
    section(&mut out, "Metadata");
    for (key, value) in gguf.metadata().iter() {
        line(&mut out, format_args!("{} = {}", ui::plain(key), shorten(value)));
    }
    section(&mut out, "Tensors");
    line(&mut out, format_args!("{:<8} {:>8} {:>16} {:>12}", "type", "tensors", "weights", "size"));
    for row in &report.by_type {
        let size = ui::bytes(row.n_bytes);
        line(&mut out, format_args!("{:<8} {:>8} {:>16} {size:>12}", row.ty, row.n_tensors, row.n_weights));
    }
    if tensors {
        out.push('\n');
        for tensor in gguf.tensors() {
            let (size, shape) = (ui::bytes(tensor.n_bytes() as u64), format!("{:?}", tensor.dims()));
            line(&mut out, format_args!("{:<8} {size:>12} {shape:<24} {}", tensor.ty, ui::plain(&tensor.name)));
        }
    }
    tokenizer(&mut out, report);
    memory(&mut out, report);
    out
}

fn head(out: &mut String, gguf: &Gguf, report: &Report) {
    let n_parts = gguf.paths().len();
    let parts = if n_parts > 1 { format!(", {n_parts} parts") } else { String::new() };
    let size = ui::bytes(gguf.file_bytes());
    // Writing to a String does not fail.
    let _ = writeln!(out, "{}\n  GGUF version {}, {size}{parts}", gguf.path().display(), gguf.version());
    line(out, format_args!("architecture {}", ui::plain(report.architecture.as_deref().unwrap_or("(none)"))));
    line(out, format_args!("{} tensors, {}", gguf.tensors().len(), count(report.n_params)));
    if let Some(experts) = &report.experts {
        let (count, used, layers) = (experts.count, experts.used, experts.layers);
        line(out, format_args!("{count} experts in {layers} layers, {used} used for each token"));
    }
    if let Some(reason) = &report.not_runnable {
        line(out, format_args!("cannot be run: {}", ui::plain(reason)));
    }
}

fn tokenizer(out: &mut String, report: &Report) {
    section(out, "Tokenizer");
    match &report.tokenizer {
        Err(reason) => line(out, format_args!("{reason}")),
        Ok(facts) => {
            let pre = facts.pre.as_ref().map(|pre| format!(", pre-tokenizer {}", ui::plain(pre))).unwrap_or_default();
            line(out, format_args!("{}{pre}, {} tokens", facts.kind, facts.n_vocab));
            for (name, token, added) in [("BOS", &facts.bos, facts.add_bos), ("EOS", &facts.eos, facts.add_eos)] {
                if let Some(token) = token {
                    let added = if added { ", added to texts" } else { "" };
                    line(out, format_args!("{name} {}{added}", named(token)));
                }
            }
            let ends: Vec<String> = facts.end_of_generation.iter().map(named).collect();
            line(out, format_args!("ends generation: {}", ends.join(" ")));
        }
    }
    match report.templates.as_slice() {
        [] => line(out, format_args!("no chat template")),
        names => line(out, format_args!("chat template: {}", ui::plain(&names.join(", ")))),
    }
}

fn memory(out: &mut String, report: &Report) {
    let Some(memory) = &report.memory else { return };
    section(out, &format!("Memory for a context of {} tokens", memory.n_ctx));
    line(out, format_args!("weights   {:>12}", ui::bytes(memory.weights)));
    line(out, format_args!("KV cache  {:>12} ({})", ui::bytes(memory.kv_cache), memory.kv_type));
}

fn section(out: &mut String, title: &str) {
    let _ = writeln!(out, "\n{title}");
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(out, "  {text}");
}

fn named(token: &Token) -> String {
    format!("{} {:?}", token.id, token.text)
}

/// A number of parameters for people.
fn count(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{n} parameters"),
        1_000_000..1_000_000_000 => format!("{:.1} M parameters", n as f64 / 1e6),
        _ => format!("{:.2} B parameters", n as f64 / 1e9),
    }
}

/// A value in one line of bearable length.
fn shorten(value: &Value) -> String {
    let Value::String(text) = value else { return value.to_string() };
    let escaped = text.escape_debug().to_string();
    match escaped.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}... ({} bytes)", &escaped[..end], text.len()),
        None => escaped,
    }
}

/// The report for programs.
pub(super) fn json(gguf: &Gguf, report: &Report, tensors: bool) -> Json {
    let metadata: Map<String, Json> =
        gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value_json(value))).collect();
    let mut object = json!({
        "path": gguf.path(),
        "parts": gguf.paths().collect::<Vec<_>>(),
        "version": gguf.version(),
        "file_bytes": gguf.file_bytes(),
        "architecture": report.architecture,
        "runnable": report.not_runnable.is_none(),
        "not_runnable_because": report.not_runnable,
        "n_params": report.n_params,
        "n_tensors": gguf.tensors().len(),
        "tensors_by_type": report.by_type,
        "experts": report.experts,
        "tokenizer": report.tokenizer.as_ref().ok(),
        "no_tokenizer_because": report.tokenizer.as_ref().err(),
        "templates": report.templates,
        "memory": report.memory,
        "metadata": metadata,
    });
    if tensors {
        let row = |tensor: &tandem_loader::TensorInfo| {
            json!({
                "name": tensor.name, "type": tensor.ty.name(), "shape": tensor.dims(),
                "n_bytes": tensor.n_bytes(), "offset": tensor.offset(), "part": tensor.part(),
            })
        };
        object["tensors"] = gguf.tensors().iter().map(row).collect();
    }
    object
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::String(text) => json!(text),
        Value::F32(value) => json!(value),
        Value::F64(value) => json!(value),
        Value::U64(value) => json!(value),
        Value::Array(array) if array.len() <= MAX_ARRAY => array.values().map(|value| value_json(&value)).collect(),
        Value::Array(array) => json!({ "array_of": array.element_type().to_string(), "length": array.len() }),
        // Every other integer fits.
        other => json!(other.as_integer().and_then(|value| i64::try_from(value).ok())),
    }
}
