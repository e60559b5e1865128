//! Opening a GGUF file: header, tensor directory, and every check that makes later reads safe.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::cursor::{Cursor, shown};
use crate::error::{Error, Result};
use crate::ggml_type::{GgmlType, TypeClass};
use crate::metadata::Metadata;
use crate::quant;
use crate::source::Source;
use crate::split;

pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
/// Most tensors, and most metadata entries, in one file: more than any model has, so that a damaged count in a large
/// file does not fill the memory.
const MAX_ENTRIES: u64 = 1 << 20;

/// A tensor's place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    dims: Vec<usize>,
    part: usize,
    bytes: Range<usize>,
}

impl TensorInfo {
    /// Sizes, fastest-varying first (GGML order): `[n_in, n_out]` for a matrix of `n_out` rows of `n_in` weights.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Length of a row: the fastest-varying size.
    pub fn row_len(&self) -> usize {
        self.dims[0]
    }

    /// Number of rows: the product of all sizes but the first.
    pub fn n_rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Number of weights.
    pub fn n_elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes in the file.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Byte offset in its file part.
    pub fn offset(&self) -> usize {
        self.bytes.start
    }

    /// Which part of a split model holds it, from 0.
    pub fn part(&self) -> usize {
        self.part
    }
}

/// An open model file, or all parts of a split one.
///
/// Opening reads the header only. Tensor data is mapped and read when it is used; if another program truncates the file
/// meanwhile, the operating system ends the process (as for every memory-mapped file). A clone shares the bytes.
#[derive(Debug, Clone)]
pub struct Gguf {
    parts: Vec<Part>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    source: Source,
    version: u32,
}

impl Gguf {
    /// Opens `path`. For a split model give the first part (`...-00001-of-0000N.gguf`); the others are found beside it.
    pub fn open(path: &Path) -> Result<Gguf> {
        let mut gguf =
            Gguf { parts: Vec::new(), metadata: Metadata::default(), tensors: Vec::new(), index: HashMap::new() };
        let first = gguf.add_part(path, Source::map(path)?, |_| Ok(()))?;
        let n_parts = split::expected_parts(path, &first)?;
        for no in 1..n_parts {
            let part_path = split::part_path(path, no, n_parts)?;
            gguf.add_part(&part_path, Source::map(&part_path)?, |metadata| {
                split::check_part(&part_path, metadata, no, n_parts, &first)
            })?;
        }
        split::check_total(path, &first, gguf.tensors.len())?;
        gguf.metadata = first;
        Ok(gguf)
    }

    /// Reads a single-part file that is already in memory. `path` is used in messages only.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Gguf> {
        let mut gguf =
            Gguf { parts: Vec::new(), metadata: Metadata::default(), tensors: Vec::new(), index: HashMap::new() };
        gguf.metadata = gguf.add_part(path, Source::owned(bytes), |_| Ok(()))?;
        Ok(gguf)
    }

    /// Parses one part's header and appends its tensors. `check` sees the metadata before the tensors are read, so that
    /// a part of another model is called that, and not a model with strange tensors.
    fn add_part(
        &mut self,
        path: &Path,
        source: Source,
        check: impl FnOnce(&Metadata) -> Result<()>,
    ) -> Result<Metadata> {
        let part = self.parts.len();
        let bytes = source.bytes();
        let mut cursor = Cursor::new(path, bytes);
        let version = check_magic_and_version(path, &mut cursor)?;
        let (n_tensors, n_kv) = parse_counts(&mut cursor)?;
        let metadata = Metadata::parse(&mut cursor, n_kv, &source)?;
        check(&metadata)?;
        let alignment = alignment(&cursor, &metadata)?;

        let first = self.tensors.len();
        let mut header_offsets = Vec::new();
        for i in 0..n_tensors {
            let at = cursor.offset();
            header_offsets.push(at);
            let tensor = parse_tensor(&mut cursor, i, alignment, part)?;
            if self.index.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(cursor.malformed(&field_of(&tensor.name), at, "appears twice in the tensor directory"));
            }
            self.tensors.push(tensor);
        }
        place_tensors(&cursor, &mut self.tensors[first..], &header_offsets, alignment, bytes.len())?;
        self.parts.push(Part { path: path.to_owned(), source, version });
        Ok(metadata)
    }

    /// Path of the (first) file.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// Paths of all parts.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|p| p.path.as_path())
    }

    /// Format version of the (first) file: 2 or 3.
    pub fn version(&self) -> u32 {
        self.parts[0].version
    }

    /// Bytes of all parts.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.source.bytes().len() as u64).sum()
    }

    /// The metadata (of the first part).
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor's raw bytes: its blocks, rows in order.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.parts[tensor.part].source.bytes()[tensor.bytes.clone()]
    }

    /// Lets the operating system drop the pages of some of a tensor's bytes from this process's memory. They stay
    /// readable.
    pub fn forget(&self, tensor: &TensorInfo, bytes: Range<usize>) {
        let start = tensor.bytes.start;
        let end = tensor.bytes.end.min(start.saturating_add(bytes.end));
        self.parts[tensor.part].source.forget((start + bytes.start).min(end)..end);
    }

    /// Asks the operating system to start reading a tensor's pages.
    pub fn prefetch(&self, tensor: &TensorInfo) {
        self.parts[tensor.part].source.prefetch(tensor.bytes.clone());
    }

    /// Puts other data, of another type, in the place of a tensor's: the file on the disk stays as it is.
    ///
    /// # Errors
    /// No tensor has the name, or the data has not the size that its shape and this type ask for.
    pub fn replace(&mut self, name: &str, ty: GgmlType, data: Vec<u8>) -> Result<()> {
        let wrong = |message: String| Error::Encode { tensor: name.to_owned(), message };
        let i = *self.index.get(name).ok_or_else(|| wrong("is not in the file".to_owned()))?;
        let tensor = &mut self.tensors[i];
        let wanted = ty.row_bytes(tensor.row_len()).and_then(|row| row.checked_mul(tensor.n_rows()));
        if wanted != Some(data.len()) {
            return Err(wrong(format!("{} bytes are not what its shape needs in {ty}", data.len())));
        }
        (tensor.ty, tensor.part, tensor.bytes) = (ty, self.parts.len(), 0..data.len());
        let (path, version) = (self.path().to_owned(), self.version());
        self.parts.push(Part { path, source: Source::owned(data), version });
        Ok(())
    }

    /// A whole tensor as f32, row-major. Fails for types without a decoder.
    pub fn dequantize(&self, tensor: &TensorInfo) -> Result<Vec<f32>> {
        let decode = quant::decoder(tensor)?;
        let mut out = vec![0.0; tensor.n_elements()];
        decode(self.data(tensor), &mut out);
        Ok(out)
    }
}

