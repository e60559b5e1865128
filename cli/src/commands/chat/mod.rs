//! `tandem chat`: a conversation.

mod commands;
mod conversation;
mod input;

use clap::Args;
use tandem_engine::sampler::SamplerChain;

use crate::args::{LoadArgs, ModelArgs, SamplingArgs};
use crate::interrupt::Interrupt;
use crate::open;
use crate::ui::Ui;
use commands::{Command, Next};
use conversation::Conversation;
use input::{Input, Turn};

/// Options of `tandem chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// A system message in front of the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer [default: what the context holds]
    #[arg(short = 'n', long, value_name = "N")]
    predict: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Converses until the input ends.
pub(crate) fn run(args: &ChatArgs, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let options = args.load.options();
    let params = args.sampling.params();
    SamplerChain::new(&tandem_engine::sampler::SamplerParams { logit_bias: Vec::new(), ..params.clone() }, 1)?;
    let gguf = open::open(&args.model, ui, interrupt)?;
    let language = open::language(&gguf, true)?;
    let session = open::load(gguf, &options, ui, interrupt)?;
    let max_tokens = args.predict.unwrap_or(usize::MAX);
    let mut chat = Conversation::new(session, language, params, max_tokens, args.system.clone(), ui)?;
    let mut input = Input::new(ui)?;
    if input.is_terminal() {
        ui.note("Type a message; /help lists the commands, Ctrl-D leaves.");
    }
    loop {
        let (text, is_quoted) = match input.next()? {
            Turn::Text(text) => (text, false),
            Turn::Quoted(text) => (text, true),
            Turn::Cancelled => {
                ui.note("Ctrl-D or /exit leaves.");
                continue;
            }
            Turn::End => return Ok(()),
        };
        let result = match Command::parse(&text) {
            _ if text.trim().is_empty() => continue,
            _ if is_quoted => chat.ask(text, ui, interrupt),
            None => chat.ask(text, ui, interrupt),
            Some(Err(problem)) => {
                ui.warn(problem);
                continue;
            }
            Some(Ok(command)) => match command.run(&mut chat, ui, interrupt) {
                Ok(Next::Leave) => return Ok(()),
                Ok(Next::Stay) => Ok(()),
                Err(error) => Err(error),
            },
        };
        // What goes wrong with one message is no reason to end the conversation, unless nobody reads us any more.
        match result {
            Err(error) if crate::exit::is_broken_pipe(&error) => return Err(error),
            Err(error) => ui.error(&error),
            Ok(()) => {}
        }
    }
}
