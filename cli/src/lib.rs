//! What the `tandem` command is made of.
//!
//! `main` parses the arguments ([`args`]), and [`commands`] has one file for each command. Answers go to stdout,
//! everything else to stderr ([`ui`]); every error ends in one of the exit codes of [`exit`].

mod args;
mod commands;
mod exit;
pub mod fetch;
mod ids;
mod interrupt;
mod known;
mod open;
mod output;
mod placement;
mod prompt;
mod threads;
mod ui;
mod windows;

use std::process::ExitCode;

use clap::Parser;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    quiet_drivers();
    #[cfg(feature = "gpu")]
    tandem_engine::gpu::hide_caught_panics();
    let cli = match args::Cli::try_parse_from(args::with_long_options(std::env::args_os())) {
        Ok(cli) => cli,
        // Usage errors, and help and version, which clap treats alike. A closed pipe is no reason to complain.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    let ui = ui::Ui::new(cli.quiet, cli.verbose);
    exit::report(&ui, commands::run(cli.command, &ui))
}

/// Gives graphics drivers the folder they expect: some print an error to stderr where a session has none.
fn quiet_drivers() {
    const NAME: &str = "XDG_RUNTIME_DIR";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: the first thing the process does: no other thread reads or writes the environment.
        unsafe { std::env::set_var(NAME, std::env::temp_dir()) };
    }
}