/// Reads magic and version; refuses other formats by name.
fn check_magic_and_version(path: &Path, cursor: &mut Cursor<'_>) -> Result<u32> {
    let not_gguf = |message: String| Error::NotGguf { path: path.to_owned(), message };
    let magic = cursor.take(4, "magic")?;
    match magic {
        b"GGUF" => {}
        b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
            return Err(not_gguf("is a GGML file from before GGUF (2023); convert the model again".to_owned()));
        }
        _ => {
            let shown = magic.escape_ascii();
            return Err(not_gguf(format!("is not a GGUF file: magic is '{shown}', expected 'GGUF' (at byte 0)")));
        }
    }
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => Ok(version),
        1 => {
            Err(not_gguf("is GGUF version 1, which is no longer read; convert the model again (at byte 4)".to_owned()))
        }
        v if (1..=3).contains(&v.swap_bytes()) => Err(not_gguf(format!(
            "is a big-endian GGUF file (version {}), made for another kind of machine; convert it to little-endian (at byte 4)",
            v.swap_bytes()
        ))),
        v => Err(not_gguf(format!("is GGUF version {v}; this version of tandem reads 2 and 3 (at byte 4)"))),
    }
}

/// The numbers of tensors and of metadata entries.
fn parse_counts(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let at = cursor.offset();
    let n_tensors = cursor.u64("tensor count")?;
    let n_kv = cursor.u64("metadata count")?;
    // A tensor's entry takes at least 8+1+4+4+8 bytes (no dimensions), a metadata entry at least 8+1+4+1.
    for (what, at, n, least) in [("tensor count", at, n_tensors, 25), ("metadata count", at + 8, n_kv, 14)] {
        if n.checked_mul(least).is_none_or(|need| need > cursor.remaining() as u64) {
            let left = cursor.remaining();
            let message =
                format!("{n} entries cannot fit in the {left} bytes left in the file; it is truncated or damaged");
            return Err(cursor.malformed(what, at, message));
        }
        if n > MAX_ENTRIES {
            return Err(cursor.malformed(what, at, format!("{n} entries (at most {MAX_ENTRIES} are read)")));
        }
    }
    Ok((n_tensors, n_kv))
}

/// The tensor data's alignment: `general.alignment`, a power of two, or 32.
fn alignment(cursor: &Cursor<'_>, metadata: &Metadata) -> Result<u64> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.u32(KEY)?.map_or(DEFAULT_ALIGNMENT, u64::from);
    if !alignment.is_power_of_two() {
        let at = metadata.offset(KEY).unwrap_or(0);
        let message = format!("{alignment} is not a power of two");
        return Err(cursor.malformed(&format!("metadata key `{KEY}`"), at, message));
    }
    Ok(alignment)
}

