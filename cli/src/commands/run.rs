//! `tandem run`: one answer, streamed.

use std::io::{self, IsTerminal, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tandem_engine::sampler::{SamplerChain, SamplerParams};
use tandem_engine::{GenerateOptions, Generation, StopReason, generate};

use crate::args::{LoadArgs, ModelArgs, SamplingArgs};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open::{self, Language};
use crate::prompt::{self, Message};
use crate::ui::{self, Ui};

/// Options of `tandem run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The prompt; without it, it is read from -f, or from stdin when that is a pipe
    prompt: Option<String>,
    /// Read the prompt from a file (- is stdin); one line end at its very end is left out
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// A system message in front of the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Plain completion: the chat template is not applied
    #[arg(long)]
    raw: bool,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 512)]
    predict: usize,
    /// End the answer at this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the model's end token
    #[arg(long)]
    ignore_eos: bool,
    /// Take special tokens in the prompt, such as <|im_end|>, for those tokens; they are plain text without this
    #[arg(long)]
    parse_special: bool,
    /// Print one JSON object at the end in place of streamed text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Answers.
pub(crate) fn run(args: &RunArgs, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let options = args.load.options();
    let params = args.sampling.params();
    // Before anything is fetched or loaded; the vocabulary's size matters for the bias only.
    SamplerChain::new(&SamplerParams { logit_bias: Vec::new(), ..params.clone() }, 1)?;
    if args.prompt.is_none() && args.file.is_none() && io::stdin().is_terminal() {
        return Err(Failure::usage("there is no prompt: give it as an argument, with -f FILE, or through a pipe"));
    }
    let gguf = open::open(&args.model, ui, interrupt)?;
    let text = interrupt.leaving(|| read_prompt(args))?;
    let start = Instant::now();
    let language = open::language(&gguf, !args.raw)?;
    let mut load_time = start.elapsed();
    // Before the weights, which take longer to load than it takes to refuse a prompt.
    let prompt = interrupt.leaving(|| prompt_ids(args, &text, &language, ui))?;
    let start = Instant::now();
    let mut session = open::load(gguf, &options, ui, interrupt)?;
    load_time += start.elapsed();
    let n_vocab = session.model().program().hparams.n_vocab;
    let mut sampler = SamplerChain::new(&params, n_vocab)?;
    if !sampler.is_greedy() {
        ui.detail(format_args!("seed {}", sampler.seed()));
    }

    let mut output = Output::new(!args.json);
    let options = GenerateOptions {
        max_tokens: args.predict,
        stop: args.stop.clone(),
        ignore_eos: args.ignore_eos,
        special: false,
    };
    let answer =
        generate(&mut session, &language.tokenizer, &mut sampler, &prompt, &options, &mut |text| output.text(text))?;
    output.end()?;
    if args.json {
        ui::print(format!("{}\n", to_json(&prompt, &answer, load_time)))?;
    }
    ui.note(timings(&answer, Some(load_time)));
    match answer.stop_reason {
        StopReason::Interrupted => Err(Failure::interrupted()),
        StopReason::Context => {
            let n_ctx = session.model().n_ctx();
            ui.note(format_args!("the context of {n_ctx} tokens is full; -c gives a longer one"));
            Ok(())
        }
        StopReason::Eos | StopReason::Length | StopReason::Stop => Ok(()),
    }
}

/// The prompt's text, wherever it comes from.
fn read_prompt(args: &RunArgs) -> anyhow::Result<Vec<u8>> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone().into_bytes());
    }
    let mut text = read_input(args.file.as_deref())?;
    // Files and `echo` end with a line end that nobody means.
    if text.ends_with(b"\n") {
        text.pop();
        if text.ends_with(b"\r") {
            text.pop();
        }
    }
    Ok(text)
}

/// The bytes of a file, or of stdin without one (or with `-`).
pub(crate) fn read_input(file: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match file.filter(|path| *path != Path::new("-")) {
        Some(path) => {
            bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        None => {
            io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
        }
    }
    Ok(bytes)
}

fn prompt_ids(args: &RunArgs, text: &[u8], language: &Language, ui: &Ui) -> anyhow::Result<Vec<u32>> {
    let Some(template) = language.template.as_ref().filter(|_| !args.raw) else {
        if args.system.is_some() {
            return Err(Failure::usage("--system needs a chat template, and this model has none"));
        }
        if !args.raw {
            ui.note("this model has no chat template: the prompt is completed as plain text");
        }
        return Ok(prompt::plain(&language.tokenizer, text, args.parse_special));
    };
    let text = std::str::from_utf8(text).map_err(|e| {
        Failure::usage(format!("the prompt is not UTF-8 (byte {}); --raw completes any bytes", e.valid_up_to()))
    })?;
    if text.is_empty() {
        return Err(Failure::usage("the prompt is empty"));
    }
    let mut messages: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    messages.push(Message::new("user", text));
    prompt::chat(&language.tokenizer, template, &messages, args.parse_special)
}

/// Streamed text on its way to stdout. The first failure to write (somebody closed the pipe) stops the answer.
pub(crate) struct Output {
    stream: bool,
    in_line: bool,
    result: io::Result<()>,
}

impl Output {
    /// Nothing written yet; without `stream`, nothing ever is.
    pub(crate) fn new(stream: bool) -> Output {
        Output { stream, in_line: false, result: Ok(()) }
    }

    /// Writes a piece of text.
    pub(crate) fn text(&mut self, text: &str) -> ControlFlow<()> {
        if self.stream {
            self.result = ui::print(text);
            self.in_line = !text.ends_with('\n');
        }
        if self.result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Ends the last line, and says how writing went.
    pub(crate) fn end(self) -> io::Result<()> {
        self.result?;
        if self.in_line { ui::print("\n") } else { Ok(()) }
    }
}

/// The line of timings.
pub(crate) fn timings(answer: &Generation, load: Option<Duration>) -> String {
    let t = &answer.timings;
    let load = load.map(|time| format!("load {}; ", ui::duration(time))).unwrap_or_default();
    let reused = if answer.n_reused > 0 { format!(" (and {} reused)", answer.n_reused) } else { String::new() };
    format!(
        "{load}prompt {} tokens{reused}, {:.1} t/s; generation {} tokens, {:.1} t/s",
        t.n_prompt_evaluated,
        t.prompt_per_second(),
        answer.tokens.len(),
        t.generation_per_second()
    )
}

/// The answer as an object: token ids as in `tokenize`, counts and times under `timings`.
fn to_json(prompt: &[u32], answer: &Generation, load: Duration) -> serde_json::Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let t = &answer.timings;
    json!({
        "text": answer.text,
        "prompt_tokens": prompt,
        "tokens": answer.tokens,
        "stop_reason": answer.stop_reason.name(),
        "timings": {
            "n_prompt": answer.n_prompt,
            "n_gen": answer.tokens.len(),
            "load_ms": ms(load),
            "prompt_ms": ms(t.prompt),
            "prompt_per_second": t.prompt_per_second(),
            "generation_ms": ms(t.generation),
            "generation_per_second": t.generation_per_second(),
        },
    })
}
