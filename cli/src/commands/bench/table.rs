//! Rows of results, and how they are written.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tandem_engine::cpu::roofline::Roofline;
use tandem_engine::placement::{Device, GpuLayers};
use tandem_engine::{HostTime, Session};
use tandem_loader::Gguf;
use tandem_models::BlockKind;

use super::Format;
use super::limits::Work;
use super::measure::{Measured, Test};

/// One result. The names are those of the JSON output.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// File name without its extension.
    model: String,
    model_bytes: u64,
    n_params: usize,
    test: String,
    n_prompt: usize,
    n_gen: usize,
    depth: usize,
    ngl: Value,
    threads: usize,
    device: String,
    backend: String,
    /// Tokens per second.
    mean: f64,
    stddev: f64,
    median: f64,
    min: f64,
    max: f64,
    samples: Vec<f64>,
    /// Bytes of weights that each token reads (generation only, as the three below).
    bytes_per_token: Option<u64>,
    /// 10^9 bytes of weights read per second.
    gb_per_s: Option<f64>,
    /// 10^9 bytes per second that this machine can read.
    memory_gb_per_s: Option<f64>,
    /// The one as a share of the other.
    memory_share: Option<f64>,
    /// Multiplications and additions with weights that each token takes (prompts only, as the three below).
    ops_per_token: Option<f64>,
    /// 10^9 of them per second.
    gop_per_s: Option<f64>,
    /// 10^9 of them per second that this machine can do, with integers and floats in the proportions of the model.
    peak_gop_per_s: Option<f64>,
    /// The one as a share of the other.
    peak_share: Option<f64>,
    /// Tokens per second that were expected, where the devices have been measured (generation only).
    predicted: Option<f64>,
    /// Microseconds per token that the CPU spends on handing work to the GPU and reading results while the GPU has nothing to
    /// do (generation only, where a GPU takes part, as the one below).
    host_us: Option<f64>,
    /// Microseconds per token that it spends on recording what comes next while the GPU computes.
    host_meanwhile_us: Option<f64>,
    /// When it was measured, in local time.
    date: String,
}

impl Row {
    pub(super) fn new(gguf: &Gguf, session: &Session, test: &Test, layers: GpuLayers, measured: Measured) -> Row {
        let Measured { samples, n_tokens, host } = measured;
        let model = session.model();
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n;
        let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        let devices = model.placement().devices_in_use().into_iter().map(Device::name).collect::<Vec<_>>();
        let path = gguf.path();
        let has_host = !test.is_prompt() && host != HostTime::default();
        let per_token = |time: Duration| has_host.then(|| 1e6 * time.as_secs_f64() / n_tokens.max(1) as f64);
        Row {
            model: path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            model_bytes: gguf.file_bytes(),
            n_params: model.program().n_params(),
            test: test.name(),
            n_prompt: if test.is_prompt() { test.n() } else { 0 },
            n_gen: if test.is_prompt() { 0 } else { test.n() },
            depth: test.depth(),
            ngl: match layers {
                // What `auto` came to.
                GpuLayers::Auto => layers_on_gpu(session).into(),
                GpuLayers::Count(n) => n.into(),
                GpuLayers::All => layers.to_string().into(),
            },
            threads: model.n_threads(),
            device: devices.join("+"),
            backend: model.backend_names().join("+"),
            mean,
            stddev: if samples.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 },
            median: (low + high) / 2.0,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            samples,
            bytes_per_token: None,
            gb_per_s: None,
            memory_gb_per_s: None,
            memory_share: None,
            ops_per_token: None,
            gop_per_s: None,
            peak_gop_per_s: None,
            peak_share: None,
            predicted: if test.is_prompt() { None } else { predicted(session, test) },
            host_us: per_token(host.alone),
            host_meanwhile_us: per_token(host.meanwhile),
            date: now(),
        }
    }

    /// Notes what the test asks of the machine, and what that can do; of GPUs that is not known.
    pub(super) fn set_limits(&mut self, work: &Work, test: &Test, machine: Option<Roofline>) {
        if test.is_prompt() {
            let ops = work.of_prompt(test.n());
            let peak = machine.map(|machine| ops.peak(&machine));
            let ops = ops.total();
            self.ops_per_token = Some(ops);
            self.gop_per_s = Some(ops * self.mean / 1e9);
            self.peak_gop_per_s = peak.map(|peak| peak / 1e9);
            self.peak_share = peak.map(|peak| ops * self.mean / peak);
        } else {
            let read = work.bytes as f64 * self.mean;
            self.bytes_per_token = Some(work.bytes);
            self.gb_per_s = Some(read / 1e9);
            self.memory_gb_per_s = machine.map(|machine| machine.read / 1e9);
            self.memory_share = machine.map(|machine| read / machine.read);
        }
    }

    fn json(&self) -> io::Result<Value> {
        Ok(serde_json::to_value(self)?)
    }

    /// The cells of the Markdown table.
    fn cells(&self) -> Cells {
        let number = |value: Option<f64>, digits| value.map_or_else(String::new, |value| format!("{value:.digits$}"));
        let share = |value: Option<f64>| value.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share));
        [
            self.model.clone(),
            format!("{:.2} MiB", self.model_bytes as f64 / 1048576.0),
            format!("{:.2} M", self.n_params as f64 / 1e6),
            self.backend.clone(),
            self.threads.to_string(),
            match &self.ngl {
                Value::String(text) => text.clone(),
                number => number.to_string(),
            },
            self.test.clone(),
            format!("{:.2} ± {:.2}", self.mean, self.stddev),
            number(self.gb_per_s, 2),
            share(self.memory_share),
            number(self.gop_per_s, 0),
            share(self.peak_share),
            number(self.host_us, 0),
        ]
    }
}

