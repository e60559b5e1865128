//! One file from the hub into a partial file: resumed, retried, hashed on the way.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::FetchError;
use super::http::{Answer, Client, Failure};
use super::options::FetchOptions;
use super::progress::Progress;
use super::store::{CHUNK, Hasher, hash_file, make_parent};

/// Attempts in a row that bring nothing new before a download is given up.
const MAX_FAILURES: u32 = 5;

/// What to fetch.
pub(super) struct Job<'a> {
    /// `org/repo`, for messages.
    pub(super) repo: &'a str,
    /// File name, for messages.
    pub(super) name: &'a str,
    /// Address below the endpoint.
    pub(super) url: &'a str,
    /// Where the bytes go; what is there already is the beginning of the file.
    pub(super) partial: &'a Path,
    /// Size in bytes, when the hub said it.
    pub(super) n_bytes: Option<u64>,
    /// SHA-256 the content must have, when the hub said it.
    pub(super) sha256: Option<&'a str>,
}

/// The partial file: its bytes so far, and their hash.
struct Partial {
    path: PathBuf,
    file: File,
    n_bytes: u64,
    hasher: Hasher,
}

/// How one connection ended short of the whole file.
enum Stop {
    /// Broken; worth another try.
    Broken(String),
    /// The server does not want to go on from here; start over.
    StartOver,
    /// No use trying again.
    Fatal(FetchError),
}

impl Job<'_> {
    /// Fetches into the partial file until it is whole and has the right content.
    ///
    /// # Errors
    /// After [`FetchError::WrongContent`] the partial file is gone; after any other error it stays, to be resumed.
    pub(super) fn run(
        &self,
        client: &Client,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        let mut partial = Partial::open(self.partial, progress)?;
        if self.n_bytes.is_some_and(|n_bytes| partial.n_bytes > n_bytes) {
            partial.clear()?;
        }
        let resumed = partial.n_bytes > 0;
        progress.start(self.name, partial.n_bytes, self.n_bytes);
        let transferred = self.transfer(&mut partial, client, options, progress);
        progress.finish();
        transferred?;
        match self.check(partial, client) {
            // The part from an earlier attempt may be what is wrong.
            Err(FetchError::WrongContent { .. }) if resumed => {
                progress.message(&format!("what was kept of {} is damaged: starting over", self.name));
                self.run(client, options, progress)
            }
            result => result,
        }
    }

    /// Connects as often as it takes.
    fn transfer(
        &self,
        partial: &mut Partial,
        client: &Client,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        let mut failures = 0;
        while self.n_bytes.is_none_or(|n_bytes| partial.n_bytes < n_bytes) {
            let before = partial.n_bytes;
            let reason = match self.connect_once(partial, client, progress) {
                Ok(()) => return Ok(()),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::StartOver) => {
                    partial.clear()?;
                    "the server does not resume".to_owned()
                }
                Err(Stop::Broken(reason)) => reason,
            };
            failures = if partial.n_bytes > before { 1 } else { failures + 1 };
            if failures >= MAX_FAILURES {
                return Err(FetchError::Dropped { what: self.name.to_owned(), reason, kept: partial.n_bytes });
            }
            progress.message(&format!("{}: {reason}; trying again from byte {}", self.name, partial.n_bytes));
            std::thread::sleep(options.retry_wait * 2_u32.pow(failures - 1));
        }
        Ok(())
    }

    /// One request: appends what comes to the partial file.
    fn connect_once(&self, partial: &mut Partial, client: &Client, progress: &mut dyn Progress) -> Result<(), Stop> {
        let offset = partial.n_bytes;
        let Answer { response, .. } = client.get(self.url, offset).map_err(|failure| match failure {
            Failure::Dropped(reason) => Stop::Broken(reason),
            Failure::Unreachable(reason) if offset > 0 => Stop::Broken(reason),
            Failure::Status { status: 416, .. } if offset > 0 => Stop::StartOver,
            failure => Stop::Fatal(client.error(failure, self.repo, self.url)),
        })?;
        if offset > 0 && !starts_at(&response, offset) {
            partial.clear().map_err(Stop::Fatal)?;
        }
        let announced = response.body().content_length().map(|n| partial.n_bytes + n);
        let end = self.n_bytes.or(announced);
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            if progress.cancelled() {
                return Err(Stop::Fatal(FetchError::Interrupted));
            }
            let n = body.read(&mut chunk).map_err(|e| Stop::Broken(e.to_string()))?;
            if n == 0 {
                break;
            }
            partial.append(&chunk[..n], end).map_err(Stop::Fatal)?;
            progress.update(partial.n_bytes);
            if end.is_some_and(|end| partial.n_bytes >= end) {
                break;
            }
        }
        match end {
            Some(end) if partial.n_bytes < end => Err(Stop::Broken("the connection ended early".to_owned())),
            _ => Ok(()),
        }
    }

    /// Compares size and SHA-256; deletes what is wrong.
    fn check(&self, partial: Partial, client: &Client) -> Result<(), FetchError> {
        let Partial { path, file, n_bytes, hasher } = partial;
        let actual = hasher.finish();
        let (expected, actual) = match (self.sha256, self.n_bytes) {
            (_, Some(expected)) if expected != n_bytes => (format!("{expected} bytes"), format!("{n_bytes} bytes")),
            (Some(expected), _) if expected != actual => (format!("SHA-256 {expected}"), format!("SHA-256 {actual}")),
            _ => return file.sync_all().map_err(|e| FetchError::io("write", &path, e)),
        };
        std::fs::remove_file(&path).map_err(|e| FetchError::io("delete", &path, e))?;
        let source_name = format!("{} ({})", self.repo, client.endpoint());
        Err(FetchError::WrongContent { what: self.name.to_owned(), source_name, expected, actual })
    }
}

/// Whether the server goes on at `offset`, as asked, and not from the beginning.
fn starts_at(response: &ureq::http::Response<ureq::Body>, offset: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    response.status().as_u16() == 206
        && range.is_some_and(|range| range.trim().starts_with(&format!("bytes {offset}-")))
}

impl Partial {
    fn open(path: &Path, progress: &mut dyn Progress) -> Result<Self, FetchError> {
        make_parent(path)?;
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let mut file = open.map_err(|e| FetchError::io("open", path, e))?;
        let hasher = hash_file(path, progress)?;
        let n_bytes = file.seek(SeekFrom::End(0)).map_err(|e| FetchError::io("read", path, e))?;
        Ok(Self { path: path.to_owned(), file, n_bytes, hasher })
    }

    /// Back to an empty file.
    fn clear(&mut self) -> Result<(), FetchError> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared.map_err(|e| FetchError::io("write", &self.path, e))?;
        self.n_bytes = 0;
        self.hasher = Hasher::default();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], end: Option<u64>) -> Result<(), FetchError> {
        let missing = end.map(|end| end.saturating_sub(self.n_bytes));
        self.file.write_all(bytes).map_err(|e| FetchError::writing("write", &self.path, e, missing))?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }
}
