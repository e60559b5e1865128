//! The hub's cache folder, in the layout that all its tools share.
//!
//! ```text
//! models--org--repo/
//!   blobs/<content id>            the bytes; the id is the SHA-256 of files in large-file storage
//!   blobs/<content id>.incomplete a download that goes on later
//!   snapshots/<commit>/<path>     links to blobs
//!   refs/main                     the commit of the branch when it was last asked for
//! .locks/models--org--repo/<content id>.lock
//! ```
//!
//! Format: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::FetchError;
use super::store::make_parent;

/// Prefix of the folders of models.
const PREFIX: &str = "models--";

/// The cache of one repository.
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// The cache of `repo` (`org/repo`) in the folder `hub_cache`.
    pub(super) fn new(hub_cache: &Path, repo: &str) -> Self {
        let folder = format!("{PREFIX}{}", repo.replace('/', "--"));
        Self { root: hub_cache.join(&folder), locks: hub_cache.join(".locks").join(folder) }
    }

    /// The folder of this repository.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the content with this id is.
    pub(super) fn blob(&self, id: &str) -> PathBuf {
        self.root.join("blobs").join(id)
    }

    /// The lock for writing the content with this id.
    pub(super) fn lock(&self, id: &str) -> PathBuf {
        self.locks.join(format!("{id}.lock"))
    }

    /// Where a file of a commit is.
    pub(super) fn snapshot(&self, commit: &str, path: &str) -> PathBuf {
        self.root.join("snapshots").join(commit).join(path)
    }

    /// The commit last seen for a branch.
    pub(super) fn commit_of(&self, branch: &str) -> Option<String> {
        let commit = fs::read_to_string(self.root.join("refs").join(branch)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_id(commit))
    }

    /// Notes the commit of a branch.
    pub(super) fn set_commit(&self, branch: &str, commit: &str) -> Result<(), FetchError> {
        let path = self.root.join("refs").join(branch);
        make_parent(&path)?;
        fs::write(&path, commit).map_err(|e| FetchError::io("write", &path, e))
    }

    /// Paths of the files of a commit that are whole in the cache, sorted.
    pub(super) fn files(&self, commit: &str) -> Vec<String> {
        let root = self.root.join("snapshots").join(commit);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(inside) = path.strip_prefix(&root)
                    && path.is_file()
                {
                    let parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy()).collect();
                    found.push(parts.join("/"));
                }
            }
        }
        found.sort();
        found
    }

    /// The file `path` of any commit with the content `id` of this size.
    pub(super) fn find_content(&self, path: &str, id: &str, n_bytes: u64) -> Option<PathBuf> {
        let blob = self.blob(id);
        let size = |path: &Path| fs::metadata(path).map(|meta| meta.len()).ok();
        if size(&blob) != Some(n_bytes) {
            return None;
        }
        let blob = fs::canonicalize(blob).ok()?;
        let commits = fs::read_dir(self.root.join("snapshots")).ok()?;
        let is_it = |file: &PathBuf| {
            // A hard link, where symbolic links are not to be had, has the size only.
            let linked = fs::canonicalize(file).is_ok_and(|target| target == blob);
            linked || (!cfg!(unix) && size(file) == Some(n_bytes))
        };
        commits.flatten().map(|commit| commit.path().join(path)).find(is_it)
    }

    /// Makes `snapshots/<commit>/<path>` lead to the content `id`.
    pub(super) fn link(&self, commit: &str, path: &str, id: &str) -> Result<PathBuf, FetchError> {
        let (pointer, blob) = (self.snapshot(commit, path), self.blob(id));
        let leads_there = || match (fs::canonicalize(&pointer), fs::canonicalize(&blob)) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        if leads_there() {
            return Ok(pointer);
        }
        make_parent(&pointer)?;
        match fs::remove_file(&pointer) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(FetchError::io("replace", &pointer, e)),
            _ => {}
        }
        // From the folder of the file up to the repository's, so that the cache can be moved.
        let up = "../".repeat(2 + path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{id}"));
        match make_link(&target, &blob, &pointer) {
            // Another process was quicker.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(FetchError::io("link", &pointer, e)),
            Ok(()) => {}
        }
        Ok(pointer)
    }
}

#[cfg(unix)]
fn make_link(target: &Path, _blob: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

/// Symbolic links need a right that few users of Windows have.
#[cfg(not(unix))]
fn make_link(_target: &Path, blob: &Path, pointer: &Path) -> io::Result<()> {
    fs::hard_link(blob, pointer).or_else(|_| fs::copy(blob, pointer).map(|_| ()))
}

/// Whether a commit or content id from a server can be a file name: letters and digits only.
pub(super) fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The repositories in the cache folder, sorted.
pub(super) fn repos(hub_cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(hub_cache).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix(PREFIX)?.replacen("--", "/", 1))
    };
    let mut repos: Vec<String> = entries.filter_map(name).collect();
    repos.sort();
    repos
}
