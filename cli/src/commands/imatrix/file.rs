//! Importance matrices as files: what was seen so far, and whether a file can be gone on with.

use std::path::Path;

use sha2::{Digest, Sha256};
use tandem_engine::{InputSquares, MatrixInputs};
use tandem_loader::imatrix::{Inputs, Recorded};
use tandem_loader::{Gguf, Metadata, Value};

use crate::exit::Failure;
use crate::open;

/// Our own, to go on with the same ones only: SHA-256 of the text; of the model's tensors; whether the output matrix is
/// observed.
const TEXT: &str = "tandem.imatrix.text_sha256";
const MODEL: &str = "tandem.imatrix.model_sha256";
const OUTPUT: &str = "tandem.imatrix.process_output";
/// Bytes of each tensor that tell a model from another one of the same shape.
const PROBE: usize = 4096;

/// What a file was made from.
pub(super) struct Origin {
    /// The text's name.
    dataset: String,
    text_sha256: String,
    model_sha256: String,
    n_ctx: u32,
    process_output: bool,
}

impl Origin {
    pub(super) fn new(path: &Path, text: &[u8], gguf: &Gguf, n_ctx: usize, process_output: bool) -> Origin {
        let mut model = Sha256::new();
        for tensor in gguf.tensors() {
            let data = gguf.data(tensor);
            model.update(format!("{} {} {:?}", tensor.name, tensor.ty, tensor.dims()));
            model.update(&data[..data.len().min(PROBE)]);
        }
        let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Origin {
            dataset: path.to_string_lossy().into_owned(),
            text_sha256: hex(&Sha256::digest(text)),
            model_sha256: hex(&model.finalize()),
            n_ctx: u32::try_from(n_ctx).unwrap_or(u32::MAX),
            process_output,
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
    let ours = [
        (TEXT, Value::String(origin.text_sha256.clone())),
        (MODEL, Value::String(origin.model_sha256.clone())),
        (OUTPUT, Value::Bool(origin.process_output)),
    ];
    Ok(recorded.write(path, &ours)?)
}

/// Reads a file of the same origin; returns the number of windows that are in it. Matrices that `may_miss` may have seen
/// fewer inputs than the text has tokens, or none.
///
/// # Errors
/// Another kind of file; another text, model or window, other options; numbers that do not go together.
pub(super) fn read(
    path: &Path,
    origin: &Origin,
    squares: &mut InputSquares,
    may_miss: impl Fn(&MatrixInputs) -> bool,
) -> anyhow::Result<usize> {
    let gguf = open::named(Gguf::open(path), path)?;
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
    let model = gguf.metadata().str(MODEL)?;
    if model != Some(&origin.model_sha256) {
        return Err(other("it was made from another model"));
    }
    if gguf.metadata().bool(OUTPUT)? != Some(origin.process_output) {
        return Err(other("it was made with another --process-output"));
    }
    let mut recorded = open::named(Recorded::read(&gguf), path)?;
    if recorded.chunk_size != Some(origin.n_ctx) {
        return Err(other("it was made with another window (-c)"));
    }
    let n_windows = recorded.chunks.ok_or_else(|| Metadata::missing("imatrix.chunk_count"))?;
    let n_tokens = u64::from(n_windows) * u64::from(origin.n_ctx);
    let damaged = |tensor: &str, what: &str| {
        let path = path.display();
        Failure::model(format!("{path}: entry `{tensor}` {what}; the file is damaged, give another -o to begin anew"))
    };
    for matrix in squares.matrices_mut() {
        let tensor = matrix.tensor.clone();
        let Some(inputs) = recorded.entries.remove(&tensor) else {
            if may_miss(matrix) {
                continue;
            }
            return Err(damaged(&tensor, "is missing"));
        };
        if inputs.sums.len() != matrix.sums.len() || inputs.counts.len() != matrix.counts.len() {
            return Err(damaged(&tensor, "has another shape than the model's tensor"));
        }
        matrix.sums = inputs.sums.into_iter().map(f64::from).collect();
        // The file's numbers are f32, which know large ones to 2^-24 only, and each time that a run goes on rounds again.
        matrix.counts = inputs.counts.into_iter().map(|count| count as u64).collect();
        let off = |count: u64| count.abs_diff(n_tokens) > n_tokens >> 22;
        if matrix.counts.iter().any(|count| *count > n_tokens && off(*count))
            || !may_miss(matrix) && matrix.counts.iter().any(|count| off(*count))
        {
            return Err(damaged(&tensor, &format!("has other counts than {n_windows} windows have tokens")));
        }
    }
    match recorded.entries.keys().next() {
        Some(tensor) => Err(damaged(tensor, "is of no matrix of the model")),
        None => Ok(n_windows as usize),
    }
}
