//! `tandem bench`: how fast a model runs, by the method of llama-bench.
//!
//! For every combination of the lists: a warm-up, then for each repetition the cache is cleared, the depth is evaluated
//! without counting, and the prompt (or the generation, one token at a time) is timed. Tokens are random.
//!
//! Results are given as shares of what this machine can do at most, measured on the spot: `--roofline` shows that alone.

mod limits;
mod measure;
mod table;

use std::io::Write;

use clap::{Args, ValueEnum};
use tandem_engine::LoadOptions;
use tandem_engine::cpu::IsaLevel;
use tandem_engine::placement::{Device, GpuLayers};

use crate::args::{ContextArgs, ModelArgs, cpu_isa, positive, thread_count};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::placement::{PlacementArgs, cache_folder};
use crate::threads::physical_cores;
use crate::ui::Ui;
use limits::{Limits, Work};
use measure::Test;
use table::{Row, Table};

/// Options of `tandem bench`. Lists (128,512) make all combinations.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Prompt lengths to measure; 0: none
    #[arg(short = 'p', long, value_name = "N,...", value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Numbers of tokens to generate; 0: none
    #[arg(short = 'n', long, value_name = "N,...", value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,
    /// Tokens in the context before the measurement begins
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Repetitions
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = positive)]
    repetitions: usize,
    /// How to print the results
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
    /// The same as -o json
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Only measure this machine: how fast it reads memory and multiplies. No model is needed
    #[arg(long, conflicts_with_all = ["n_prompt", "n_gen", "depth", "repetitions", "model"])]
    roofline: bool,
    #[command(flatten)]
    model: ModelArgs,
    /// CPU threads [default: the physical cores this process may use]
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', value_parser = thread_count)]
    threads: Vec<usize>,
    /// Layers on the GPU (also -ngl): the last N, all (and the output head), or auto: what fits and is fastest
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "auto", allow_negative_numbers = true)]
    gpu_layers: Vec<GpuLayers>,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    context: ContextArgs,
    /// Highest CPU instruction set to use, for tests and comparisons
    #[arg(long, value_name = "ISA", hide_short_help = true, value_parser = cpu_isa())]
    cpu_isa: Option<IsaLevel>,
}

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A Markdown table
    Md,
    /// A JSON array of rows
    Json,
    /// One JSON object per line
    Jsonl,
    /// Comma-separated values with a header
    Csv,
}

/// Measures and prints row by row.
pub(crate) fn run(args: &BenchArgs, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let mut limits = Limits::new(args.cpu_isa);
    if args.roofline {
        return limits::print(&mut limits, &args.threads(), args.format());
    }
    let tests = args.tests();
    let Some(longest) = tests.iter().map(Test::n_ctx).max() else {
        return Err(Failure::usage("there is nothing to measure: -p and -n are both 0"));
    };
    if let Some(n_ctx) = args.context.ctx.filter(|n_ctx| *n_ctx < longest) {
        return Err(Failure::usage(format!(
            "-c {n_ctx}: the longest of these tests needs a context of {longest} tokens"
        )));
    }
    let gguf = open::open(&args.model, ui, interrupt)?;
    let mut table = Table::new(args.format(), &tests, args.threads().len(), args.gpu_layers.len());
    if args.gpu_layers.iter().any(|layers| !matches!(layers, GpuLayers::Auto | GpuLayers::Count(0))) {
        table.show_gpu();
    }
    for n_threads in args.threads() {
        for &layers in &args.gpu_layers {
            let options = args.load_options(n_threads, layers, longest);
            let mut session = open::load_session(gguf.clone(), &options, ui, interrupt)?;
            let work = Work::of(&gguf, session.model().program(), options.precision);
            for test in &tests {
                let measured = measure::run(&mut session, test, args.repetitions)?;
                let mut row = Row::new(&gguf, &session, test, layers, measured);
                let on_cpu = session.model().placement().devices_in_use() == [Device::Cpu];
                row.set_limits(&work, test, if on_cpu { Some(limits.of(n_threads)?) } else { None });
                table.row(row, &mut std::io::stdout().lock())?;
            }
        }
    }
    let mut out = std::io::stdout().lock();
    table.end(&mut out)?;
    Ok(out.flush()?)
}

impl BenchArgs {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }

    fn threads(&self) -> Vec<usize> {
        if self.threads.is_empty() { vec![physical_cores()] } else { self.threads.clone() }
    }

    /// Prompt before generation, at each depth.
    fn tests(&self) -> Vec<Test> {
        let mut tests = Vec::new();
        for &depth in &self.depth {
            tests.extend(self.n_prompt.iter().filter(|n| **n > 0).map(|&n| Test::Prompt { n, depth }));
            tests.extend(self.n_gen.iter().filter(|n| **n > 0).map(|&n| Test::Generation { n, depth }));
        }
        tests
    }

    fn load_options(&self, threads: usize, layers: GpuLayers, longest: usize) -> LoadOptions {
        LoadOptions {
            threads: Some(threads),
            n_ctx: Some(self.context.ctx.unwrap_or(longest)),
            precision: self.context.precision.into(),
            kv_type: self.context.kv_type,
            isa: self.cpu_isa,
            wanted: self.placement.wanted(layers),
            cache_folder: cache_folder(),
            ..LoadOptions::default()
        }
    }
}
