//! A comparison as one HTML page that needs nothing else.

use std::collections::BTreeMap;
use std::fmt::Write;

use tandem_engine::score::{Divergence, Summary};

use super::charts::{Axis, Chart, SERIES, escape};
use super::show;
use super::tensors::{Row, Tensors};
use super::{Comparison, Side, TextResult};
use crate::ui;

/// Bars of the histogram per power of ten.
const BARS_PER_DECADE: f64 = 8.0;
/// Divergences below are counted with this one: f32 logits tell no smaller ones apart.
const SMALLEST_KL: f64 = 1e-10;

/// The page.
pub(super) fn page(comparison: &Comparison) -> String {
    let [a, b] = &comparison.sides;
    let title = escape(&format!("{} against {}", b.name, a.name));
    let mut body = format!("<h1>{title}</h1>\n");
    sides_table(&mut body, comparison);
    if let Some(result) = &comparison.text
        && let Some(summary) = result.divergence.summary()
    {
        figures(&mut body, result, &summary);
        section(
            &mut body,
            "Divergence of the predictions",
            "KL(A || B) of each scored token, in nats: how many tokens have how much.",
            &kl_chart(&result.divergence, &summary),
        );
        section(
            &mut body,
            "Size against quality",
            "File size and perplexity with its standard error; the lower, the better the text is predicted.",
            &size_chart(&comparison.sides, &summary),
        );
    }
    if let Some(tensors) = &comparison.tensors {
        weights(&mut body, tensors);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

// Writing to a String does not fail.
fn section(out: &mut String, title: &str, words: &str, chart: &str) {
    let _ = write!(out, "<h2>{title}</h2>\n<p>{words}</p>\n{chart}\n");
}

fn sides_table(out: &mut String, comparison: &Comparison) {
    out.push_str("<table>\n<tr><th></th><th>model</th><th>size</th><th>bits per weight</th><th>runs on</th></tr>\n");
    for (i, (letter, side)) in ["A", "B"].iter().zip(&comparison.sides).enumerate() {
        let backend = comparison.text.as_ref().map_or("", |text| &text.backends[i]);
        let size = ui::bytes(side.gguf.file_bytes());
        let _ = writeln!(
            out,
            "<tr><td>{letter}</td><td>{}</td><td class=\"n\">{size}</td><td class=\"n\">{:.2}</td><td>{}</td></tr>",
            escape(&side.name),
            side.bits_per_weight(),
            escape(backend)
        );
    }
    out.push_str("</table>\n");
}

fn figures(out: &mut String, result: &TextResult, summary: &Summary) {
    let _ = writeln!(
        out,
        "<p>{}: {} windows of {} tokens, {} tokens scored.</p>\n<table>",
        escape(&result.file.display().to_string()),
        result.n_windows,
        result.n_ctx,
        summary.n
    );
    for (name, value) in show::rows(summary) {
        let _ = writeln!(out, "<tr><td>{}</td><td class=\"n\">{}</td></tr>", escape(name), escape(&value));
    }
    out.push_str("</table>\n");
}

/// A histogram over powers of ten, with mean, median and 99 %.
fn kl_chart(divergence: &Divergence, summary: &Summary) -> String {
    let bin = |kl: f64| (kl.max(SMALLEST_KL).log10() * BARS_PER_DECADE).floor() as i64;
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for score in divergence.scores().iter().filter(|score| score.kl.is_finite()) {
        *counts.entry(bin(score.kl)).or_default() += 1;
    }
    let (first, last) = (counts.keys().next().copied().unwrap_or(0), counts.keys().last().copied().unwrap_or(0));
    let at = |bin: i64| bin as f64 / BARS_PER_DECADE;
    let most = counts.values().copied().max().unwrap_or(1) as f64;
    let x = Axis { title: "KL divergence, nats", from: at(first), to: at(last + 1), log: true };
    let y = Axis { title: "tokens", from: 0.0, to: 1.2 * most, log: false };
    let mut chart = Chart::new(x, y);
    for (bin, count) in counts {
        let title = format!("{:.2e} to {:.2e}: {count} tokens", 10f64.powf(at(bin)), 10f64.powf(at(bin + 1)));
        chart.bar(at(bin), at(bin + 1), count as f64, &title);
    }
    let marks = [("median", summary.kl_median), ("mean", summary.kl_mean.0), ("99 %", summary.kl_p99)];
    for (row, (name, kl)) in marks.into_iter().enumerate().filter(|(_, (_, kl))| kl.is_finite()) {
        chart.mark(kl.max(SMALLEST_KL).log10(), &format!("{name} {kl:.5}"), row);
    }
    chart.svg("Histogram of the KL divergence")
}

fn size_chart(sides: &[Side; 2], summary: &Summary) -> String {
    let size = |side: &Side| side.gguf.file_bytes() as f64 / f64::from(1 << 20);
    let ends = |i: usize| [summary.ppl[i] - summary.ppl_error[i], summary.ppl[i] + summary.ppl_error[i]];
    let x = Axis::around("file size, MiB", sides.iter().map(size));
    let y = Axis::around("perplexity", ends(0).into_iter().chain(ends(1)));
    let mut chart = Chart::new(x, y);
    for (i, (letter, side)) in ["A", "B"].iter().zip(sides).enumerate() {
        let [low, high] = ends(i);
        chart.error(size(side), (low, high));
        let point = (size(side), summary.ppl[i]);
        chart.dot(i, point, 6.0, &format!("{}: {:.4}", side.name, summary.ppl[i]));
        chart.label(point, &format!("{letter}: {:.3}", summary.ppl[i]));
    }
    chart.svg("Size against perplexity")
}

/// The charts and the table of tensors.
fn weights(out: &mut String, tensors: &Tensors) {
    let changed: Vec<&Row> = tensors.rows.iter().filter(|row| row.sqnr_db.is_finite()).collect();
    if changed.is_empty() {
        out.push_str("<h2>Weights</h2>\n<p>No tensor that both files have differs.</p>\n");
    } else {
        let words = "Signal to quantization noise of B's weights, A's being the signal; the higher, the closer.";
        section(out, "Error by layer", words, &layer_chart(&changed));
        let words = "The same by the bits that B spends on a weight; a dot's area shows the number of weights.";
        section(out, "Bits against error", words, &bits_chart(&changed));
    }
    tensor_table(out, tensors);
}

/// The layer and the part of it that a tensor's name tells, as `blk.3.attn_q.weight`.
fn layer_and_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part.strip_suffix(".weight").unwrap_or(part)))
}

