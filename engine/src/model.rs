//! Loading a model: program, placement, backends.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tandem_loader::Gguf;
use tandem_models::Program;

use crate::backend::{Backend, Batch, Hidden, HostTime, MemoryReport};
use crate::cpu::{CpuBackend, IsaLevel};
use crate::error::{Error, Result};
use crate::inputs::InputSquares;
use crate::placement::{Device, Placement, Plan, Speeds, Wanted, adapter};

/// Context length used when neither the user nor the model asks for less.
pub const DEFAULT_CTX: usize = 8192;

/// Said of a model that could not be moved from one device to another.
const NOT_LOADED: &str = "the model is not in memory any more: start again";

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
    /// What runs where.
    pub wanted: Wanted,
    /// Folder of what can be made again: compiled GPU kernels, and whether there is a GPU.
    pub cache_folder: Option<PathBuf>,
}

/// A loaded model, ready to evaluate one sequence.
pub struct Model {
    gguf: Arc<Gguf>,
    plan: Plan,
    backends: Vec<(Device, Box<dyn Backend>)>,
}

impl Model {
    /// Plans and loads. `progress` is called with bytes done and bytes in total.
    ///
    /// # Errors
    /// Those of [`Plan::new`] and [`Model::from_plan`].
    pub fn load(gguf: Arc<Gguf>, options: &LoadOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Model> {
        Model::load_with(gguf, options, &mut Speeds::default(), progress)
    }

    /// As [`Model::load`], with figures of devices that were measured before. Where the GPU refuses and it may be done
    /// without, or with less of it, that is done, and the plan's notes say so.
    ///
    /// # Errors
    /// Those of [`Plan::new`] and [`Model::from_plan`].
    pub fn load_with(
        gguf: Arc<Gguf>,
        options: &LoadOptions,
        speeds: &mut Speeds<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Model> {
        let mut plan = Plan::new(&gguf, options, speeds)?;
        loop {
            match Model::from_plan(gguf.clone(), plan.clone(), progress) {
                Err(error) => plan = plan.retreat(&gguf, options, speeds, error)?,
                model => return model,
            }
        }
    }

    /// Loads all weights, each where the plan says. `progress` is called with bytes done and bytes in total.
    ///
    /// # Errors
    /// A damaged file; no memory; a device that cannot be used.
    pub fn from_plan(gguf: Arc<Gguf>, plan: Plan, progress: &mut dyn FnMut(u64, u64)) -> Result<Model> {
        let program = &plan.program;
        let total = program.weights.iter().filter_map(|w| gguf.tensor(&w.tensor)).map(|t| t.n_bytes() as u64).sum();
        let mut done = 0;
        let mut progress = |bytes: u64| {
            done += bytes;
            progress(done, total);
        };
        let mut backends = Vec::new();
        // The GPU first: it is the one that may refuse.
        for device in plan.placement.devices_in_use().into_iter().rev() {
            let blocks = plan.placement.blocks_on(device);
            let backend: Box<dyn Backend> = match device {
                Device::Cpu => Box::new(CpuBackend::load(&gguf, program, &blocks, plan.cpu.clone(), &mut progress)?),
                Device::Gpu => adapter::load(&gguf, program, &blocks, &plan.gpu, &mut progress)?,
            };
            backends.push((device, backend));
        }
        backends.reverse();
        Ok(Model { gguf, plan, backends })
    }

    /// A model of these backends, whatever they are.
    #[cfg(test)]
    pub(crate) fn of(gguf: Arc<Gguf>, plan: Plan, backends: Vec<(Device, Box<dyn Backend>)>) -> Model {
        Model { gguf, plan, backends }
    }

    /// The open file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The model as data.
    pub fn program(&self) -> &Program {
        &self.plan.program
    }

    /// The plan it was loaded by.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What runs where.
    pub fn placement(&self) -> &Placement {
        &self.plan.placement
    }

    /// Positions of the KV cache.
    pub fn n_ctx(&self) -> usize {
        self.plan.n_ctx
    }

    /// CPU threads in use.
    pub fn n_threads(&self) -> usize {
        self.plan.cpu.threads
    }

    /// Names of the backends in use.
    pub fn backend_names(&self) -> Vec<&str> {
        self.backends.iter().map(|(_, b)| b.name()).collect()
    }

    /// What people should know of how the backends were set up, a line each.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.backends.iter().flat_map(|(_, b)| b.warnings()).map(String::as_str)
    }

    /// Bytes held by each backend.
    pub fn memory_by_device(&self) -> impl Iterator<Item = (Device, MemoryReport)> {
        self.backends.iter().map(|(device, backend)| (*device, backend.memory()))
    }

    /// Bytes held by all backends together.
    pub fn memory(&self) -> MemoryReport {
        self.backends.iter().map(|(_, b)| b.memory()).fold(MemoryReport::default(), |sum, m| MemoryReport {
            weights: sum.weights + m.weights,
            kv_cache: sum.kv_cache + m.kv_cache,
            scratch: sum.scratch + m.scratch,
        })
    }

    /// Time the CPU has spent so far on a GPU's work.
    pub fn host_time(&self) -> HostTime {
        self.backends.iter().fold(HostTime::default(), |sum, (_, b)| sum.plus(b.host_time()))
    }

    /// Runs the whole program over a batch, device by device.
    pub(crate) fn forward(&mut self, batch: &Batch<'_>, hidden: &mut Hidden) -> Result<()> {
        for (device, blocks) in &self.plan.placement.runs {
            let backend = self.backends.iter_mut().find(|(d, _)| d == device);
            let (_, backend) = backend.ok_or_else(|| Error::Placement(NOT_LOADED.to_owned()))?;
            backend.run(blocks.clone(), batch, hidden)?;
        }
        Ok(())
    }

    /// Loads everything on the CPU, with an empty cache, after a pass failed because of the GPU. `say` hears what happened
    /// before that begins.
    ///
    /// # Errors
    /// The failure itself, where it is not the GPU's, where the CPU's memory does not hold the model, or where inputs are
    /// gathered (they would be counted again); those of [`Model::from_plan`], after which no pass succeeds.
    pub(crate) fn move_to_cpu(&mut self, error: Error, say: &mut dyn FnMut(&str)) -> Result<()> {
        let Some(failure) = adapter::failure(&error).filter(|_| self.plan.cpu.inputs.is_none()) else {
            return Err(error);
        };
        let Some(plan) = self.plan.on_cpu(&self.gguf)? else { return Err(error) };
        say(&format!("{failure}: everything runs on the CPU from here on"));
        // Not both at once: memory may hold the model only once.
        self.backends.clear();
        *self = Model::from_plan(self.gguf.clone(), plan, &mut |_, _| ())?;
        Ok(())
    }
}
