//! What a fetch tells its caller while it runs.

/// Receives the progress of a fetch. All methods do nothing by default.
pub trait Progress {
    /// A transfer begins: `what` in words (a file name), `done` bytes already here from an earlier attempt, `total`
    /// bytes when known.
    fn start(&mut self, what: &str, done: u64, total: Option<u64>) {
        let _ = (what, done, total);
    }

    /// `done` bytes of the current transfer are here. May go back when a server cannot resume.
    fn update(&mut self, done: u64) {
        let _ = done;
    }

    /// The current transfer ended, well or not.
    fn finish(&mut self) {}

    /// One line worth knowing: a fallback, a retry, waiting for another process.
    fn message(&mut self, line: &str) {
        let _ = line;
    }

    /// Asked often; when true, the fetch stops with [`FetchError::Interrupted`](super::FetchError::Interrupted), and
    /// what was fetched so far stays for the next attempt.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Ignores progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
