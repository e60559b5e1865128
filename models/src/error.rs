//! Why a file cannot become a program.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a file cannot become a program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A metadata key is missing or has the wrong type.
    #[error(transparent)]
    Loader(#[from] tandem_loader::Error),
    /// The architecture is not one of [`crate::ARCHITECTURES`].
    #[error("architecture `{arch}` (metadata key `general.architecture`) is not supported; supported: {supported}")]
    UnknownArchitecture {
        /// The file's architecture.
        arch: String,
        /// The supported ones.
        supported: String,
    },
    /// The architecture is known, but the file asks for something in it that this version refuses.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// The feature, with the key or tensor that asks for it.
        what: String,
    },
    /// A hyperparameter is impossible.
    #[error("metadata key `{key}`: {message}")]
    Hparam {
        /// The key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("tensor `{tensor}` is missing; the file is incomplete or made for another program")]
    MissingTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the hyperparameters say.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected:?} (data at byte {offset} of the file)")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape in the file, fastest-varying size first.
        found: Vec<usize>,
        /// The shape the hyperparameters ask for.
        expected: Vec<usize>,
        /// Byte offset of its data.
        offset: usize,
    },
}

impl Error {
    /// Whether the file itself is at fault, rather than something this version cannot do.
    pub fn is_malformed(&self) -> bool {
        match self {
            Error::Loader(_) | Error::Hparam { .. } | Error::MissingTensor { .. } | Error::Shape { .. } => true,
            Error::UnknownArchitecture { .. } | Error::Unsupported { .. } => false,
        }
    }
}
