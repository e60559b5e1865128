//! Running the command.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a run left behind.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn new(output: Output) -> Ran {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), stdout: output.stdout, stderr }
    }

    /// stdout of a run that went well.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        String::from_utf8(self.stdout).unwrap()
    }

    /// stdout of a run that went well, as JSON.
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// stderr of a run that failed with this exit code and no answer.
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "stderr: {}", self.stderr);
        assert_eq!(String::from_utf8_lossy(&self.stdout), "");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stderr
    }
}

/// The command, away from the user's terminal, history and network.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.args(args).env("HF_HUB_OFFLINE", "1").env("XDG_DATA_HOME", std::env::temp_dir()).env_remove("COLUMNS");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it without input.
pub(crate) fn tandem(args: &[&str]) -> Ran {
    Ran::new(command(args).output().unwrap())
}

/// Runs it with a pipe as stdin.
pub(crate) fn tandem_with(args: &[&str], input: &[u8]) -> Ran {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    // A command that fails early does not read it.
    let _ = child.stdin.take().unwrap().write_all(input);
    Ran::new(child.wait_with_output().unwrap())
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
