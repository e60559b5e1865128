//! Loading a model: program, placement, backends.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use tandem_loader::Gguf;
use tandem_models::Program;

use crate::backend::{Backend, Batch, Hidden, MemoryReport};
use crate::cpu::{CpuBackend, CpuOptions, IsaLevel};
use crate::error::Result;
use crate::inputs::InputSquares;
use crate::placement::{Device, Placement};

/// Context length used when neither the user nor the model asks for less.
pub const DEFAULT_CTX: usize = 8192;

/// How numbers are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Activations quantized to int8 for the dot products with quantized weights.
    #[default]
    Fast,
    /// Weights dequantized, activations and cache f32: reproduces the F32 reference.
    Exact,
}

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// 32-bit.
    F32,
    /// 16-bit.
    #[default]
    F16,
    /// 8-bit integers with an f16 scale per 32.
    Q8_0,
    /// 4-bit integers with an f16 scale per 32.
    Q4_0,
}

impl KvType {
    /// All types.
    pub const ALL: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Q8_0, KvType::Q4_0];

    /// Name for people and flags.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
        }
    }

    /// Bytes of `n` elements of a key or value.
    pub fn bytes(self, n: usize) -> usize {
        match self {
            KvType::F32 => 4 * n,
            KvType::F16 => 2 * n,
            KvType::Q8_0 => n.div_ceil(32) * 34,
            KvType::Q4_0 => n.div_ceil(32) * 18,
        }
    }
}

/// How to load a model.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// CPU threads; all cores this process may use by default.
    pub threads: Option<usize>,
    /// Context length; the smaller of the model's own and [`DEFAULT_CTX`] by default.
    pub n_ctx: Option<usize>,
    /// Kernels to use.
    pub precision: Precision,
    /// Element type of the KV cache; exact precision always uses f32.
    pub kv_type: KvType,
    /// Highest CPU instruction set to use, for tests and comparisons.
    pub isa: Option<IsaLevel>,
    /// Where the CPU backend adds the squares of all inputs of matrices; it costs nothing where there is none.
    pub inputs: Option<Arc<Mutex<InputSquares>>>,
}

/// A loaded model, ready to evaluate one sequence.
pub struct Model {
    gguf: Arc<Gguf>,
    program: Arc<Program>,
    placement: Placement,
    backends: Vec<(Device, Box<dyn Backend>)>,
    n_ctx: usize,
    n_threads: usize,
}

impl Model {
    /// Loads all weights. `progress` is called with bytes done and bytes in total.
    ///
    /// # Errors
    /// An unsupported or damaged file; no memory.
    pub fn load(gguf: Arc<Gguf>, options: &LoadOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Model> {
        let program = Arc::new(Program::from_gguf(&gguf)?);
        let placement = Placement::cpu(&program);
        let n_ctx = options.n_ctx.unwrap_or(program.hparams.n_ctx_train.min(DEFAULT_CTX)).max(1);
        let n_threads = options.threads.unwrap_or_else(available_threads).max(1);
        let cpu = CpuOptions {
            threads: n_threads,
            precision: options.precision,
            kv_type: if options.precision == Precision::Exact { KvType::F32 } else { options.kv_type },
            n_ctx,
            isa: options.isa,
            inputs: options.inputs.clone(),
        };
        let total = program.weights.iter().filter_map(|w| gguf.tensor(&w.tensor)).map(|t| t.n_bytes() as u64).sum();
        let mut done = 0;
        let mut backends: Vec<(Device, Box<dyn Backend>)> = Vec::new();
        let runs = placement.runs.iter().filter(|(device, _)| *device == Device::Cpu);
        let blocks: Vec<Range<usize>> = runs.map(|(_, blocks)| blocks.clone()).collect();
        let backend = CpuBackend::load(&gguf, &program, &blocks, cpu, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
        backends.push((Device::Cpu, Box::new(backend)));
        Ok(Model { gguf, program, placement, backends, n_ctx, n_threads })
    }

    /// The open file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The model as data.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What runs where.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Positions of the KV cache.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// CPU threads in use.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Names of the backends in use.
    pub fn backend_names(&self) -> Vec<&str> {
        self.backends.iter().map(|(_, b)| b.name()).collect()
    }

    /// Bytes held by all backends together.
    pub fn memory(&self) -> MemoryReport {
        self.backends.iter().map(|(_, b)| b.memory()).fold(MemoryReport::default(), |sum, m| MemoryReport {
            weights: sum.weights + m.weights,
            kv_cache: sum.kv_cache + m.kv_cache,
            scratch: sum.scratch + m.scratch,
        })
    }

    /// Runs the whole program over a batch, device by device.
    pub(crate) fn forward(&mut self, batch: &Batch<'_>, hidden: &mut Hidden) -> Result<()> {
        for (device, blocks) in &self.placement.runs {
            for (_, backend) in self.backends.iter_mut().filter(|(d, _)| d == device) {
                backend.run(blocks.clone(), batch, hidden)?;
            }
        }
        Ok(())
    }
}

/// Cores this process may use.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
