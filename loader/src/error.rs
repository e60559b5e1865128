//! The loader's errors: each names the file, what in it is wrong, where, and what to do.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to open or map the file.
    #[error("cannot open {path}: {source}", path = path.display())]
    Io {
        /// The file asked for.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file could not be written; nothing is left under its name.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is in the way of one to be written.
    #[error("{path} exists already; give another name, or remove it first", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not a GGUF file this loader reads (wrong magic, version or byte order).
    #[error("{path}: {message}", path = path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// What it is instead, and what to do.
        message: String,
    },
    /// A field of the header is impossible.
    #[error("{path}: {field}: {message} (at byte {offset})", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The header field, metadata key or tensor at fault.
        field: String,
        /// What is wrong with it.
        message: String,
        /// Byte offset in the file of the value at fault.
        offset: u64,
    },
    /// A part of a split model is missing or does not belong to it.
    #[error("{path}: {message}", path = path.display())]
    Split {
        /// The part at fault.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A metadata key is missing, or its value has the wrong type or range.
    #[error("metadata key `{key}`: {message}")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A tensor cannot be encoded as asked.
    #[error("tensor `{tensor}`: {message}")]
    Encode {
        /// The tensor.
        tensor: String,
        /// Why, and what to do.
        message: String,
    },
    /// An importance matrix cannot be used.
    #[error("{path}: {message}", path = path.display())]
    Imatrix {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A tensor's block format has no decoder here.
    #[error("tensor `{tensor}`: type {ty} cannot be decoded by this version of tandem; supported: {supported}")]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// Its type's name.
        ty: &'static str,
        /// The types that can be decoded.
        supported: String,
    },
}
