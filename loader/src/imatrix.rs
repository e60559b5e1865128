//! Importance matrices: for each matrix of a model, how large its inputs are on some text.
//!
//! The importance of column `i` is the mean of the squared input `x_i^2`: the factor with which a weight's squared
//! error enters the squared error of the product. Files are those of llama.cpp's `llama-imatrix`: GGUF (tensors
//! `NAME.in_sum2`, sums of squares, and `NAME.counts`, number of inputs, for each expert), and the older `.dat`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cursor::{Cursor, shown};
use crate::error::{Error, Result};
use crate::ggml_type::GgmlType;
use crate::gguf::Gguf;
use crate::source::Source;

/// Most entries in a file, and most values in an entry: more than any model has.
const MAX_ENTRIES: u32 = 1 << 20;
const MAX_VALUES: u32 = 1 << 28;

/// The importance of every matrix that was seen.
#[derive(Debug, Clone, Default)]
pub struct Imatrix {
    entries: BTreeMap<String, Vec<f32>>,
    /// Names of the texts it was made from.
    pub datasets: Vec<String>,
    /// How many chunks of text it was made from, if the file says.
    pub chunks: Option<u32>,
}

impl Imatrix {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// The file cannot be read, is no importance matrix, or holds numbers that are not finite or below zero.
    pub fn open(path: &Path) -> Result<Imatrix> {
        let source = Source::map(path)?;
        let imatrix = if source.bytes().starts_with(b"GGUF") {
            Imatrix::from_gguf(&Gguf::open(path)?)?
        } else {
            Imatrix::from_dat(path, source.bytes())?
        };
        if imatrix.entries.is_empty() {
            return Err(bad(path, "holds no entries; it is no importance matrix".to_owned()));
        }
        for (name, values) in &imatrix.entries {
            if let Some(i) = values.iter().position(|v| !v.is_finite() || *v < 0.0) {
                let message =
                    format!("entry `{}`: value {i} is {}, which no importance can be", shown(name), values[i]);
                return Err(bad(path, message));
            }
        }
        Ok(imatrix)
    }

    fn from_gguf(gguf: &Gguf) -> Result<Imatrix> {
        let metadata = gguf.metadata();
        let mut imatrix = Imatrix { chunks: metadata.u32("imatrix.chunk_count")?, ..Imatrix::default() };
        if let Some(names) = metadata.string_array("imatrix.datasets")?.and_then(|array| array.strings()) {
            imatrix.datasets = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        }
        for sums in gguf.tensors() {
            let Some(name) = sums.name.strip_suffix(".in_sum2") else { continue };
            let wrong = |what: &str| bad(gguf.path(), format!("entry `{}`: {what}", shown(name)));
            let counts = gguf.tensor(&format!("{name}.counts")).ok_or_else(|| wrong("has sums without counts"))?;
            if sums.ty != GgmlType::F32 || counts.ty != GgmlType::F32 {
                return Err(wrong("sums and counts must be F32"));
            }
            let (sums, counts) = (gguf.dequantize(sums)?, gguf.dequantize(counts)?);
            if !sums.len().is_multiple_of(counts.len()) {
                return Err(wrong("the number of sums is no multiple of the number of counts"));
            }
            let per_matrix = sums.len() / counts.len();
            // An expert that no token was sent to says nothing about its columns.
            let mean = |(sums, count): (&[f32], &f32)| {
                let count = *count;
                sums.iter().map(move |sum| if count > 0.0 { sum / count } else { 1.0 }).collect::<Vec<f32>>()
            };
            let values = sums.chunks_exact(per_matrix).zip(&counts).flat_map(mean).collect();
            imatrix.entries.insert(name.to_owned(), values);
        }
        Ok(imatrix)
    }

    /// The older format: little-endian 32-bit counts, names and sums; then, if there, number of chunks and name of
    /// the text.
    fn from_dat(path: &Path, bytes: &[u8]) -> Result<Imatrix> {
        let mut cursor = Cursor::new(path, bytes);
        let not_one = |n: u32| {
            bad(path, format!("is no importance matrix: neither a GGUF file, nor one that begins with a count ({n})"))
        };
        let n_entries = cursor.u32("number of entries")?;
        if n_entries == 0 || n_entries > MAX_ENTRIES {
            return Err(not_one(n_entries));
        }
        let mut imatrix = Imatrix::default();
        for i in 0..n_entries {
            let len = cursor.u32(&format!("length of the name of entry {i}"))?;
            let name = String::from_utf8_lossy(cursor.take(len.into(), "name of an entry")?).into_owned();
            let field = format!("entry `{}`", shown(&name));
            let calls = cursor.u32(&field)?;
            let n = cursor.u32(&field)?;
            if n == 0 || n > MAX_VALUES {
                return Err(bad(path, format!("{field}: {n} values are not believable")));
            }
            let sums = cursor.take(4 * u64::from(n), &field)?.as_chunks::<4>().0;
            let scale = if calls > 0 { calls as f32 } else { 1.0 };
            let values = sums.iter().map(|sum| f32::from_le_bytes(*sum) / scale).collect();
            imatrix.entries.insert(name, values);
        }
        if cursor.remaining() >= 4 {
            imatrix.chunks = Some(cursor.u32("number of chunks")?);
        }
        if cursor.remaining() >= 4 {
            let len = cursor.u32("length of the text's name")?;
            imatrix.datasets.push(String::from_utf8_lossy(cursor.take(len.into(), "the text's name")?).into_owned());
        }
        Ok(imatrix)
    }

    /// The importance for the tensor of this name: one value for each column, or for each column of each expert.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.entries.get(tensor).map(Vec::as_slice)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names of all entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

fn bad(path: &Path, message: String) -> Error {
    Error::Imatrix { path: path.to_owned(), message }
}

/// The importance as encoders want it: positive, with mean 1. What is 0 becomes a millionth, so that a block of zeros
/// still has a best scale.
pub fn positive(importance: &[f32]) -> Vec<f32> {
    let mean = importance.iter().map(|v| f64::from(*v)).sum::<f64>() / importance.len().max(1) as f64;
    if mean.is_nan() || mean <= 0.0 {
        return vec![1.0; importance.len()];
    }
    importance.iter().map(|v| ((f64::from(*v) / mean) as f32).max(1e-6)).collect()
}
