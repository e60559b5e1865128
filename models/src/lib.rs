//! What a model computes, as data: architectures written as block programs.
//!
//! [`Program::from_gguf`] reads a file's metadata and tensor directory and emits the model's [`Program`]: for every
//! residual block (the attention half or the feed-forward half of a layer) a short list of fused [`Step`]s. Backends
//! execute that list; they know no architecture names, and this crate knows no devices.

mod arch;
mod builder;
mod error;
mod hparams;
pub mod mix;
mod program;
mod rope;
pub mod template;
pub mod tokenizer;

pub use arch::{ARCHITECTURES, Architecture};
pub use error::{Error, Result};
pub use hparams::Hparams;
pub use program::{
    Activation, Block, BlockKind, Linear, Program, Reg, Registers, Step, Vector, Weight, WeightId, WeightRole,
};
pub use rope::{Rope, RopePairing};
