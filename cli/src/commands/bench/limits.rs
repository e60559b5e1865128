//! What a model asks of the machine per token, and what the machine can do.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::json;
use tandem_engine::Precision;
use tandem_engine::cpu::IsaLevel;
use tandem_engine::cpu::roofline::{Roofline, multiplies_int8};
use tandem_loader::{Gguf, TensorInfo};
use tandem_models::{Program, Step, Weight, WeightId, WeightRole};

use super::{Format, table};

/// The machine's limits by number of threads, each measured when it is first asked for.
pub(super) struct Limits {
    isa: Option<IsaLevel>,
    measured: BTreeMap<usize, Roofline>,
}

impl Limits {
    /// Nothing measured yet; instruction sets up to `isa`.
    pub(super) fn new(isa: Option<IsaLevel>) -> Limits {
        Limits { isa, measured: BTreeMap::new() }
    }

    /// Those of so many threads.
    pub(super) fn of(&mut self, threads: usize) -> tandem_engine::Result<Roofline> {
        if let Some(roofline) = self.measured.get(&threads) {
            return Ok(*roofline);
        }
        let roofline = Roofline::measure(threads, self.isa)?;
        self.measured.insert(threads, roofline);
        Ok(roofline)
    }
}

/// What evaluating a model takes, from its weights alone (attention is not counted).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Work {
    /// Bytes of weights that one token by itself reads: every matrix and vector, and one row of each table.
    pub(super) bytes: u64,
    /// Multiplications and additions of one token in the layers.
    layers: Ops,
    /// Those of the output head, which a prompt needs for its last token only.
    head: Ops,
}

/// Operations by the numbers they work on: 2 per weight.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ops {
    int8: f64,
    f32: f64,
}

impl Ops {
    /// All of them.
    pub(super) fn total(self) -> f64 {
        self.int8 + self.f32
    }

    /// The most per second that the machine can do of them.
    pub(super) fn peak(self, machine: &Roofline) -> f64 {
        machine.peak_of(self.int8, self.f32)
    }
}

impl Work {
    pub(super) fn of(gguf: &Gguf, program: &Program, precision: Precision) -> Work {
        let head = program
            .blocks
            .iter()
            .flat_map(|block| &block.steps)
            .find_map(|step| if let Step::Logits { linear, .. } = step { Some(linear.weight) } else { None });
        let n_expert_used = program.hparams.n_expert_used;
        let mut work = Work::default();
        for (id, weight) in program.weights.iter().enumerate() {
            let Some(tensor) = gguf.tensor(&weight.tensor) else { continue };
            work.bytes += bytes_read(weight, tensor, n_expert_used);
            // Matrices that one token goes through.
            let n_matrices = match weight.role {
                WeightRole::Matrix => 1,
                WeightRole::Experts { .. } => n_expert_used,
                WeightRole::Table | WeightRole::Vector => continue,
            };
            let ops = if head == Some(WeightId(id)) { &mut work.head } else { &mut work.layers };
            let is_int8 = precision == Precision::Fast && multiplies_int8(tensor.ty);
            *(if is_int8 { &mut ops.int8 } else { &mut ops.f32 }) +=
                2.0 * (n_matrices * weight.n_in * weight.n_out) as f64;
        }
        work
    }

    /// Operations per token of a prompt of `n` tokens.
    pub(super) fn of_prompt(&self, n: usize) -> Ops {
        let per_token = |ops: fn(&Ops) -> f64| ops(&self.layers) + ops(&self.head) / n as f64;
        Ops { int8: per_token(|ops| ops.int8), f32: per_token(|ops| ops.f32) }
    }
}

/// Bytes of a weight that evaluating one token reads: matrices and vectors whole, the experts it uses, one row of a table.
fn bytes_read(weight: &Weight, tensor: &TensorInfo, n_expert_used: usize) -> u64 {
    let bytes = match weight.role {
        WeightRole::Experts { n_expert } => tensor.n_bytes() / n_expert * n_expert_used,
        WeightRole::Matrix | WeightRole::Vector => tensor.n_bytes(),
        WeightRole::Table => tensor.n_bytes() / tensor.n_rows(),
    };
    bytes as u64
}

const HEADER: [&str; 5] = ["threads", "instructions", "memory read, GB/s", "int8, Gop/s", "f32, GFLOP/s"];

/// `--roofline`: the limits themselves, a row for each number of threads.
pub(super) fn print(limits: &mut Limits, threads: &[usize], format: Format) -> anyhow::Result<()> {
    let rows = threads.iter().map(|&n| limits.of(n)).collect::<Result<Vec<_>, _>>()?;
    let mut out = io::stdout().lock();
    if format == Format::Md {
        writeln!(
            out,
            "| {} |\n|{}",
            HEADER.join(" | "),
            HEADER.map(|name| "-".repeat(name.len() + 1) + ":|").concat()
        )?;
    }
    let values: Vec<_> = rows.iter().map(json_row).collect();
    match format {
        Format::Md => rows.iter().try_for_each(|row| writeln!(out, "{}", markdown_row(row)))?,
        Format::Json => writeln!(out, "{:#}", serde_json::Value::from(values))?,
        Format::Jsonl => values.iter().try_for_each(|row| writeln!(out, "{row}"))?,
        Format::Csv => {
            let mut rows = values.iter().enumerate();
            rows.try_for_each(|(i, row)| table::csv(row, i == 0, &mut out))?;
        }
    }
    Ok(out.flush()?)
}

fn markdown_row(row: &Roofline) -> String {
    let cells = [
        row.threads.to_string(),
        row.isa.name().to_owned(),
        format!("{:.1}", row.read / 1e9),
        format!("{:.0}", row.int8 / 1e9),
        format!("{:.0}", row.f32 / 1e9),
    ];
    let padded = cells.iter().zip(HEADER).map(|(cell, name)| format!("| {cell:>0$} ", name.len()));
    padded.collect::<String>() + "|"
}

fn json_row(row: &Roofline) -> serde_json::Value {
    json!({
        "threads": row.threads,
        "isa": row.isa.name(),
        "memory_gb_per_s": row.read / 1e9,
        "int8_gop_per_s": row.int8 / 1e9,
        "f32_gflop_per_s": row.f32 / 1e9,
        "date": table::now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_counts_once_a_prompt() {
        let work = Work { bytes: 0, layers: Ops { int8: 8.0, f32: 2.0 }, head: Ops { int8: 6.0, f32: 0.0 } };
        let machine = Roofline { threads: 1, isa: IsaLevel::Scalar, read: 1.0, int8: 100.0, f32: 10.0 };
        let ops = work.of_prompt(3);
        assert!((ops.total() - 12.0).abs() < 1e-12);
        // 10 / 100 and 2 / 10 seconds.
        assert!((ops.peak(&machine) - 12.0 / 0.3).abs() < 1e-9);
    }
}
