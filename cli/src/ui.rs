//! What people see on stderr, and the one place that writes to stdout.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::fetch::Progress;
use crate::interrupt::Interrupt;

/// How much is said, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    quiet: bool,
    verbose: bool,
    /// stderr is a terminal.
    pub(crate) terminal: bool,
    /// stderr takes colours.
    colour: bool,
}

impl Ui {
    /// For these verbosity options, and the terminal as it is.
    pub(crate) fn new(quiet: bool, verbose: bool) -> Ui {
        let terminal = io::stderr().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Ui { quiet, verbose, terminal: terminal && !dumb, colour: terminal && !dumb && !no_colour }
    }

    /// A line of information. Not with `-q`.
    pub(crate) fn note(&self, line: impl Display) {
        if !self.quiet {
            // Nobody can be told that stderr is closed.
            let _ = writeln!(io::stderr(), "{}", self.dim(line));
        }
    }

    /// A line the user asked for, also with `-q`.
    pub(crate) fn say(&self, line: impl Display) {
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// A line that only `-v` asks for.
    pub(crate) fn detail(&self, line: impl Display) {
        if self.verbose {
            self.note(line);
        }
    }

    /// A warning, also with `-q`.
    pub(crate) fn warn(&self, line: impl Display) {
        let _ = writeln!(io::stderr(), "{} {line}", self.painted("33", "warning:"));
    }

    /// A warning while text is being written to the same terminal: on a line of its own.
    pub(crate) fn warn_amid_text(&self, line: impl Display) {
        if self.terminal {
            let _ = writeln!(io::stderr());
        }
        self.warn(line);
    }

    /// An error with its causes, in one paragraph.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let mut text = error.to_string();
        for cause in error.chain().skip(1) {
            let cause = cause.to_string();
            // Many messages hold the text of what they wrap.
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        let _ = writeln!(io::stderr(), "{} {text}", self.painted("31", "error:"));
    }

    /// Text for the background of attention.
    pub(crate) fn dim(&self, text: impl Display) -> String {
        self.painted("2", text)
    }

    fn painted(&self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// A bar for `what` on the terminal, nothing elsewhere.
    pub(crate) fn bar(&self, what: &str, total: Option<u64>) -> ProgressBar {
        if self.quiet || !self.terminal {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = match total {
            Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {spinner} {bytes} {bytes_per_sec}",
        };
        self.style(&bar, template);
        bar.set_message(what.to_owned());
        bar
    }

    /// A bar for `n` steps of `what` on the terminal, nothing elsewhere.
    pub(crate) fn steps(&self, what: &str, n: usize) -> ProgressBar {
        if self.quiet || !self.terminal {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(n as u64), ProgressDrawTarget::stderr());
        self.style(&bar, "{msg} {wide_bar} {pos}/{len} {eta}");
        bar.set_message(what.to_owned());
        bar
    }

    fn style(&self, bar: &ProgressBar, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars(if self.colour { "━╸ " } else { "=> " }));
        }
    }
}

/// Writes to stdout and flushes, so that streamed text is seen at once.
pub(crate) fn print(text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())?;
    out.flush()
}

/// Shows a fetch.
pub(crate) struct FetchProgress<'a> {
    ui: &'a Ui,
    interrupt: &'a Interrupt,
    bar: ProgressBar,
}

impl<'a> FetchProgress<'a> {
    /// Nothing shown yet.
    pub(crate) fn new(ui: &'a Ui, interrupt: &'a Interrupt) -> FetchProgress<'a> {
        FetchProgress { ui, interrupt, bar: ProgressBar::hidden() }
    }
}

impl Progress for FetchProgress<'_> {
    fn start(&mut self, what: &str, done: u64, total: Option<u64>) {
        let size = total.map(|n| format!(" ({})", bytes(n))).unwrap_or_default();
        let more = if done > 0 { format!(", going on after {}", bytes(done)) } else { String::new() };
        if !self.ui.terminal {
            self.ui.note(format_args!("fetching {what}{size}{more}"));
        }
        self.bar = self.ui.bar(what, total);
        // The speed shown is that of this attempt.
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    fn update(&mut self, done: u64) {
        self.bar.set_position(done);
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }

    fn message(&mut self, line: &str) {
        self.bar.suspend(|| self.ui.note(line));
    }

    fn cancelled(&self) -> bool {
        self.interrupt.is_set()
    }
}

/// A name from a file as a terminal may show it: control characters, which could say other things to it, are replaced.
pub(crate) fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A size for people: `93.8 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    tandem_engine::placement::Bytes(n).to_string()
}

/// A duration for people: `0.42 s`, `120 ms`.
pub(crate) fn duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.0} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}
