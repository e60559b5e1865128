//! Writing a GGUF file (version 3): header and tensor directory first, then tensor data as it comes.
//!
//! The bytes go to a temporary file beside the final one, which gets its name when all of them are on the disk. A run
//! that fails or is interrupted leaves nothing under the final name.

use std::fs::File;
use std::io::{self, BufWriter, Write};
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
    alignment: u64,
    /// Bytes of each tensor's data, in order.
    sizes: Vec<u64>,
    /// Which tensor the next byte belongs to, and how many of its bytes are written.
    tensor: usize,
    done: u64,
}

/// A whole file that does not have its name yet.
#[derive(Debug)]
pub struct Written {
    path: PathBuf,
    file: NamedTempFile,
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
        const KEY: &str = "general.alignment";
        let alignment = metadata.u32(KEY)?.map_or(DEFAULT_ALIGNMENT, u64::from);
        if !alignment.is_power_of_two() {
            let message = format!("{alignment} is not a power of two");
            return Err(Error::Metadata { key: KEY.to_owned(), message });
        }
        let cannot = |source| Error::Write { path: path.to_owned(), source };
        let sizes: Option<Vec<u64>> = tensors.iter().map(TensorSpec::n_bytes).collect();
        let (Some(sizes), Some(header)) = (sizes, header(metadata, tensors, alignment)) else {
            return Err(cannot(io::Error::new(io::ErrorKind::InvalidInput, "a tensor's size is impossible")));
        };
        let out = BufWriter::with_capacity(1 << 20, temporary(path).map_err(cannot)?);
        let mut writer = Writer { path: path.to_owned(), out, alignment, sizes, tensor: 0, done: 0 };
        writer.out.write_all(&header).map_err(cannot)?;
        if !tensors.is_empty() {
            writer.pad(header.len() as u64)?;
        }
        writer.skip_empty();
        Ok(writer)
    }

    /// The next bytes of the tensor data: tensors in order, each without padding (which is added here).
    ///
    /// # Errors
    /// [`Error::Write`], as for a full disk.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(&size) = self.sizes.get(self.tensor) else {
                return Err(self.error(io::Error::other("more tensor data than the directory has room for")));
            };
            let n = usize::try_from(size - self.done).map_or(bytes.len(), |left| left.min(bytes.len()));
            self.out.write_all(&bytes[..n]).map_err(|source| self.error(source))?;
            bytes = &bytes[n..];
            self.done += n as u64;
            if self.done == size {
                self.pad(size)?;
                (self.tensor, self.done) = (self.tensor + 1, 0);
                self.skip_empty();
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
        if self.tensor < self.sizes.len() {
            return Err(self.error(io::Error::other(format!("the data of tensor {} is not complete", self.tensor))));
        }
        let Writer { path, out, .. } = self;
        let cannot = |source| Error::Write { path: path.clone(), source };
        let file = out.into_inner().map_err(|error| cannot(error.into_error()))?;
        // Some file systems find out only now that the disk is full.
        file.as_file().sync_all().map_err(cannot)?;
        Ok(Written { path, file })
    }

    /// Zeros from `size` bytes up to the next aligned place.
    fn pad(&mut self, size: u64) -> Result<()> {
        let n = size.next_multiple_of(self.alignment) - size;
        io::copy(&mut io::Read::take(io::repeat(0), n), &mut self.out).map(|_| ()).map_err(|source| self.error(source))
    }

    fn skip_empty(&mut self) {
        while self.sizes.get(self.tensor) == Some(&0) {
            self.tensor += 1;
        }
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
        let Written { path, file } = self;
        match file.persist_noclobber(&path) {
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
