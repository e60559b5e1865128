//! The arguments: what every command shares. Options of one command are in its own file.

use std::ffi::{OsStr, OsString};

use clap::builder::{EnumValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tandem_engine::cpu::IsaLevel;
use tandem_engine::placement::GpuLayers;
use tandem_engine::sampler::SamplerParams;
use tandem_engine::{KvType, LoadOptions, Precision};

use crate::commands::{
    bench, chat, compare, completions, devices, imatrix, info, logits, perplexity, plan, pull, quantize, run, template,
    tokenize, verify,
};
use crate::fetch;
use crate::placement::{PlacementArgs, cache_folder};
use crate::threads::physical_cores;

/// Most threads that `-t` takes.
const MAX_THREADS: usize = 1024;

/// Runs large language models (GGUF files) on this machine.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 failure while running, 2 wrong usage, 3 the model file cannot be used,\n\
                        4 cannot be placed as asked, 130 interrupted."
)]
pub(crate) struct Cli {
    /// Say less on stderr: warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 900)]
    pub(crate) quiet: bool,
    /// Say more on stderr
    #[arg(short, long, global = true, display_order = 901)]
    pub(crate) verbose: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands; each is one file in `commands`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer one prompt
    Run(run::RunArgs),
    /// Hold a conversation
    Chat(chat::ChatArgs),
    /// Measure how fast a model runs
    Bench(bench::BenchArgs),
    /// Show what is in a model file
    Info(info::InfoArgs),
    /// Show the CPU and the GPUs
    Devices(devices::DevicesArgs),
    /// Show what would run where, in how much memory and how fast, without loading the model
    Plan(plan::PlanArgs),
    /// Check that the GPU computes what the CPU computes, block by block
    Verify(verify::VerifyArgs),
    /// Fetch a model, or list what is here
    Pull(pull::PullArgs),
    /// Turn text into token ids, or back
    Tokenize(tokenize::TokenizeArgs),
    /// Render a chat template
    Template(template::TemplateArgs),
    /// Write the logits of given tokens to a file
    Logits(logits::LogitsArgs),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::PerplexityArgs),
    /// Compare two models over a text, and their weights
    Compare(compare::CompareArgs),
    /// Gather from a text how important each column of each matrix is
    Imatrix(imatrix::ImatrixArgs),
    /// Make a smaller model of a model: quantize its weights
    Quantize(quantize::QuantizeArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page (roff)
    Man,
}

/// Which model.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A path to a .gguf file (the first part of a split one), a name of the catalog, or org/repo[:QUANT] on the
    /// Hugging Face hub [default: smollm2, fetched on first use]
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
}

impl ModelArgs {
    /// The reference given, or the first model of the catalog.
    pub(crate) fn reference(&self) -> &str {
        self.model.as_deref().unwrap_or(fetch::catalog()[0].alias)
    }
}

/// How a model is loaded.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoadArgs {
    /// CPU threads [default: the physical cores this process may use]
    #[arg(short, long, value_name = "N", value_parser = thread_count)]
    pub(crate) threads: Option<usize>,
    /// Layers on the GPU (also -ngl): the last N, all (and the output head), or auto: what fits and is fastest
    #[arg(long, value_name = "N", default_value = "auto", allow_negative_numbers = true)]
    pub(crate) gpu_layers: GpuLayers,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    /// Highest CPU instruction set to use, for tests and comparisons
    #[arg(long, value_name = "ISA", hide_short_help = true, value_parser = cpu_isa())]
    pub(crate) cpu_isa: Option<IsaLevel>,
}

/// Context length, and how numbers in it are stored.
#[derive(Debug, Clone, Args)]
pub(crate) struct ContextArgs {
    /// Context length in tokens [default: the smaller of the model's own and 8192; bench and logits: what they need;
    /// perplexity, compare and imatrix: 512]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub(crate) ctx: Option<usize>,
    /// Type of the K and V cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type)]
    pub(crate) kv_type: KvType,
    /// fast: activations quantized to int8 for the dot products; exact: f32 activations and cache, for checking
    #[arg(long, value_name = "PRECISION", default_value = "fast")]
    pub(crate) precision: PrecisionArg,
}

impl LoadArgs {
    /// The engine's options.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            threads: Some(self.threads.unwrap_or_else(physical_cores)),
            n_ctx: self.context.ctx,
            precision: self.context.precision.into(),
            kv_type: self.context.kv_type,
            isa: self.cpu_isa,
            wanted: self.placement.wanted(self.gpu_layers),
            cache_folder: cache_folder(),
            ..LoadOptions::default()
        }
    }
}

/// `--precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArg {
    Fast,
    Exact,
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Precision {
        match arg {
            PrecisionArg::Fast => Precision::Fast,
            PrecisionArg::Exact => Precision::Exact,
        }
    }
}

/// `--cpu-isa`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CpuIsa {
    Scalar,
    Avx2,
    Avx512,
    #[value(name = "avx512bf16")]
    Avx512Bf16,
    #[value(name = "avx512fp16")]
    Avx512Fp16,
    Neon,
    NeonDotprod,
}

