//! How and where a model runs: backends, placement, KV cache, sessions.
//!
//! * [`Model::load`] takes an open file and a [`LoadOptions`], plans the [`Placement`] and loads each block's weights into
//!   its backend.
//! * [`Session`] is one sequence of tokens over a model: evaluate tokens, read logits, go back.
//! * [`Backend`] is the seam behind which a block of the program runs; [`reference`] is the specification of every step.

pub mod backend;
pub mod cpu;
mod error;
pub mod generate;
pub mod gptq;
#[cfg(feature = "gpu")]
pub mod gpu;
mod inputs;
mod model;
pub mod placement;
pub mod reference;
pub mod sampler;
pub mod score;
mod session;
pub mod verify;

pub use backend::{Backend, Batch, HostTime, MemoryReport};
pub use error::{Error, Result};
pub use generate::{GenerateError, GenerateOptions, Generation, StopReason, generate};
pub use inputs::{InputSquares, MatrixInputs};
pub use model::{DEFAULT_CTX, KvType, LoadOptions, Model, Precision};
pub use placement::{Device, Placement, Plan};
pub use session::{DEFAULT_BATCH, Next, OnMove, Outputs, Session};
