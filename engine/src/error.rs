//! The engine's errors.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file's data cannot be used.
    #[error(transparent)]
    Loader(#[from] tandem_loader::Error),
    /// The file's architecture cannot be used.
    #[error(transparent)]
    Models(#[from] tandem_models::Error),
    /// The sequence does not fit in the context.
    #[error("the context is full: {needed} tokens do not fit in {n_ctx}; use a larger context or a shorter text")]
    ContextFull {
        /// Tokens the sequence would have.
        needed: usize,
        /// Tokens it can have.
        n_ctx: usize,
    },
    /// A token id that the model does not have.
    #[error("token id {token} is outside the vocabulary of {n_vocab} tokens")]
    BadToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// Memory for weights or cache could not be had.
    #[error("cannot allocate {bytes} bytes for {what}: {source}; use a smaller context or model")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The thread pool could not be started.
    #[error("cannot start {threads} threads: {message}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What went wrong.
        message: String,
    },
    /// The GPU cannot be used, or failed.
    #[cfg(feature = "gpu")]
    #[error(transparent)]
    Gpu(#[from] crate::gpu::GpuError),
    /// Something cannot be placed as asked.
    #[error("{0}")]
    Placement(String),
    /// Evaluation was stopped by the caller.
    #[error("interrupted")]
    Interrupted,
}