/// A tensor as messages call it.
fn field_of(name: &str) -> String {
    format!("tensor `{}`", shown(name))
}

/// One entry of the tensor directory. `bytes` is still relative to the data section.
fn parse_tensor(cursor: &mut Cursor<'_>, i: u64, alignment: u64, part: usize) -> Result<TensorInfo> {
    let name = cursor.name(&format!("name of tensor {i}"))?;
    let field = field_of(&name);
    let dims = parse_dims(cursor, &field)?;
    let n_elements: usize = dims.iter().product();
    let at = cursor.offset();
    let id = cursor.u32(&field)?;
    let ty = GgmlType::from_id(id).map_err(|e| cursor.malformed(&field, at, e.to_string()))?;
    if ty.class() == TypeClass::Activation {
        let message = format!("has type {ty}, a format of intermediate results that no file can hold");
        return Err(cursor.malformed(&field, at, message));
    }
    if !dims[0].is_multiple_of(ty.block_size()) {
        let message = format!("row length {} is no multiple of the block size {} of {ty}", dims[0], ty.block_size());
        return Err(cursor.malformed(&field, at, message));
    }
    let Some(n_bytes) = ty.row_bytes(dims[0]).and_then(|row| row.checked_mul(n_elements / dims[0])) else {
        return Err(cursor.malformed(&field, at, "its size in bytes overflows"));
    };
    let at = cursor.offset();
    let offset = cursor.u64(&field)?;
    if !offset.is_multiple_of(alignment) {
        return Err(cursor.malformed(
            &field,
            at,
            format!("data offset {offset} is no multiple of the alignment {alignment}"),
        ));
    }
    match usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(n_bytes)?)) {
        Some(bytes) => Ok(TensorInfo { name, ty, dims, part, bytes }),
        None => Err(cursor.malformed(&field, at, format!("data offset {offset} overflows"))),
    }
}

/// A tensor's sizes, 1 to 4 of them, none 0, whose product does not overflow. A tensor without dimensions is a single
/// number, as llama.cpp reads it.
fn parse_dims(cursor: &mut Cursor<'_>, field: &str) -> Result<Vec<usize>> {
    let at = cursor.offset();
    let n_dims = cursor.u32(field)?;
    if n_dims > 4 {
        return Err(cursor.malformed(field, at, format!("has {n_dims} dimensions (at most 4)")));
    }
    if n_dims == 0 {
        return Ok(vec![1]);
    }
    let mut dims = Vec::new();
    let mut n_elements = 1usize;
    for _ in 0..n_dims {
        let at = cursor.offset();
        let dim = cursor.u64(field)?;
        let product = usize::try_from(dim).ok().and_then(|d| n_elements.checked_mul(d));
        match product {
            Some(0) => return Err(cursor.malformed(field, at, "has a dimension of 0")),
            Some(n) if n <= i64::MAX as usize => n_elements = n,
            _ => return Err(cursor.malformed(field, at, format!("its element count overflows (dimension {dim})"))),
        }
        dims.push(dim as usize);
    }
    Ok(dims)
}

/// Turns data-section ranges into file ranges; refuses data outside the file and overlapping tensors.
fn place_tensors(
    cursor: &Cursor<'_>,
    tensors: &mut [TensorInfo],
    header_offsets: &[usize],
    alignment: u64,
    file_len: usize,
) -> Result<()> {
    if tensors.is_empty() {
        return Ok(());
    }
    let data_start = cursor.offset().checked_next_multiple_of(alignment as usize).unwrap_or(usize::MAX);
    for (tensor, &at) in tensors.iter_mut().zip(header_offsets) {
        let (Some(start), Some(end)) =
            (data_start.checked_add(tensor.bytes.start), data_start.checked_add(tensor.bytes.end))
        else {
            return Err(cursor.malformed(&field_of(&tensor.name), at, "data offset overflows"));
        };
        if end > file_len {
            let message = format!(
                "its data (bytes {start} to {end}) lies outside the file of {file_len} bytes; the file is truncated or damaged"
            );
            return Err(cursor.malformed(&field_of(&tensor.name), at, message));
        }
        tensor.bytes = start..end;
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (tensors[i].bytes.start, tensors[i].bytes.end));
    for pair in order.windows(2) {
        let (a, b) = (&tensors[pair[0]], &tensors[pair[1]]);
        if a.bytes.end > b.bytes.start {
            let message = format!("its data overlaps {} (from byte {} of the file)", field_of(&a.name), b.bytes.start);
            return Err(cursor.malformed(&field_of(&b.name), header_offsets[pair[1]], message));
        }
    }
    Ok(())
}