/// The speed expected of the middle one of a test's tokens.
fn predicted(session: &Session, test: &Test) -> Option<f64> {
    let prediction = session.model().plan().prediction.as_ref()?;
    Some(prediction.tokens_per_second(test.depth() + test.n() / 2))
}

/// Layers of which both halves are on the GPU.
fn layers_on_gpu(session: &Session) -> usize {
    let model = session.model();
    let devices = model.placement().devices();
    let halves = model.program().blocks.iter().zip(devices).filter(|(_, device)| *device == Device::Gpu);
    let layers = halves.filter_map(|(block, _)| match block.kind {
        BlockKind::Attention(layer) | BlockKind::FeedForward(layer) => Some(layer),
        BlockKind::Embed | BlockKind::Head => None,
    });
    let mut halves = vec![0; model.program().hparams.n_layer];
    layers.for_each(|layer| halves[layer] += 1);
    halves.into_iter().filter(|n| *n == 2).count()
}

/// Writes rows as they come.
pub(super) struct Table {
    format: Format,
    n_rows: usize,
    /// Least widths of the Markdown columns; those without are not shown.
    least: [Option<usize>; COLUMNS],
    /// The last limits shown: bytes and operations per second.
    memory: Option<f64>,
    peak: Option<f64>,
}

/// Number of columns.
const COLUMNS: usize = 13;
/// A row of the Markdown table.
type Cells = [String; COLUMNS];

const HEADER: [&str; COLUMNS] = [
    "model",
    "size",
    "params",
    "backend",
    "threads",
    "ngl",
    "test",
    "t/s",
    "GB/s",
    "of memory",
    "Gop/s",
    "of peak",
    "host us",
];

impl Table {
    /// A table of these tests. Numbers of threads and of layers on the GPU are columns where there are `n_threads` or
    /// `n_layers` of them.
    pub(super) fn new(format: Format, tests: &[Test], n_threads: usize, n_layers: usize) -> Table {
        let test_width = tests.iter().map(|test| test.name().len()).max().unwrap_or(0);
        let mut least = HEADER.map(|name| Some(name.len()));
        // What a later row may take.
        for (name, width) in [("test", test_width), ("t/s", 16), ("GB/s", 6), ("Gop/s", 6)] {
            least[column(name)] = Some(width.max(name.len()));
        }
        for (name, n) in [("threads", n_threads), ("ngl", n_layers)] {
            if n < 2 {
                least[column(name)] = None;
            }
        }
        least[column("host us")] = None;
        Table { format, n_rows: 0, least, memory: None, peak: None }
    }

