//! GPU kernels as WGSL text, the composer that joins a kernel with what it includes, and the table of weight formats.
//!
//! WGSL has no modules, and naga takes no storage pointers as function arguments, so a decode snippet reads a global that
//! the kernel declares, and the two are joined as text. See [`compose`] for the language.

mod compose;
mod formats;
mod kernels;
pub mod params;

pub use compose::{ComposeError, Define, Place, compose};
pub use formats::{ALIGNMENT, Decode, FORMATS, Format, GROUP, MAX_PLANES, Plane};
pub use kernels::{Binding, Cache, HeadShape, Kernel, Operands, Pairing, SOURCES};
