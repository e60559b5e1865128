//! The GPU backend: WGSL kernels through wgpu, one command encoder and one submit per forward pass.

mod device;
mod error;
mod layout;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tandem_loader::Gguf;
use tandem_models::Program;

use crate::backend::{Backend, Batch, Hidden, MemoryReport};
use crate::error::Result;
use crate::model::{KvType, Precision};

pub use device::{AdapterInfo, AdapterKind, Gpu, Selector, adapters};
pub use error::GpuError;

/// Most tokens evaluated together on the GPU, unless the options say otherwise. Larger batches are cut up.
pub const DEFAULT_MAX_BATCH: usize = 512;

/// How the GPU backend is set up.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Which adapter.
    pub device: Selector,
    /// Fast or exact kernels.
    pub precision: Precision,
    /// Element type of the cache.
    pub kv_type: KvType,
    /// Positions of the cache.
    pub n_ctx: usize,
    /// Rows of the buffers of activations.
    pub max_batch: usize,
    /// File that compiled kernels are kept in, where the driver lets them be kept.
    pub pipeline_cache: Option<PathBuf>,
    /// Most bytes of a binding, below the adapter's own limit: tests split small tensors with it.
    pub binding_limit: Option<u64>,
    /// Whether to use subgroup arithmetic; what the adapter offers by default. Tests run both.
    pub subgroups: Option<bool>,
}

impl Default for GpuOptions {
    fn default() -> GpuOptions {
        GpuOptions {
            device: Selector::Best,
            precision: Precision::default(),
            kv_type: KvType::default(),
            n_ctx: crate::model::DEFAULT_CTX,
            max_batch: DEFAULT_MAX_BATCH,
            pipeline_cache: None,
            binding_limit: None,
            subgroups: None,
        }
    }
}

/// What a set of blocks takes on the GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requirement {
    /// Bytes held while the model is loaded.
    pub memory: MemoryReport,
    /// Bytes more while it is being loaded.
    pub staging: usize,
}

/// What [`GpuBackend::load`] will take for `blocks`, worked out from the file's header without a device.
///
/// # Errors
/// A weight type or a shape that the GPU does not handle.
pub fn required_bytes(
    gguf: &Gguf,
    program: &Program,
    blocks: &[Range<usize>],
    options: &GpuOptions,
) -> Result<Requirement> {
    layout::required(gguf, program, blocks, options)
}

/// The GPU backend.
pub struct GpuBackend {
    name: String,
    memory: MemoryReport,
}

impl GpuBackend {
    /// Opens the device, loads the weights of `blocks`, and makes room for their cache. `progress` hears of bytes of the
    /// file loaded.
    ///
    /// # Errors
    /// No device; too little memory; a weight type or a shape that the GPU does not handle; damaged data.
    pub fn load(
        gguf: &Arc<Gguf>,
        program: &Arc<Program>,
        blocks: &[Range<usize>],
        options: &GpuOptions,
        progress: &mut dyn FnMut(u64),
    ) -> Result<GpuBackend> {
        let _ = (gguf, program, blocks, progress, options);
        Err(GpuError::Unsupported { what: "running a model (not yet)".into() }.into())
    }
}

impl Backend for GpuBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, _: Range<usize>, _: &Batch<'_>, _: &mut Hidden) -> Result<()> {
        unreachable!("load never succeeds yet")
    }

    fn memory(&self) -> MemoryReport {
        self.memory
    }
}
