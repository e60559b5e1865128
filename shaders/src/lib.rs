//! GPU kernels as WGSL text: the composer that joins a kernel, the snippets it includes and the options of one variant.
//!
//! There is no kernel here yet. They come with the GPU backend, and this is how they will be put together: WGSL has no
//! modules, and naga takes no storage pointers as function arguments, so a decode snippet reads a global that the kernel
//! declares, and the two are joined as text. See [`compose`] for the language.

mod compose;

pub use compose::{ComposeError, Define, Place, compose};
