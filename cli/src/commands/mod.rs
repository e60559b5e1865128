//! The commands, one file each.

pub(crate) mod completions;
pub(crate) mod pull;
pub(crate) mod run;

use crate::args::Command;
use crate::interrupt::Interrupt;
use crate::ui::Ui;

/// Runs a command.
pub(crate) fn run(command: Command, ui: &Ui) -> anyhow::Result<()> {
    let mut interrupt = Interrupt::new()?;
    match command {
        Command::Run(args) => run::run(&args, ui, &mut interrupt),
        Command::Pull(args) => pull::run(&args, ui, &interrupt),
        Command::Completions(args) => completions::run(&args),
        Command::Man => completions::man(),
    }
}