    /// Shows what a GPU costs the CPU. A table whose first row is of a GPU does so by itself.
    pub(super) fn show_gpu(&mut self) {
        self.least[column("host us")] = Some("host us".len());
    }

    /// Writes one row, after the header if it is the first.
    pub(super) fn row(&mut self, row: Row, out: &mut dyn Write) -> io::Result<()> {
        let is_first = self.n_rows == 0;
        if is_first && row.device != Device::Cpu.name() {
            self.show_gpu();
        }
        self.n_rows += 1;
        self.memory = row.memory_gb_per_s.or(self.memory);
        self.peak = row.peak_gop_per_s.or(self.peak);
        match self.format {
            Format::Md => {
                let cells = row.cells();
                if is_first {
                    self.markdown(&cells, &HEADER.map(str::to_owned), out)?;
                    self.rule(&cells, out)?;
                }
                self.markdown(&cells, &cells, out)?;
            }
            Format::Json => write!(out, "{}{:#}", if is_first { "[\n" } else { ",\n" }, row.json()?)?,
            Format::Jsonl => writeln!(out, "{}", row.json()?)?,
            Format::Csv => csv(&row.json()?, is_first, out)?,
        }
        out.flush()
    }

    /// Writes what comes after the last row.
    pub(super) fn end(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.format {
            Format::Md => self.footnote(out),
            Format::Json => writeln!(out, "\n]"),
            Format::Jsonl | Format::Csv => Ok(()),
        }
    }

    /// What the shares are shares of.
    fn footnote(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out)?;
        if let Some(memory) = self.memory {
            writeln!(out, "Memory read bandwidth measured here: {memory:.1} GB/s. GB/s: weights read per second.")?;
        }
        if let Some(peak) = self.peak {
            writeln!(out, "Peak measured here: {peak:.0} Gop/s. Gop/s: additions and multiplications with weights.")?;
        }
        if self.least[column("host us")].is_some() {
            let what =
                "microseconds per token in which the GPU waits for the CPU, which hands work over and reads results";
            writeln!(out, "host us: {what}.")?;
        }
        Ok(())
    }

    /// The columns shown, with their widths in a table with rows like this one.
    fn columns(&self, like: &Cells) -> Vec<(usize, usize)> {
        let width = |(i, least): (usize, &Option<usize>)| Some((i, like[i].chars().count().max((*least)?)));
        self.least.iter().enumerate().filter_map(width).collect()
    }

    fn markdown(&self, like: &Cells, cells: &Cells, out: &mut dyn Write) -> io::Result<()> {
        for (i, width) in self.columns(like) {
            let cell = &cells[i];
            if is_text(i) { write!(out, "| {cell:<width$} ")? } else { write!(out, "| {cell:>width$} ")? }
        }
        writeln!(out, "|")
    }

    fn rule(&self, like: &Cells, out: &mut dyn Write) -> io::Result<()> {
        for (i, width) in self.columns(like) {
            let dashes = "-".repeat(width);
            if is_text(i) { write!(out, "| {dashes} ")? } else { write!(out, "| {dashes}:")? }
        }
        writeln!(out, "|")
    }
}

/// The index of a column.
fn column(name: &str) -> usize {
    HEADER.iter().position(|n| *n == name).unwrap_or(0)
}

/// The local time, as results are dated.
pub(super) fn now() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// Columns of words are aligned to the left.
fn is_text(column: usize) -> bool {
    matches!(HEADER[column], "model" | "backend")
}

/// A row as comma-separated values; lists are separated by spaces.
pub(super) fn csv(row: &Value, header: bool, out: &mut dyn Write) -> io::Result<()> {
    let Some(fields) = row.as_object() else { return Ok(()) };
    if header {
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        writeln!(out, "{}", names.join(","))?;
    }
    let values: Vec<String> = fields.values().map(csv_value).collect();
    writeln!(out, "{}", values.join(","))
}

fn csv_value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.contains([',', '"', '\n']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(csv_value).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
