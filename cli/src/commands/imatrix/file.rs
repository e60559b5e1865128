//! Importance matrices as files: what was seen so far, and whether a file can be gone on with.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};
use tandem_engine::{InputSquares, MatrixInputs};
use tandem_loader::imatrix::{Inputs, Recorded};
use tandem_loader::{Gguf, Metadata, Value};

use crate::exit::Failure;

/// Our own: SHA-256 of the text, to go on with the same one only.
const TEXT: &str = "tandem.imatrix.text_sha256";

/// What a file was made from.
pub(super) struct Origin {
    /// The text's name.
    dataset: String,
    text_sha256: String,
    n_ctx: u32,
}

impl Origin {
    pub(super) fn new(path: &Path, text: &[u8], n_ctx: usize) -> Origin {
        Origin {
            dataset: path.to_string_lossy().into_owned(),
            text_sha256: Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect(),
            n_ctx: u32::try_from(n_ctx).unwrap_or(u32::MAX),
        }
    }
}

/// Writes the file, in place of an older one: there is a whole file under the name at any time.
pub(super) fn write(path: &Path, origin: &Origin, n_windows: usize, squares: &InputSquares) -> anyhow::Result<()> {
    // What has seen nothing is left out, as llama.cpp does.
    let seen = squares.matrices().filter(|matrix| matrix.counts.iter().any(|count| *count > 0));
    let entry = |matrix: &MatrixInputs| {
        let sums = matrix.sums.iter().map(|sum| *sum as f32).collect();
        let counts = matrix.counts.iter().map(|count| *count as f32).collect();
        (matrix.tensor.clone(), Inputs { sums, counts })
    };
    let recorded = Recorded {
        datasets: vec![origin.dataset.clone()],
        chunks: Some(u32::try_from(n_windows).unwrap_or(u32::MAX)),
        chunk_size: Some(origin.n_ctx),
        entries: seen.map(entry).collect(),
    };
    // Beside the final name, which an older file may have.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    if beside.exists() {
        std::fs::remove_file(&beside).with_context(|| format!("cannot replace {}", beside.display()))?;
    }
    recorded.write(&beside, &[(TEXT, Value::String(origin.text_sha256.clone()))])?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a file of the same origin; returns the number of windows that are in it.
///
/// # Errors
/// Another kind of file; another text, model or window.
pub(super) fn read(path: &Path, origin: &Origin, squares: &mut InputSquares) -> anyhow::Result<usize> {
    let gguf = Gguf::open(path)?;
    let other = |what: &str| {
        let path = path.display();
        Failure::usage(format!("cannot go on with {path}: {what}; give another -o to begin anew"))
    };
    if !Recorded::is_one(&gguf) {
        return Err(other("it is no importance matrix"));
    }
    if gguf.metadata().str(TEXT)? != Some(&origin.text_sha256) {
        return Err(other("it was made from another text, or by another program"));
    }
    let mut recorded = Recorded::read(&gguf)?;
    if recorded.chunk_size != Some(origin.n_ctx) {
        return Err(other("it was made with another window (-c)"));
    }
    let n_windows = recorded.chunks.ok_or_else(|| Metadata::missing("imatrix.chunk_count"))?;
    if recorded.entries.is_empty() {
        return Err(other("it was made from another model"));
    }
    for matrix in squares.matrices_mut() {
        let Some(inputs) = recorded.entries.remove(&matrix.tensor) else { continue };
        if inputs.sums.len() != matrix.sums.len() || inputs.counts.len() != matrix.counts.len() {
            return Err(other(&format!("{} has another shape in this model", matrix.tensor)));
        }
        matrix.sums = inputs.sums.into_iter().map(f64::from).collect();
        matrix.counts = inputs.counts.into_iter().map(|count| count as u64).collect();
    }
    if !recorded.entries.is_empty() {
        return Err(other("it was made from another model"));
    }
    Ok(n_windows as usize)
}
