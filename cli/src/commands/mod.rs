//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod devices;
pub(crate) mod imatrix;
pub(crate) mod info;
pub(crate) mod logits;
pub(crate) mod perplexity;
pub(crate) mod plan;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod run;
pub(crate) mod template;
pub(crate) mod tokenize;
pub(crate) mod verify;

use crate::args::Command;
use crate::interrupt::Interrupt;
use crate::ui::Ui;

/// Runs a command.
pub(crate) fn run(command: Command, ui: &Ui) -> anyhow::Result<()> {
    let mut interrupt = Interrupt::new()?;
    match command {
        Command::Run(args) => run::run(&args, ui, &mut interrupt),
        Command::Chat(args) => chat::run(&args, ui, &mut interrupt),
        Command::Bench(args) => bench::run(&args, ui, &mut interrupt),
        Command::Info(args) => info::run(&args, ui, &interrupt),
        Command::Devices(args) => devices::run(&args),
        Command::Plan(args) => plan::run(&args, ui, &interrupt),
        Command::Verify(args) => verify::run(&args, ui, &interrupt),
        Command::Pull(args) => pull::run(&args, ui, &interrupt),
        Command::Tokenize(args) => tokenize::run(&args, ui, &interrupt),
        Command::Template(args) => template::run(&args, ui, &interrupt),
        Command::Logits(args) => logits::run(&args, ui, &mut interrupt),
        Command::Quantize(args) => quantize::run(&args, ui, &mut interrupt),
        Command::Perplexity(args) => perplexity::run(&args, ui, &mut interrupt),
        Command::Imatrix(args) => imatrix::run(&args, ui, &mut interrupt),
        Command::Compare(args) => compare::run(&args, ui, &mut interrupt),
        Command::Completions(args) => completions::run(&args),
        Command::Man => completions::man(),
    }
}