/// Reads a value of `--cpu-isa`. One that no CPU of this architecture has is refused; one that this CPU lacks is a limit
/// like any other.
pub(crate) fn cpu_isa() -> impl TypedValueParser<Value = IsaLevel> {
    EnumValueParser::<CpuIsa>::new().try_map(|arg| {
        let level = match arg {
            CpuIsa::Scalar => IsaLevel::Scalar,
            CpuIsa::Avx2 => IsaLevel::Avx2,
            CpuIsa::Avx512 => IsaLevel::Avx512,
            CpuIsa::Avx512Bf16 => IsaLevel::Avx512Bf16,
            CpuIsa::Avx512Fp16 => IsaLevel::Avx512Fp16,
            CpuIsa::Neon => IsaLevel::Neon,
            CpuIsa::NeonDotprod => IsaLevel::NeonDotprod,
        };
        if level.is_of_this_architecture() {
            Ok(level)
        } else {
            Err(format!("no CPU of this architecture ({}) has it", std::env::consts::ARCH))
        }
    })
}

/// How tokens are chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = SamplerParams::default().temp)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) temp: f32,
    /// Only the K most likely tokens stay; 0: all
    #[arg(long, value_name = "K", default_value_t = SamplerParams::default().top_k)]
    pub(crate) top_k: usize,
    /// Only the most likely tokens that together have this probability stay; 1: all
    #[arg(long, value_name = "P", default_value_t = SamplerParams::default().top_p)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) top_p: f32,
    /// Only tokens at least this fraction as likely as the best one stay; 0: all
    #[arg(long, value_name = "P", default_value_t = SamplerParams::default().min_p)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) min_p: f32,
    /// Makes tokens of the last --repeat-last-n less likely; 1: off
    #[arg(long, value_name = "R", default_value_t = SamplerParams::default().repeat_penalty)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) repeat_penalty: f32,
    /// How many of the last tokens the penalties look at
    #[arg(long, value_name = "N", default_value_t = SamplerParams::default().repeat_last_n)]
    pub(crate) repeat_last_n: usize,
    /// Taken from the logit of every token seen; 0: off
    #[arg(long, value_name = "A", default_value_t = SamplerParams::default().presence_penalty)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,
    /// Taken from the logit of a token for each time it was seen; 0: off
    #[arg(long, value_name = "A", default_value_t = SamplerParams::default().frequency_penalty)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,
    /// Added to the logit of a token (repeatable), as in 42=-1.5; -inf bans it
    #[arg(long, value_name = "ID=BIAS", value_parser = logit_bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Start of the random numbers; the same seed gives the same text [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

impl SamplingArgs {
    /// The sampler's parameters.
    pub(crate) fn params(&self) -> SamplerParams {
        SamplerParams {
            temp: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            logit_bias: self.logit_bias.clone(),
        }
    }
}

/// A number of at least 1.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("give a whole number of at least 1".to_owned()),
        Ok(n) => Ok(n),
    }
}

/// A number of threads that some machine has: more would take minutes to start, and be of no use.
pub(crate) fn thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=MAX_THREADS).contains(&n) => Ok(n),
        _ => Err(format!("give a whole number from 1 to {MAX_THREADS}")),
    }
}

fn kv_type(text: &str) -> Result<KvType, String> {
    let names = || KvType::ALL.map(KvType::name).join(", ");
    KvType::ALL.into_iter().find(|kv_type| kv_type.name() == text).ok_or_else(|| format!("give one of {}", names()))
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let wanted = || "give ID=BIAS, as in 42=-1.5".to_owned();
    let (id, bias) = text.split_once('=').ok_or_else(wanted)?;
    let bias: f32 = bias.trim().parse().map_err(|_| wanted())?;
    if bias.is_nan() || bias == f32::INFINITY {
        return Err(format!("{bias} is no bias: it is a number, or -inf"));
    }
    Ok((id.trim().parse().map_err(|_| wanted())?, bias))
}

/// Rewrites `-ngl`, which users of other engines type, to its long form: clap knows no long options with one dash.
pub(crate) fn with_long_options(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut rest_is_text = false;
    let rewrite = |arg: OsString| {
        rest_is_text |= arg == "--";
        match arg.to_str() {
            Some("-ngl") if !rest_is_text => OsStr::new("--gpu-layers").to_owned(),
            Some(text) if !rest_is_text && text.starts_with("-ngl=") => {
                OsString::from(text.replacen("-ngl", "--gpu-layers", 1))
            }
            _ => arg,
        }
    };
    args.into_iter().map(rewrite).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_contradiction() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn ngl_with_one_dash() {
        let rewritten = |args: &[&str]| with_long_options(args.iter().map(OsString::from)).join(OsStr::new(" "));
        assert_eq!(rewritten(&["run", "-ngl", "4", "-ngl=all"]), "run --gpu-layers 4 --gpu-layers=all");
        assert_eq!(rewritten(&["run", "--", "-ngl"]), "run -- -ngl");
    }
}
