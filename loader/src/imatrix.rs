//! Importance matrices: for each matrix of a model, how large its inputs are on some text.
//!
//! The importance of column `i` is the mean of the squared input `x_i^2`: the factor with which a weight's squared
//! error enters the squared error of the product. [`Imatrix`] is what encoders want to know, [`Recorded`] what is in a
//! file. Files are those of llama.cpp's `llama-imatrix`: GGUF (tensors `NAME.in_sum2`, sums of squares,
//! `[n_in, n_expert]`, and `NAME.counts`, number of inputs, `[1, n_expert]`, both F32), and the older `.dat`, which is
//! only read.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cursor::{Cursor, shown};
use crate::error::{Error, Result};
use crate::ggml_type::GgmlType;
use crate::gguf::Gguf;
use crate::metadata::{ArrayValue, Metadata, Value};
use crate::source::Source;
use crate::writer::{TensorSpec, Writer};

const TYPE: &str = "general.type";
const TYPE_NAME: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

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
        let Recorded { datasets, chunks, entries, .. } = Recorded::read(gguf)?;
        // An expert that no token was sent to says nothing about its columns.
        let mean = |sum: &f32, count: f32| if count > 0.0 { sum / count } else { 1.0 };
        let means = |inputs: Inputs| {
            let matrices = inputs.sums.chunks_exact(inputs.sums.len() / inputs.counts.len()).zip(&inputs.counts);
            matrices.flat_map(|(sums, count)| sums.iter().map(|sum| mean(sum, *count))).collect()
        };
        let entries = entries.into_iter().map(|(name, inputs)| (name, means(inputs))).collect();
        Ok(Imatrix { entries, datasets, chunks })
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

/// The inputs that a matrix, or each of several experts, has had.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inputs {
    /// Sums of squares, `[n_expert, n_in]`, row-major.
    pub sums: Vec<f32>,
    /// Number of inputs of each expert.
    pub counts: Vec<f32>,
}

/// What is in an importance matrix file of the GGUF format.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// How many chunks of text.
    pub chunks: Option<u32>,
    /// Tokens in a chunk.
    pub chunk_size: Option<u32>,
    /// By name of the matrix.
    pub entries: BTreeMap<String, Inputs>,
}

impl Recorded {
    /// Whether a file says that it is an importance matrix.
    pub fn is_one(gguf: &Gguf) -> bool {
        gguf.metadata().str(TYPE).is_ok_and(|ty| ty == Some(TYPE_NAME))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Sums without counts or of another shape, tensors that are not F32, numbers that are not finite or below zero,
    /// metadata of the wrong type.
    pub fn read(gguf: &Gguf) -> Result<Recorded> {
        let metadata = gguf.metadata();
        let (chunks, chunk_size) = (metadata.u32(CHUNK_COUNT)?, metadata.u32(CHUNK_SIZE)?);
        let mut recorded = Recorded { chunks, chunk_size, ..Recorded::default() };
        if let Some(names) = metadata.string_array(DATASETS)?.and_then(|array| array.strings()) {
            recorded.datasets = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        }
        for sums in gguf.tensors() {
            let Some(name) = sums.name.strip_suffix(".in_sum2") else { continue };
            let wrong = |what: &str| bad(gguf.path(), format!("entry `{}`: {what}", shown(name)));
            let counts = gguf.tensor(&format!("{name}.counts")).ok_or_else(|| wrong("has sums without counts"))?;
            if sums.ty != GgmlType::F32 || counts.ty != GgmlType::F32 {
                return Err(wrong("sums and counts must be F32"));
            }
            let inputs = Inputs { sums: gguf.dequantize(sums)?, counts: gguf.dequantize(counts)? };
            if counts.row_len() != 1 || inputs.counts.is_empty() || sums.n_rows() != inputs.counts.len() {
                let (sums, counts) = (sums.dims(), counts.dims());
                return Err(wrong(&format!(
                    "sums {sums:?} and counts {counts:?}, where each row of sums has one count"
                )));
            }
            for (what, numbers) in [("sum", &inputs.sums), ("count", &inputs.counts)] {
                if let Some(i) = numbers.iter().position(|x| !x.is_finite() || *x < 0.0) {
                    return Err(wrong(&format!(
                        "{what} {i} is {}, which none can be; the file is damaged",
                        numbers[i]
                    )));
                }
            }
            recorded.entries.insert(name.to_owned(), inputs);
        }
        Ok(recorded)
    }

    /// Writes a file, in place of an older one, with `more` metadata after the usual.
    ///
    /// # Errors
    /// As for [`Writer`].
    pub fn write(&self, path: &Path, more: &[(&str, Value)]) -> Result<()> {
        let mut metadata = Metadata::default();
        metadata.set(TYPE, Value::String(TYPE_NAME.to_owned()));
        metadata.set(DATASETS, Value::Array(ArrayValue::of_strings(&self.datasets)));
        let numbers = [(CHUNK_COUNT, self.chunks), (CHUNK_SIZE, self.chunk_size)];
        numbers.iter().for_each(|(key, n)| n.iter().for_each(|n| metadata.set(key, Value::U32(*n))));
        more.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
        let spec = |name: String, n: usize, m: usize| TensorSpec { name, ty: GgmlType::F32, dims: vec![n, m] };
        let specs = self.entries.iter().flat_map(|(name, Inputs { sums, counts })| {
            let (n_in, n) = (sums.len() / counts.len().max(1), counts.len());
            [spec(format!("{name}.in_sum2"), n_in, n), spec(format!("{name}.counts"), 1, n)]
        });
        let mut writer = Writer::replace(path, &metadata, &specs.collect::<Vec<_>>())?;
        for numbers in self.entries.values().flat_map(|inputs| [&inputs.sums, &inputs.counts]) {
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            writer.write(&bytes)?;
        }
        writer.finish()?.publish()
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
