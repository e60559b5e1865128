//! The slash commands: one row each.

use std::path::Path;
use std::str::FromStr;

use anyhow::Result;
use tandem_engine::sampler::{SamplerChain, SamplerParams};

use super::conversation::Conversation;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::ui::Ui;

/// Whether the conversation goes on.
pub(super) enum Next {
    Stay,
    Leave,
}

type Run = fn(&mut Conversation, &str, &Ui, &Interrupt) -> Result<Next>;

/// A slash command.
struct Row {
    name: &'static str,
    argument: &'static str,
    what: &'static str,
    run: Run,
}

const fn row(name: &'static str, argument: &'static str, what: &'static str, run: Run) -> Row {
    Row { name, argument, what, run }
}

const COMMANDS: &[Row] = &[
    row("help", "", "list the commands", help),
    row("exit", "", "leave (also Ctrl-D)", |_, _, _, _| Ok(Next::Leave)),
    row("clear", "", "forget the conversation, keep the system message", clear),
    row("system", "[TEXT]", "show the system message, or set it (- removes it)", system),
    row("regen", "", "answer the last message again", regen),
    row("set", "[NAME VALUE]", "show the settings, or change one", set),
    row("save", "FILE", "write the conversation to a JSON file", save),
    row("load", "FILE", "go on with a saved conversation", load),
    row("stats", "", "tokens, speed, and what was reused", stats),
];

/// A command with its argument.
pub(super) struct Command<'a> {
    row: &'static Row,
    argument: &'a str,
}

impl<'a> Command<'a> {
    /// The command in a line, `None` where it is a message, an error where there is no such command.
    pub(super) fn parse(line: &'a str) -> Option<Result<Command<'a>, String>> {
        let rest = line.trim().strip_prefix('/')?;
        // A path or a comment at the start of a message is no command.
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic()) {
            return None;
        }
        let found = COMMANDS.iter().find(|row| row.name == name);
        Some(match found {
            Some(row) => Ok(Command { row, argument: argument.trim() }),
            None => Err(format!("there is no command /{name}; /help lists them")),
        })
    }

    /// Does what it says.
    pub(super) fn run(&self, chat: &mut Conversation, ui: &Ui, interrupt: &Interrupt) -> Result<Next> {
        (self.row.run)(chat, self.argument, ui, interrupt)
    }
}

fn help(_: &mut Conversation, _: &str, ui: &Ui, _: &Interrupt) -> Result<Next> {
    for row in COMMANDS {
        ui.say(format_args!("{:<22} {}", format!("/{} {}", row.name, row.argument), row.what));
    }
    ui.say("A line that ends in \\ goes on in the next one; \"\"\" begins and ends a message of several lines.");
    ui.say("Ctrl-C stops an answer, a second one leaves.");
    Ok(Next::Stay)
}

fn clear(chat: &mut Conversation, _: &str, ui: &Ui, _: &Interrupt) -> Result<Next> {
    chat.clear();
    ui.note("the conversation is empty");
    Ok(Next::Stay)
}

fn system(chat: &mut Conversation, text: &str, ui: &Ui, _: &Interrupt) -> Result<Next> {
    match text {
        "" => ui.say(chat.system().unwrap_or("there is no system message")),
        "-" => chat.set_system(None),
        text => chat.set_system(Some(text.to_owned())),
    }
    Ok(Next::Stay)
}

fn regen(chat: &mut Conversation, _: &str, ui: &Ui, interrupt: &Interrupt) -> Result<Next> {
    chat.regenerate(ui, interrupt)?;
    Ok(Next::Stay)
}

fn save(chat: &mut Conversation, path: &str, ui: &Ui, _: &Interrupt) -> Result<Next> {
    let n = chat.save(file(path)?)?;
    ui.note(format_args!("wrote {n} messages to {path}"));
    Ok(Next::Stay)
}

fn load(chat: &mut Conversation, path: &str, ui: &Ui, _: &Interrupt) -> Result<Next> {
    let n = chat.load(file(path)?)?;
    ui.note(format_args!("read {n} messages from {path}"));
    Ok(Next::Stay)
}

fn file(path: &str) -> Result<&Path> {
    if path.is_empty() { Err(Failure::usage("give the name of a file")) } else { Ok(Path::new(path)) }
}

fn stats(chat: &mut Conversation, _: &str, ui: &Ui, _: &Interrupt) -> Result<Next> {
    ui.say(chat.stats());
    Ok(Next::Stay)
}

/// A setting: its name, how it is shown, and how it is read.
type Setting = (&'static str, fn(&Conversation) -> String, fn(&mut Conversation, &str) -> Result<()>);

macro_rules! sampling {
    ($field:ident) => {
        (
            stringify!($field),
            |chat| chat.params.$field.to_string(),
            |chat, text| {
                let params = SamplerParams { $field: number(text)?, ..chat.params.clone() };
                // Refuses what is out of range.
                SamplerChain::new(&SamplerParams { logit_bias: Vec::new(), ..params.clone() }, 1)?;
                chat.params = params;
                Ok(())
            },
        )
    };
}

const SETTINGS: &[Setting] = &[
    sampling!(temp),
    sampling!(top_k),
    sampling!(top_p),
    sampling!(min_p),
    sampling!(repeat_penalty),
    sampling!(repeat_last_n),
    sampling!(presence_penalty),
    sampling!(frequency_penalty),
    (
        "seed",
        |chat| chat.params.seed.map_or_else(|| "random".to_owned(), |seed| seed.to_string()),
        |chat, text| {
            chat.params.seed = if text == "random" { None } else { Some(number(text)?) };
            Ok(())
        },
    ),
    (
        "predict",
        |chat| if chat.max_tokens == usize::MAX { "unlimited".to_owned() } else { chat.max_tokens.to_string() },
        |chat, text| {
            chat.max_tokens = if text == "unlimited" { usize::MAX } else { number(text)? };
            Ok(())
        },
    ),
];

fn set(chat: &mut Conversation, argument: &str, ui: &Ui, _: &Interrupt) -> Result<Next> {
    if argument.is_empty() {
        for (name, show, _) in SETTINGS {
            ui.say(format_args!("{name} {}", show(chat)));
        }
        return Ok(Next::Stay);
    }
    let (name, value) = argument.split_once([' ', '=']).unwrap_or((argument, ""));
    // As on the command line, top-k is top_k.
    let wanted = name.replace('-', "_");
    let Some((_, _, change)) = SETTINGS.iter().find(|(name, ..)| *name == wanted) else {
        return Err(Failure::usage(format!("there is no setting {name}; /set lists them")));
    };
    change(chat, value.trim())?;
    Ok(Next::Stay)
}

fn number<T: FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Failure::usage(format!("{text:?} is not a number that fits")))
}
