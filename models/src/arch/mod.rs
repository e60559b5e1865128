//! Architectures: one file each, one row each in [`ARCHITECTURES`].

mod gemma3;
mod llama;
mod qwen2;
mod qwen3;

use tandem_loader::{Gguf, Metadata};

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::hparams::Keys;
use crate::program::Program;

/// A supported architecture.
pub struct Architecture {
    /// Its name in `general.architecture`.
    pub name: &'static str,
    /// Model families that use it.
    pub families: &'static str,
    build: fn(&mut Builder<'_>, &Keys<'_>, &Gguf) -> Result<()>,
}

/// All supported architectures. Adding one is one file and one row.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", families: "Llama 1 to 3, SmolLM2, Mistral, Mixtral, TinyLlama", build: llama::build },
    Architecture { name: "qwen2", families: "Qwen 2 and 2.5", build: qwen2::build },
    Architecture { name: "qwen2moe", families: "Qwen 1.5 and 2 with experts", build: qwen2::build },
    Architecture { name: "qwen3", families: "Qwen 3 (dense)", build: qwen3::build },
    Architecture { name: "qwen3moe", families: "Qwen 3 with experts", build: qwen3::build },
    Architecture { name: "gemma3", families: "Gemma 3 (text)", build: gemma3::build },
];

/// The program of a file.
pub(crate) fn build(gguf: &Gguf) -> Result<Program> {
    let name = gguf.metadata().str("general.architecture")?;
    let name = name.ok_or_else(|| Metadata::missing("general.architecture"))?;
    let Some(arch) = ARCHITECTURES.iter().find(|a| a.name == name) else {
        let supported = ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(" ");
        return Err(Error::UnknownArchitecture { arch: name.to_owned(), supported });
    };
    let keys = Keys::new(name, gguf.metadata());
    let mut builder = Builder::new(gguf, &keys)?;
    (arch.build)(&mut builder, &keys, gguf)?;
    builder.finish(name)
}
