//! `tandem tokenize`: text to token ids, and back.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use tandem_models::tokenizer::EncodeOptions;

use crate::args::ModelArgs;
use crate::commands::run::read_input;
use crate::exit::Failure;
use crate::ids;
use crate::interrupt::Interrupt;
use crate::open;
use crate::ui::{self, Ui};

/// Options of `tandem tokenize`.
#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    /// The text; without it, it is read from -f or from stdin, every byte as it is
    text: Option<OsString>,
    /// Read the text from a file (- is stdin)
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Take special tokens in the text, such as <|im_end|>, for those tokens
    #[arg(long)]
    parse_special: bool,
    /// Add what the model's rules add in front and at the end
    #[arg(long)]
    add_bos: bool,
    /// Write the bytes of these token ids instead
    #[arg(long, value_name = "IDS", conflicts_with_all = ["text", "file", "parse_special", "add_bos"])]
    detokenize: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Prints a JSON array of ids, or the bytes of ids.
pub(crate) fn run(args: &TokenizeArgs, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
    let from_terminal = args.text.is_none() && args.file.is_none() && io::stdin().is_terminal();
    if args.detokenize.is_none() && from_terminal {
        return Err(Failure::usage("there is no text: give it as an argument, with -f FILE, or through a pipe"));
    }
    let given = args.detokenize.as_deref().map(ids::parse).transpose().map_err(Failure::usage)?;
    let gguf = open::open(&args.model, ui, interrupt)?;
    let tokenizer = open::tokenizer(&gguf)?;
    if let Some(ids) = given {
        if let Some(id) = ids.iter().find(|id| !tokenizer.is_valid(**id)) {
            let n_vocab = tokenizer.n_vocab();
            return Err(Failure::usage(format!("token id {id} is outside the vocabulary of {n_vocab} tokens")));
        }
        return Ok(ui::print(tokenizer.decode(&ids, true))?);
    }
    let text = match &args.text {
        Some(text) => text.as_encoded_bytes().to_vec(),
        None => read_input(args.file.as_deref())?,
    };
    let ids = tokenizer.encode(text, EncodeOptions { add_special: args.add_bos, parse_special: args.parse_special });
    Ok(ui::print(format!("{}\n", serde_json::to_string(&ids)?))?)
}
