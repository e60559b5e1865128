//! Writing a GGUF file (version 3): header and tensor directory first, then tensor data as it comes, tensor after tensor or
//! in any order.
//!
//! The bytes go to a temporary file beside the final one, which gets its name when all of them are on the disk. A run
//! that fails or is interrupted leaves nothing under the final name.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::ggml_type::GgmlType;
use crate::gguf::{DEFAULT_ALIGNMENT, TensorInfo};
use crate::metadata::{Metadata, Value};

/// Format version written: the one that every program reads.
const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    /// Sizes, fastest-varying first (GGML order), 1 to 4 of them. The first is a multiple of the type's block size.
    pub dims: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of another file in another type.
    pub fn like(tensor: &TensorInfo, ty: GgmlType) -> TensorSpec {
        TensorSpec { name: tensor.name.clone(), ty, dims: tensor.dims().to_vec() }
    }

    /// Bytes of its data, or `None` where the row length is no multiple of the block size or the product overflows.
    pub fn n_bytes(&self) -> Option<u64> {
        let (row_len, others) = self.dims.split_first()?;
        let row = self.ty.row_bytes(*row_len)? as u64;
        others.iter().try_fold(row, |bytes, dim| bytes.checked_mul(*dim as u64))
    }
}

/// A file being written. Dropping it without [`finish`](Writer::finish) removes what was written.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    /// Where each tensor's data is, and how much of it is written.
    places: Vec<Place>,
    /// Which tensor the next byte belongs to.
    tensor: usize,
    /// Whether the file takes the place of an older one.
    replaces: bool,
}

#[derive(Debug)]
struct Place {
    start: u64,
    size: u64,
    done: u64,
}

/// A whole file that does not have its name yet.
#[derive(Debug)]
pub struct Written {
    path: PathBuf,
    file: NamedTempFile,
    replaces: bool,
}

impl Writer {
    /// Begins a file with this metadata (in this order) and these tensors, whose data follows through
    /// [`write`](Writer::write). Data is aligned to `general.alignment`, or 32 bytes.
    ///
    /// # Errors
    /// [`Error::Exists`] where `path` is taken; [`Error::Write`] where its folder takes no file, or a tensor's size is
    /// impossible; [`Error::Metadata`] where the alignment is no power of two.
    pub fn create(path: &Path, metadata: &Metadata, tensors: &[TensorSpec]) -> Result<Writer> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: path.to_owned() });
        }
        Writer::begin(path, metadata, tensors, false)
    }

    /// As [`create`](Writer::create), in place of an older file, which stays until the new one is whole.
    ///
    /// # Errors
    /// As for [`create`](Writer::create), without [`Error::Exists`].
    pub fn replace(path: &Path, metadata: &Metadata, tensors: &[TensorSpec]) -> Result<Writer> {
        Writer::begin(path, metadata, tensors, true)
    }

    fn begin(path: &Path, metadata: &Metadata, tensors: &[TensorSpec], replaces: bool) -> Result<Writer> {
        const KEY: &str = "general.alignment";
        let alignment = metadata.u32(KEY)?.map_or(DEFAULT_ALIGNMENT, u64::from);
        if !alignment.is_power_of_two() {
            let message = format!("{alignment} is not a power of two");
            return Err(Error::Metadata { key: KEY.to_owned(), message });
        }
        let cannot = |source| Error::Write { path: path.to_owned(), source };
        let laid_out = header(metadata, tensors, alignment).and_then(|header| {
            let (places, end) = places(header.len() as u64, tensors, alignment)?;
            Some((header, places, end))
        });
        let Some((header, places, end)) = laid_out else {
            return Err(cannot(io::Error::new(io::ErrorKind::InvalidInput, "a tensor's size is impossible")));
        };
        let file = temporary(path).map_err(cannot)?;
        // What is not written, as between tensors, is 0.
        file.as_file().set_len(end).map_err(cannot)?;
        let out = BufWriter::with_capacity(1 << 20, file);
        let mut writer = Writer { path: path.to_owned(), out, places, tensor: 0, replaces };
        writer.out.write_all(&header).map_err(cannot)?;
        writer.go_on(0)?;
        Ok(writer)
    }

    /// Goes to the beginning of a tensor's data (by its place among those given), which [`write`](Writer::write) then
    /// writes. Of no use where tensors come in order.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn select(&mut self, tensor: usize) -> Result<()> {
        if let Some(place) = self.places.get_mut(tensor) {
            place.done = 0;
        }
        self.go_on(tensor)
    }

    /// Goes to the first data that is missing, of this tensor or one after it.
    fn go_on(&mut self, tensor: usize) -> Result<()> {
        self.tensor = tensor;
        while self.places.get(self.tensor).is_some_and(|place| place.done == place.size) {
            self.tensor += 1;
        }
        let Some(place) = self.places.get(self.tensor) else { return Ok(()) };
        let at = SeekFrom::Start(place.start + place.done);
        self.out.seek(at).map(|_| ()).map_err(|source| self.error(source))
    }

    /// The next bytes of the tensor data: tensors in order, each without padding (which is added here).
    ///
    /// # Errors
    /// [`Error::Write`], as for a full disk.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(place) = self.places.get_mut(self.tensor) else {
                return Err(self.error(io::Error::other("more tensor data than the directory has room for")));
            };
            let n = usize::try_from(place.size - place.done).map_or(bytes.len(), |left| left.min(bytes.len()));
            place.done += n as u64;
            let is_whole = place.done == place.size;
            self.out.write_all(&bytes[..n]).map_err(|source| self.error(source))?;
            bytes = &bytes[n..];
            if is_whole {
                self.go_on(self.tensor + 1)?;
            }
        }
        Ok(())
    }

    /// Brings all bytes to the disk. The file gets its name through [`Written::publish`], so that the parts of a split
    /// model can appear together.
    ///
    /// # Errors
    /// [`Error::Write`], also where data of some tensor is missing.
    pub fn finish(self) -> Result<Written> {
        if let Some(tensor) = self.places.iter().position(|place| place.done < place.size) {
            return Err(self.error(io::Error::other(format!("the data of tensor {tensor} is not complete"))));
        }
        let Writer { path, out, replaces, .. } = self;
        let cannot = |source| Error::Write { path: path.clone(), source };
        let file = out.into_inner().map_err(|error| cannot(error.into_error()))?;
        // Some file systems find out only now that the disk is full.
        file.as_file().sync_all().map_err(cannot)?;
        Ok(Written { path, file, replaces })
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }
}