/// A line over the layers for each part of a layer, and a legend.
fn layer_chart(rows: &[&Row]) -> String {
    let mut parts: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        if let Some((layer, part)) = layer_and_part(&row.name) {
            parts.entry(part).or_default().push((layer as f64, row.sqnr_db));
        }
    }
    let points = parts.values().flatten();
    let x = Axis::around("layer", points.clone().map(|point| point.0));
    let mut chart = Chart::new(x, Axis::around("SQNR, dB", points.map(|point| point.1)));
    let mut legend = String::from("<p class=\"legend\">");
    for (i, (part, points)) in parts.iter_mut().enumerate() {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.path(i, points);
        for point in points.iter() {
            chart.dot(i, *point, 3.0, &format!("layer {}, {part}: {:.2} dB", point.0, point.1));
        }
        let _ = write!(legend, "<span class=\"key s{}\"></span>{} ", i % SERIES, escape(part));
    }
    chart.svg("Error by layer") + "\n" + &legend + "</p>"
}

fn bits_chart(rows: &[&Row]) -> String {
    let x = Axis::around("bits per weight in B", rows.iter().map(|row| row.bits_per_weight));
    let mut chart = Chart::new(x, Axis::around("SQNR, dB", rows.iter().map(|row| row.sqnr_db)));
    let weights = |row: &Row| row.shape.iter().map(|n| *n as f64).product::<f64>();
    let largest = rows.iter().map(|row| weights(row)).fold(1.0, f64::max);
    for row in rows {
        let radius = 3.0 + 11.0 * (weights(row) / largest).sqrt();
        let title = format!("{}, {}: {:.2} dB", row.name, row.type_b, row.sqnr_db);
        chart.dot(0, (row.bits_per_weight, row.sqnr_db), radius, &title);
    }
    chart.svg("Bits per weight against error")
}

