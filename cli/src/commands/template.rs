//! `tandem template`: renders a chat template.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use jiff::civil::DateTime;
use serde_json::Value;
use tandem_models::template::{ChatTemplate, RenderContext};
use tandem_models::tokenizer::Tokenizer;

use crate::args::ModelArgs;
use crate::commands::run::read_input;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open;
use crate::prompt::token_text;
use crate::ui::{self, Ui};

/// Options of `tandem template`.
#[derive(Debug, Args)]
pub(crate) struct TemplateArgs {
    /// The messages: a JSON array of objects with role and content (- is stdin)
    #[arg(long, value_name = "FILE.json")]
    messages: PathBuf,
    /// Tools, as the template expects them: a JSON array of schemas
    #[arg(long, value_name = "FILE.json")]
    tools: Option<PathBuf>,
    /// A template to use in place of the model's own; then no model is needed
    #[arg(long, value_name = "FILE.jinja")]
    template: Option<PathBuf>,
    /// Do not end with the opening of the assistant's answer
    #[arg(long)]
    no_generation_prompt: bool,
    /// A variable of the template (repeatable), as JSON: bos_token, eos_token, or any other. What is not JSON is text
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// The time that templates see, as in 2026-01-02T12:34:56 [default: now]
    #[arg(long, value_name = "TIME")]
    now: Option<DateTime>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Prints the rendered text, nothing added.
pub(crate) fn run(args: &TemplateArgs, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut context = RenderContext::new(read_json(&args.messages)?);
    if !context.messages.is_array() {
        let what = "the messages must be a JSON array of objects, as in [{\"role\": \"user\", \"content\": \"Hi\"}]";
        return Err(Failure::usage(format!("{}: {what}", args.messages.display())));
    }
    if let Some(tools) = &args.tools {
        context.tools = read_json(tools)?;
    }
    context.add_generation_prompt = !args.no_generation_prompt;
    context.now = args.now;

    let mut template = None;
    if let Some(path) = &args.template {
        let bytes = read_input(Some(path))?;
        let source = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
        template = Some(ChatTemplate::new(&source).with_context(|| path.display().to_string())?);
    }
    if template.is_none() || args.model.model.is_some() {
        let gguf = open::open(&args.model, ui, interrupt)?;
        match Tokenizer::from_metadata(gguf.metadata()) {
            Ok(tokenizer) => {
                context.bos_token = token_text(&tokenizer, tokenizer.bos());
                context.eos_token = token_text(&tokenizer, tokenizer.eos());
            }
            Err(error) => ui.warn(format_args!("bos_token and eos_token are not defined: {error}")),
        }
        if template.is_none() {
            template = open::template(&gguf)?;
        }
    }
    let Some(template) = template else {
        return Err(Failure::model("this model has no chat template; give one with --template FILE.jinja"));
    };
    for (key, text) in &args.set {
        let value = serde_json::from_str(text).unwrap_or_else(|_| {
            ui.note(format_args!("--set {key}: {text:?} is not JSON and is taken as text"));
            Value::String(text.clone())
        });
        context.extra.insert(key.clone(), value);
    }
    Ok(ui::print(interrupt.leaving(|| template.render(&context))?)?)
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    let bytes = read_input(Some(path))?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::usage(format!("{}: not JSON: {error}", path.display())))
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("give KEY=VALUE".to_owned()),
    }
}
