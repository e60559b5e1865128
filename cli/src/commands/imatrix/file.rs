//! Importance matrices as files, in llama.cpp's format: for each matrix the sums of squared inputs (`NAME.in_sum2`,
//! `[n_in, n_expert]`) and the number of inputs (`NAME.counts`, `[1, n_expert]`), in F32.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};
use tandem_engine::{InputSquares, MatrixInputs};
use tandem_loader::{ArrayValue, GgmlType, Gguf, Metadata, TensorSpec, Value, Writer};

use crate::exit::Failure;

const TYPE: &str = "general.type";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
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
    let mut metadata = Metadata::default();
    metadata.set(TYPE, Value::String("imatrix".to_owned()));
    metadata.set(DATASETS, Value::Array(ArrayValue::of_strings([&origin.dataset])));
    metadata.set(CHUNK_COUNT, Value::U32(u32::try_from(n_windows).unwrap_or(u32::MAX)));
    metadata.set(CHUNK_SIZE, Value::U32(origin.n_ctx));
    metadata.set(TEXT, Value::String(origin.text_sha256.clone()));
    // What has seen nothing is left out, as llama.cpp does; readers take the names in order.
    let mut matrices: Vec<&MatrixInputs> =
        squares.matrices().filter(|matrix| matrix.counts.iter().any(|count| *count > 0)).collect();
    matrices.sort_by(|a, b| a.tensor.cmp(&b.tensor));
    let spec = |name: String, n: usize, m: usize| TensorSpec { name, ty: GgmlType::F32, dims: vec![n, m] };
    let specs = matrices.iter().flat_map(|matrix| {
        let n = matrix.counts.len();
        [spec(sums_of(&matrix.tensor), matrix.n_in, n), spec(counts_of(&matrix.tensor), 1, n)]
    });
    let specs: Vec<TensorSpec> = specs.collect();

    // Beside the final name, which an older file may have.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    if beside.exists() {
        std::fs::remove_file(&beside).with_context(|| format!("cannot replace {}", beside.display()))?;
    }
    let mut writer = Writer::create(&beside, &metadata, &specs)?;
    for matrix in matrices {
        let sums = matrix.sums.iter().flat_map(|sum| (*sum as f32).to_le_bytes());
        writer.write(&sums.collect::<Vec<u8>>())?;
        let counts = matrix.counts.iter().flat_map(|count| (*count as f32).to_le_bytes());
        writer.write(&counts.collect::<Vec<u8>>())?;
    }
    writer.finish()?.publish()?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

fn sums_of(tensor: &str) -> String {
    format!("{tensor}.in_sum2")
}

fn counts_of(tensor: &str) -> String {
    format!("{tensor}.counts")
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
    let metadata = gguf.metadata();
    if metadata.str(TYPE)? != Some("imatrix") {
        return Err(other("it is no importance matrix"));
    }
    if metadata.str(TEXT)? != Some(&origin.text_sha256) {
        return Err(other("it was made from another text, or by another program"));
    }
    if metadata.u32(CHUNK_SIZE)? != Some(origin.n_ctx) {
        return Err(other("it was made with another window (-c)"));
    }
    let n_windows = metadata.u32(CHUNK_COUNT)?.ok_or_else(|| Metadata::missing(CHUNK_COUNT))?;
    let mut n_tensors = 0;
    for matrix in squares.matrices_mut() {
        let (sums, counts) = (gguf.tensor(&sums_of(&matrix.tensor)), gguf.tensor(&counts_of(&matrix.tensor)));
        let (Some(sums), Some(counts)) = (sums, counts) else { continue };
        if sums.n_elements() != matrix.sums.len() || counts.n_elements() != matrix.counts.len() {
            return Err(other(&format!("{} has another shape in this model", matrix.tensor)));
        }
        matrix.sums = gguf.dequantize(sums)?.into_iter().map(f64::from).collect();
        matrix.counts = gguf.dequantize(counts)?.into_iter().map(|count| count as u64).collect();
        n_tensors += 2;
    }
    if n_tensors != gguf.tensors().len() || n_tensors == 0 {
        return Err(other("it was made from another model"));
    }
    Ok(n_windows as usize)
}