fn tensor_table(out: &mut String, tensors: &Tensors) {
    out.push_str(
        "<details>\n<summary>All tensors</summary>\n<table>\n<tr><th>tensor</th><th>A</th><th>B</th><th>RMSE</th>\
         <th>SQNR, dB</th><th>largest</th><th>worst block</th><th>its RMSE</th></tr>\n",
    );
    for row in &tensors.rows {
        let sqnr = if row.sqnr_db == f64::INFINITY { "same".to_owned() } else { format!("{:.2}", row.sqnr_db) };
        let _ = write!(out, "<tr><td>{}</td><td>{}</td><td>{}</td>", escape(&row.name), row.type_a, row.type_b);
        let _ = write!(out, "<td class=\"n\">{:.3e}</td><td class=\"n\">{sqnr}</td>", row.rmse);
        let _ = write!(out, "<td class=\"n\">{:.3e}</td><td class=\"n\">{}</td>", row.max_error, row.worst_block);
        let _ = writeln!(out, "<td class=\"n\">{:.3e}</td></tr>", row.worst_block_rmse);
    }
    out.push_str("</table>\n</details>\n");
    let lists =
        [("Only in A", &tensors.only_in_a), ("Only in B", &tensors.only_in_b), ("Other shape", &tensors.other_shape)];
    for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
        let _ = writeln!(out, "<p>{what}: {}</p>", escape(&names.join(", ")));
    }
}

/// Series colours that people who see colours differently can tell apart: Okabe and Ito,
/// <https://jfly.uni-koeln.de/color/>; the yellow, too light on white, is replaced by a grey.
const STYLE: &str = "\
:root { --ink: #1b1f24; --paper: #ffffff; --faint: #d8dde3; --bar: #0072b2; --mark: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #15181c; --faint: #343a42; --bar: #56b4e9; --mark: #e69f00; }
}
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: 0.5rem 0; }
td, th { padding: 0.15rem 0.8rem 0.15rem 0; text-align: left; border-bottom: 1px solid var(--faint); }
.n { text-align: right; font-variant-numeric: tabular-nums; }
details { margin-top: 2rem; overflow-x: auto; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--faint); } .bar { fill: var(--bar); } .error { stroke: var(--ink); }
.mark { stroke: var(--mark); stroke-dasharray: 4 3; stroke-width: 1.5; }
.path { fill: none; stroke-width: 1.5; stroke: var(--c); } .dot { fill: var(--c); fill-opacity: 0.75; }
.key { display: inline-block; width: 0.8em; height: 0.8em; margin: 0 0.3em 0 0.8em; background: var(--c); }
.s0 { --c: #0072b2; } .s1 { --c: #d55e00; } .s2 { --c: #009e73; } .s3 { --c: #cc79a7; }
.s4 { --c: #56b4e9; } .s5 { --c: #e69f00; } .s6 { --c: #808890; } .s7 { --c: #8456c4; }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_from_names() {
        assert_eq!(layer_and_part("blk.12.ffn_down.weight"), Some((12, "ffn_down")));
        assert_eq!(layer_and_part("blk.0.attn_q.bias"), Some((0, "attn_q.bias")));
        assert_eq!(layer_and_part("token_embd.weight"), None);
    }
}
