//! The CPU backend: packed weights, int8 activations, one parallel region per forward pass.

mod attention;
#[doc(hidden)]
pub mod bench_support;
mod buffer;
mod exec;
mod info;
mod isa;
mod kernels;
mod kv;
mod kv_format;
mod matmul;
mod matrix;
pub(crate) mod ops;
pub(crate) mod outer;
mod pack;
pub mod roofline;
mod sums;
mod team;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use tandem_loader::{Gguf, TensorInfo, quant};
use tandem_models::{Program, Reg, Step, WeightId, WeightRole};

use crate::backend::{Backend, Batch, Hidden, MemoryReport};
use crate::error::Result;
use crate::inputs::InputSquares;
use crate::model::{KvType, Precision};
use crate::session::DEFAULT_BATCH;
use buffer::{Buffer, Pages};
use kernels::Kernels;
use kv::LayerCache;
use matrix::Matrix;
use team::Team;

pub use info::CpuInfo;
pub use kernels::IsaLevel;

/// What a weight became when it was loaded.
enum Loaded {
    Matrix(Matrix),
    /// Rows are decoded from the file as tokens ask for them.
    Table {
        decode: quant::Decode,
        tensor: tandem_loader::TensorInfo,
    },
    Vector(Vec<f32>),
}

/// How the CPU backend is set up.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// Threads.
    pub threads: usize,
    /// Fast or exact kernels.
    pub precision: Precision,
    /// Element type of the cache.
    pub kv_type: KvType,
    /// Positions of the cache.
    pub n_ctx: usize,
    /// Highest instruction set to use.
    pub isa: Option<IsaLevel>,
    /// Where the squares of all inputs of matrices are added.
    pub inputs: Option<Arc<Mutex<InputSquares>>>,
}

/// The CPU backend.
pub struct CpuBackend {
    gguf: Arc<Gguf>,
    program: Arc<Program>,
    kernels: Kernels,
    options: CpuOptions,
    name: String,
    team: Team,
    /// The packed matrices.
    arena: Buffer,
    /// By [`WeightId`]; only those of the blocks placed here.
    weights: Vec<Option<Loaded>>,
    /// By layer; only those placed here.
    cache: Vec<Option<LayerCache>>,
    scratch: exec::Scratch,
}

/// Bytes that [`CpuBackend::load`] takes for these blocks, worked out from the file's header.
///
/// # Errors
/// A tensor that the file does not have.
pub fn required_bytes(
    gguf: &Gguf,
    program: &Program,
    blocks: &[Range<usize>],
    options: &CpuOptions,
) -> Result<MemoryReport> {
    Ok(Layout::new(gguf, program, blocks, options)?.memory)
}

/// What will be allocated for a set of blocks.
struct Layout {
    /// Weights of the blocks, each once.
    ids: Vec<WeightId>,
    /// Layers whose cache is kept.
    layers: Vec<usize>,
    arena_bytes: usize,
    scratch: exec::Sizes,
    memory: MemoryReport,
}

impl Layout {
    fn new(gguf: &Gguf, program: &Program, blocks: &[Range<usize>], options: &CpuOptions) -> Result<Layout> {
        let blocks = || blocks.iter().flat_map(|r| &program.blocks[r.clone()]);
        let mut seen = HashSet::new();
        let ids: Vec<WeightId> =
            blocks().flat_map(|b| b.weights.iter().copied()).filter(|id| seen.insert(*id)).collect();
        let stored = |step: &Step| if let Step::StoreKv { layer } = step { Some(*layer) } else { None };
        let layers: Vec<usize> = blocks().flat_map(|b| &b.steps).filter_map(stored).collect();

        let (mut arena_bytes, mut vector_bytes, mut work) = (0, 0, 0);
        for id in &ids {
            let weight = program.weight(*id);
            match weight.role {
                WeightRole::Vector => vector_bytes += 4 * weight.n_in,
                WeightRole::Table => {}
                WeightRole::Matrix | WeightRole::Experts { .. } => {
                    work = work.max(Matrix::work_len_for(weight.n_in));
                    if options.precision == Precision::Fast {
                        arena_bytes += Matrix::packed_bytes(tensor(gguf, program, *id)?, weight.n_out);
                    }
                }
            }
        }
        let hp = &program.hparams;
        let layer = LayerCache::required_bytes(options.n_ctx, hp.n_head_kv, hp.head_dim, options.kv_type);
        let n_batch = options.n_ctx.min(DEFAULT_BATCH);
        // Without attention nothing grows with the context.
        let end = if layers.is_empty() { 0 } else { options.n_ctx };
        let scratch = exec::Sizes::new(program, n_batch, end, options.threads, work);
        let memory = MemoryReport {
            weights: arena_bytes + vector_bytes,
            kv_cache: layer.saturating_mul(layers.len()),
            scratch: scratch.bytes(),
        };
        Ok(Layout { ids, layers, arena_bytes, scratch, memory })
    }
}