impl Written {
    /// Gives the file its name.
    ///
    /// # Errors
    /// [`Error::Exists`] where another program took the name meanwhile; [`Error::Write`].
    pub fn publish(self) -> Result<()> {
        let Written { path, file, replaces } = self;
        match if replaces { file.persist(&path) } else { file.persist_noclobber(&path) } {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists { path }),
            Err(error) => Err(Error::Write { path, source: error.error }),
        }
    }
}

/// A temporary file in the folder of `path`, with the rights of an ordinary new file.
fn temporary(path: &Path) -> io::Result<NamedTempFile<File>> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The umask still takes from them; without this the file would be readable by its owner only.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.prefix(".tandem-").tempfile_in(folder)
}

/// Where the data of each tensor is in a file whose header ends at `header`, and where the file ends; `None` where a size
/// overflows.
fn places(header: u64, tensors: &[TensorSpec], alignment: u64) -> Option<(Vec<Place>, u64)> {
    let mut end = if tensors.is_empty() { header } else { header.checked_next_multiple_of(alignment)? };
    let mut places = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let size = tensor.n_bytes()?;
        places.push(Place { start: end, size, done: 0 });
        end = end.checked_add(size)?.checked_next_multiple_of(alignment)?;
    }
    Some((places, end))
}

/// Header and tensor directory, without the padding after it; `None` where a size overflows.
fn header(metadata: &Metadata, tensors: &[TensorSpec], alignment: u64) -> Option<Vec<u8>> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.iter().len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut out, key);
        out.extend((value.value_type() as u32).to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_string(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
        out.extend(tensor.ty.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = offset.checked_add(tensor.n_bytes()?)?.checked_next_multiple_of(alignment)?;
    }
    Some(out)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(text) => put_string(out, text),
        Value::Array(array) => {
            out.extend((array.element_type() as u32).to_le_bytes());
            out.extend((array.len() as u64).to_le_bytes());
            out.extend(array.raw());
        }
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}
