//! Where messages come from: an edited line on a terminal, plain lines otherwise.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use crate::ui::Ui;

/// Starts and ends a message of several lines.
const QUOTES: &str = "\"\"\"";

/// What the user did.
pub(super) enum Turn {
    /// Typed a message or a command.
    Text(String),
    /// Typed a message between triple quotes, which is never a command.
    Quoted(String),
    /// Ctrl-C on the line.
    Cancelled,
    /// Ctrl-D, or the end of the input.
    End,
}

/// The source of lines.
pub(super) enum Input {
    /// A terminal, with history.
    Terminal { editor: Box<Editor<(), FileHistory>>, history: Option<PathBuf> },
    /// A pipe or a file: each line is a message.
    Lines,
}

/// A line, or why there is none.
enum Line {
    Text(String),
    Cancelled,
    End,
}

impl Input {
    /// For stdin as it is.
    pub(super) fn new(ui: &Ui) -> anyhow::Result<Input> {
        if !io::stdin().is_terminal() {
            return Ok(Input::Lines);
        }
        let config = Config::builder().auto_add_history(false).max_history_size(1000)?.build();
        let mut editor: Editor<(), FileHistory> = Editor::with_config(config)?;
        let history = history_file();
        if let Some(path) = &history {
            let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            if let Err(error) = folder {
                ui.detail(format_args!("no history is kept: {}: {error}", path.display()));
            }
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        Ok(Input::Terminal { editor: Box::new(editor), history })
    }

    /// Whether a person is typing.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal { .. })
    }

    /// The next message: one line, lines that end in a backslash, or lines between triple quotes.
    pub(super) fn next(&mut self) -> anyhow::Result<Turn> {
        let mut text = match self.line("> ")? {
            Line::Text(line) => line,
            Line::Cancelled => return Ok(Turn::Cancelled),
            Line::End => return Ok(Turn::End),
        };
        while let Some(unfinished) = unfinished(&text) {
            match self.line("... ")? {
                Line::Text(line) => text = format!("{unfinished}\n{line}"),
                Line::Cancelled => return Ok(Turn::Cancelled),
                Line::End => break,
            }
        }
        self.remember(&text);
        let is_quoted = text.trim_start().starts_with(QUOTES);
        let text = unquoted(text);
        Ok(if is_quoted { Turn::Quoted(text) } else { Turn::Text(text) })
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self {
            Input::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Cancelled),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error.into()),
            },
            Input::Lines => {
                let mut bytes = Vec::new();
                if io::stdin().lock().read_until(b'\n', &mut bytes)? == 0 {
                    return Ok(Line::End);
                }
                let line = String::from_utf8_lossy(&bytes);
                Ok(Line::Text(line.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }

    fn remember(&mut self, text: &str) {
        if let Input::Terminal { editor, history } = self {
            // A conversation does not end because its history cannot be written.
            let added = editor.add_history_entry(text);
            if let (Ok(true), Some(path)) = (added, history) {
                let _ = editor.append_history(path);
            }
        }
    }
}

/// The text so far, if more lines belong to it.
fn unfinished(text: &str) -> Option<&str> {
    if let Some(quoted) = text.trim_start().strip_prefix(QUOTES) {
        return (!quoted.trim_end().ends_with(QUOTES)).then_some(text);
    }
    text.strip_suffix('\\')
}

/// The text between triple quotes, or the text as it is.
fn unquoted(text: String) -> String {
    let trimmed = text.trim();
    match trimmed.strip_prefix(QUOTES) {
        Some(inner) => inner.strip_suffix(QUOTES).unwrap_or(inner).trim_matches('\n').to_owned(),
        None => text,
    }
}

/// `$XDG_DATA_HOME/tandem/chat_history`, or in `~/.local/share`.
fn history_file() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = var("XDG_DATA_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| Some(std::env::home_dir()?.join(".local").join("share")))?;
    Some(data.join("tandem").join("chat_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_several_lines() {
        assert_eq!(unfinished("a"), None);
        assert_eq!(unfinished("a\\"), Some("a"));
        assert_eq!(unfinished("\"\"\"a"), Some("\"\"\"a"));
        assert_eq!(unfinished("\"\"\""), Some("\"\"\""));
        assert_eq!(unfinished("\"\"\"a\nb\"\"\""), None);
        assert_eq!(unquoted("\"\"\"\na\nb\n\"\"\"".to_owned()), "a\nb");
        assert_eq!(unquoted(" a ".to_owned()), " a ");
    }
}