/// The file's tensor of a weight.
fn tensor<'a>(gguf: &'a Gguf, program: &Program, id: WeightId) -> Result<&'a TensorInfo> {
    let name = &program.weight(id).tensor;
    let missing = || tandem_models::Error::MissingTensor { tensor: name.clone() };
    Ok(gguf.tensor(name).ok_or_else(missing)?)
}

impl CpuBackend {
    /// Loads the weights of `blocks`, and makes room for their cache. `progress` hears of bytes loaded.
    ///
    /// # Errors
    /// No memory, no threads, a damaged file.
    pub fn load(
        gguf: &Arc<Gguf>,
        program: &Arc<Program>,
        blocks: &[Range<usize>],
        options: CpuOptions,
        progress: &mut dyn FnMut(u64),
    ) -> Result<CpuBackend> {
        let kernels = IsaLevel::best(options.isa).kernels();
        let team = Team::new(options.threads)?;
        let hp = &program.hparams;
        let layout = Layout::new(gguf, program, blocks, &options)?;
        let mut cache: Vec<Option<LayerCache>> = (0..hp.n_layer).map(|_| None).collect();
        for layer in layout.layers {
            cache[layer] = Some(LayerCache::new(options.n_ctx, hp.n_head_kv, hp.head_dim, options.kv_type)?);
        }
        let mut loading = Loading { gguf, program, kernels: &kernels, precision: options.precision, used: 0 };
        let mut arena = Buffer::zeroed(layout.arena_bytes, Pages::Huge, "weights")?;
        let mut weights: Vec<Option<Loaded>> = program.weights.iter().map(|_| None).collect();
        for id in layout.ids {
            let (loaded, bytes) = team.install(|| loading.load(id, &mut arena))?;
            weights[id.0] = Some(loaded);
            progress(bytes);
        }
        Ok(CpuBackend {
            name: format!("CPU ({} threads, {})", team.len(), kernels.name),
            gguf: gguf.clone(),
            program: program.clone(),
            kernels,
            options,
            team,
            arena,
            weights,
            cache,
            scratch: exec::Scratch::new(layout.scratch),
        })
    }
}

/// The state of loading a model's weights one by one.
struct Loading<'a> {
    gguf: &'a Arc<Gguf>,
    program: &'a Program,
    kernels: &'a Kernels,
    precision: Precision,
    /// Bytes of the arena in use.
    used: usize,
}

impl Loading<'_> {
    /// Loads one weight in the form its role asks for; also returns its bytes in the file.
    fn load(&mut self, id: WeightId, arena: &mut [u8]) -> Result<(Loaded, u64)> {
        let tensor = tensor(self.gguf, self.program, id)?.clone();
        let weight = self.program.weight(id);
        let loaded = match (weight.role, self.precision) {
            (WeightRole::Vector, _) => Loaded::Vector(self.gguf.dequantize(&tensor)?),
            (WeightRole::Table, _) => Loaded::Table { decode: quant::decoder(&tensor)?, tensor: tensor.clone() },
            (WeightRole::Matrix | WeightRole::Experts { .. }, Precision::Exact) => {
                Loaded::Matrix(Matrix::rows(self.gguf, &tensor, weight.n_out, self.kernels)?)
            }
            (WeightRole::Matrix | WeightRole::Experts { .. }, Precision::Fast) => {
                let matrix = Matrix::pack(self.gguf, &tensor, weight.n_out, self.kernels, arena, self.used)?;
                self.used += Matrix::packed_bytes(&tensor, weight.n_out);
                Loaded::Matrix(matrix)
            }
        };
        Ok((loaded, tensor.n_bytes() as u64))
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, blocks: Range<usize>, batch: &Batch<'_>, hidden: &mut Hidden) -> Result<()> {
        exec::run(self, blocks, batch, hidden);
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        let weight = |w: &Loaded| match w {
            Loaded::Matrix(_) | Loaded::Table { .. } => 0,
            Loaded::Vector(v) => 4 * v.len(),
        };
        MemoryReport {
            weights: self.arena.len() + self.weights.iter().flatten().map(weight).sum::<usize>(),
            kv_cache: self.cache.iter().flatten().map(LayerCache::bytes).sum(),
            scratch: self.scratch.bytes(),
        }
    }

    fn register(&mut self, reg: Reg, rows: usize, width: usize, _: bool) -> Result<Vec<f32>> {
        Ok(self.scratch.register(reg)[..rows * width].to_vec())
    }
}
