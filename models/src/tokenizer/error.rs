//! What can be wrong with a model's tokenizer.

/// Why a tokenizer could not be made from a model's metadata.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The model has no tokenizer, on purpose: callers can go on with token ids alone.
    #[error("the model has no tokenizer ({reason}); it can be used with token ids only")]
    NoTokenizer {
        /// What the metadata says.
        reason: String,
    },

    /// A kind of tokenizer, or of pre-tokenizer, that is not known here.
    #[error("metadata key `{key}` has the value `{value}`, which is not supported; supported are: {supported}")]
    Unsupported {
        /// The metadata key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The values that would do.
        supported: String,
    },

    /// Metadata that contradicts itself.
    #[error("metadata key `{key}`: {message}; the file may be damaged, or was converted wrongly")]
    Malformed {
        /// The metadata key.
        key: &'static str,
        /// What is wrong with it.
        message: String,
    },

    /// Metadata of the wrong type.
    #[error(transparent)]
    Metadata(#[from] tandem_loader::Error),
}

impl TokenizerError {
    pub(crate) fn malformed(key: &'static str, message: impl Into<String>) -> TokenizerError {
        TokenizerError::Malformed { key, message: message.into() }
    }
}

/// Result of the tokenizer module.
pub type Result<T, E = TokenizerError> = std::result::Result<T, E>;
