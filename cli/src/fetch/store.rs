//! Files on this machine: checked by SHA-256, remembered as checked, and locked while they are written.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::error::FetchError;
use super::progress::Progress;

/// Bytes moved at a time.
pub(super) const CHUNK: usize = 1 << 18;

/// A running SHA-256.
#[derive(Default)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest in lower-case hex.
    pub(super) fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Feeds all of `source` to `take`, stopping when the caller wants to.
///
/// # Errors
/// What `take` returns; a failure to read, as an error about `path`; [`FetchError::Interrupted`].
pub(super) fn pump(
    source: &mut dyn Read,
    path: &Path,
    progress: &mut dyn Progress,
    mut take: impl FnMut(&[u8], &mut dyn Progress) -> Result<(), FetchError>,
) -> Result<(), FetchError> {
    let mut chunk = vec![0; CHUNK];
    loop {
        if progress.cancelled() {
            return Err(FetchError::Interrupted);
        }
        match source.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&chunk[..n], progress)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(FetchError::io("read", path, e)),
        }
    }
}

/// Hashes a file from its beginning.
pub(super) fn hash_file(path: &Path, progress: &mut dyn Progress) -> Result<Hasher, FetchError> {
    let mut file = File::open(path).map_err(|e| FetchError::io("open", path, e))?;
    let mut hasher = Hasher::default();
    pump(&mut file, path, progress, |bytes, _| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hasher)
}

/// Makes the folder of `path`.
pub(super) fn make_parent(path: &Path) -> Result<(), FetchError> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(|e| FetchError::io("make the folder", folder, e)),
        None => Ok(()),
    }
}

/// `path` with `suffix` after its file name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether `path` has this content.
///
/// Hashing hundreds of megabytes at each start would be felt, so a note in `PATH.checked` says for which size and
/// modification time the SHA-256 was compared; it holds as long as both are the same. `again` ignores the note.
pub(super) fn is_checked(
    path: &Path,
    n_bytes: u64,
    sha256: &str,
    again: bool,
    progress: &mut dyn Progress,
) -> Result<bool, FetchError> {
    let Some(state) = state(path) else { return Ok(false) };
    if state.n_bytes != n_bytes {
        return Ok(false);
    }
    let note = note(&state, sha256);
    if !again && fs::read_to_string(beside(path, ".checked")).is_ok_and(|found| found == note) {
        return Ok(true);
    }
    let good = hash_file(path, progress)?.finish() == sha256;
    if good {
        remember_checked(path, sha256);
    } else {
        let _ = fs::remove_file(beside(path, ".checked"));
    }
    Ok(good)
}

/// Notes that `path` was found to have this SHA-256. In a folder that cannot be written the note is left out, and the
/// file is hashed again next time.
pub(super) fn remember_checked(path: &Path, sha256: &str) {
    if let Some(state) = state(path) {
        let _ = fs::write(beside(path, ".checked"), note(&state, sha256));
    }
}

/// What tells one version of a file from another without reading it.
struct FileState {
    n_bytes: u64,
    modified_ns: u128,
}

fn state(path: &Path) -> Option<FileState> {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let modified_ns = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    Some(FileState { n_bytes: meta.len(), modified_ns })
}

fn note(state: &FileState, sha256: &str) -> String {
    format!("sha256 {sha256}\nbytes {}\nmodified_ns {}\n", state.n_bytes, state.modified_ns)
}

/// Holds others off while this process writes a file. Ends when dropped, and with the process.
pub(super) struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Waits until no other process holds the lock at `path`, saying so once.
    pub(super) fn acquire(path: &Path, what: &str, progress: &mut dyn Progress) -> Result<Self, FetchError> {
        make_parent(path)?;
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = open.map_err(|e| FetchError::io("open", path, e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: Some(file) }),
                Err(TryLockError::WouldBlock) if progress.cancelled() => return Err(FetchError::Interrupted),
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        progress.message(&format!("waiting for another process that fetches {what}"));
                        told = true;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                // Some network file systems have no locks. Two fetches at once would then be found by the SHA-256.
                Err(TryLockError::Error(_)) => return Ok(Self { _file: None }),
            }
        }
    }
}
