//! The GPU backend: WGSL kernels through wgpu, one command encoder and one submit per forward pass, or a few where a batch is
//! much work.

mod buffers;
mod compile;
mod coop;
mod device;
mod disk_cache;
mod error;
mod exec;
mod kernels;
mod layout;
mod op;
mod pack;
#[cfg(test)]
mod tests;
mod upload;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tandem_loader::{Gguf, quant};
use tandem_models::{Program, Reg, Step};
use tandem_shaders::{Decode, Format};

use crate::backend::{Backend, Batch, Hidden, HostTime, MemoryReport};
use crate::error::Result;
use crate::model::{KvType, Precision};

use buffers::Buffers;
use compile::Compiler;
use exec::{Ahead, Embedding};
use layout::Layout;
use op::{Best, Op};

pub use device::{AdapterInfo, AdapterKind, Gpu, Selector, adapters, hide_caught_panics};
pub use error::GpuError;

/// Most tokens evaluated together on the GPU, unless the options say otherwise. Larger batches are cut up.
pub const DEFAULT_MAX_BATCH: usize = 512;

/// Most multiply-adds handed over at once: a quarter of a second of a slow integrated GPU. Systems take a GPU for dead that
/// has been at one submission for 2 seconds or some (Windows' `TdrDelay`).
const MAX_WORK: u64 = 50_000_000_000;

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
    /// Whether to use cooperative matrices; where the adapter offers them by default. Tests run kernels that only pretend to.
    pub cooperative: Option<bool>,
    /// Most multiply-adds of one submission: tests cut small batches up with it.
    pub max_work: u64,
    /// Changes a kernel's source before it is compiled, given its file's name: how tests plant a wrong one.
    #[doc(hidden)]
    pub edit_kernel: Option<fn(&str, String) -> String>,
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
            cooperative: None,
            max_work: MAX_WORK,
            edit_kernel: None,
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

/// Sizes that depend on the device.
#[derive(Debug, Clone, Copy)]
struct Tuning {
    /// Sums through subgroups.
    subgroups: bool,
    /// Fewest and most threads of the matrix-vector kernel's workgroups.
    threads: (u32, u32),
    /// Workgroups that share out the cache of a few queries.
    shares: usize,
}

impl Tuning {
    fn new(info: &AdapterInfo, options: &GpuOptions) -> Tuning {
        let subgroup = info.subgroup_sizes.0.clamp(4, 128);
        Tuning {
            subgroups: info.subgroups && options.subgroups.unwrap_or(true),
            // A software device runs a workgroup's threads on one core, a subgroup at a time.
            threads: if info.is_software() { (subgroup, subgroup) } else { (subgroup.max(32), 2 * subgroup.max(32)) },
            shares: if info.is_software() { 8 } else { layout::MAX_SHARES },
        }
    }

    /// Threads that share out a row of a matrix: no more than it has units of work.
    fn matvec_threads(&self, spec: &layout::MatrixSpec) -> u32 {
        let units = Format::groups(spec.n_in) * if spec.format.decode == Decode::Floats { 8 } else { 1 };
        (units as u32).next_power_of_two().clamp(self.threads.0, self.threads.1)
    }
}

/// The GPU backend.
pub struct GpuBackend {
    gguf: Arc<Gguf>,
    program: Arc<Program>,
    options: GpuOptions,
    name: String,
    warnings: Vec<String>,
    memory: MemoryReport,
    tuning: Tuning,
    /// By block; only those placed here.
    ops: Vec<Option<Vec<Op>>>,
    best: Option<Best>,
    embedding: Option<Embedding>,
    /// Rows of logits computed at a time.
    logit_rows: usize,
    /// Inputs on their way to the queue.
    staged: Vec<f32>,
    /// Passes recorded before their inputs are known, by their first block.
    ahead: HashMap<usize, Ahead>,
    /// Time spent on inputs, recording, submitting and reading, but for the wait.
    host_time: HostTime,
    buffers: Buffers,
    gpu: Gpu,
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
        let options = GpuOptions { max_batch: layout::max_batch(program, options), ..options.clone() };
        let gpu = Gpu::open(&options.device)?;
        let tuning = Tuning::new(&gpu.info, &options);
        let binding = layout::binding_limit(&options, Some(gpu.info.max_binding));
        let layout = Layout::new(gguf, program, blocks, &options, binding)?;
        let (buffers, allocated) = Buffers::new(&gpu, &layout)?;
        buffers.fill(&gpu, gguf, program, &layout, progress)?;
        let mut compiler = Compiler::new(&gpu, program, &layout, &buffers, &options, tuning);
        let warnings = compiler.use_cooperative_matrices()?.into_iter().collect();
        let mut ops: Vec<Option<Vec<Op>>> = program.blocks.iter().map(|_| None).collect();
        for block in blocks.iter().cloned().flatten() {
            ops[block] = Some(compiler.block(block)?);
        }
        let best = compiler.best()?;
        compiler.pipelines.save();
        gpu.check()?;
        let memory = layout.memory();
        debug_assert_eq!(allocated, memory.weights + memory.kv_cache + memory.scratch);
        Ok(GpuBackend {
            gguf: gguf.clone(),
            program: program.clone(),
            name: format!("GPU ({}, {})", gpu.info.name, gpu.info.api),
            warnings,
            memory,
            tuning,
            ops,
            best,
            embedding: embedding(gguf, program, blocks, progress)?,
            logit_rows: layout.logit_rows,
            staged: Vec::new(),
            ahead: HashMap::new(),
            host_time: HostTime::default(),
            buffers,
            gpu,
            options,
        })
    }

    /// The device.
    pub fn adapter(&self) -> &AdapterInfo {
        &self.gpu.info
    }
}

/// The embedding table of the blocks, if it is among them.
fn embedding(
    gguf: &Gguf,
    program: &Program,
    blocks: &[Range<usize>],
    progress: &mut dyn FnMut(u64),
) -> Result<Option<Embedding>> {
    let steps = blocks.iter().cloned().flatten().flat_map(|b| &program.blocks[b].steps);
    for step in steps {
        if let Step::Embed { table, scale } = step {
            let tensor = layout::tensor(gguf, program, *table)?.clone();
            progress(tensor.n_bytes() as u64);
            return Ok(Some(Embedding { decode: quant::decoder(&tensor)?, tensor, scale: *scale }));
        }
    }
    Ok(None)
}

impl Backend for GpuBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn run(&mut self, blocks: Range<usize>, batch: &Batch<'_>, hidden: &mut Hidden) -> Result<()> {
        self.run_batch(blocks, batch, hidden)
    }

    fn memory(&self) -> MemoryReport {
        self.memory
    }

    fn host_time(&self) -> HostTime {
        self.host_time
    }

    fn register(&mut self, reg: Reg, rows: usize, width: usize, of_pairs: bool) -> Result<Vec<f32>> {
        self.read_register(reg, rows, width, of_pairs)
    }
}
