//! GGUF model files: what is in the file, checked, without touching more than its header.
//!
//! * [`Gguf`] opens a file (or all parts of a split one), maps it and gives its metadata and tensors.
//! * [`Metadata`] is the typed key-value section.
//! * [`GgmlType`] names every tensor type of the format; [`quant`] decodes the block formats, [`quantize`] encodes them.
//! * [`imatrix`] reads importance matrices, which encoders may weigh by.
//! * [`Writer`] writes a file that appears under its name only when it is whole.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md> (versions 2 and 3, little-endian).
//!
//! ```no_run
//! let gguf = tandem_loader::Gguf::open("model.gguf".as_ref())?;
//! for tensor in gguf.tensors() {
//!     println!("{} {:?} {}", tensor.name, tensor.dims(), tensor.ty);
//! }
//! # Ok::<(), tandem_loader::Error>(())
//! ```

mod cursor;
mod error;
mod ggml_type;
mod gguf;
pub mod imatrix;
mod metadata;
pub mod quant;
pub mod quantize;
mod source;
mod split;
mod writer;

pub use error::{Error, Result};
pub use ggml_type::{GgmlType, TypeClass, TypeIdError};
pub use gguf::{Gguf, TensorInfo};
pub use metadata::{ArrayValue, Metadata, Value, ValueType};
pub use writer::{TensorSpec, Writer, Written};
