//! The CPU backend: packed weights, int8 activations, one parallel region per forward pass.

mod attention;
#[doc(hidden)]
pub mod bench_support;
mod buffer;
mod exec;
mod isa;
mod kernels;
mod kv;
mod kv_format;
mod matmul;
mod matrix;
mod ops;
mod pack;
pub mod roofline;
mod sums;
mod team;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use tandem_loader::{Gguf, TensorInfo, quant};
use tandem_models::{Program, Step, WeightId, WeightRole};

use crate::backend::{Backend, Batch, Hidden, MemoryReport};
use crate::error::Result;
use crate::model::{KvType, Precision};
use attention::AttentionWork;
use buffer::{Buffer, Pages};
use kernels::Kernels;
use kv::LayerCache;
use matrix::Matrix;
use team::Team;

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
#[derive(Debug, Clone, Copy)]
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

impl CpuBackend {
    /// Loads the weights of `blocks`, and makes room for their cache. `progress` hears of bytes loaded.
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
        let mut cache: Vec<Option<LayerCache>> = (0..hp.n_layer).map(|_| None).collect();
        let blocks = || blocks.iter().flat_map(|r| &program.blocks[r.clone()]);
        for step in blocks().flat_map(|b| &b.steps) {
            if let Step::StoreKv { layer } = step {
                cache[*layer] = Some(LayerCache::new(options.n_ctx, hp.n_head_kv, hp.head_dim, options.kv_type)?);
            }
        }
        let ids: Vec<WeightId> = blocks().flat_map(|b| b.weights.iter().copied()).collect();
        let mut loading = Loading { gguf, program, kernels: &kernels, precision: options.precision, used: 0 };
        let mut arena = Buffer::zeroed(loading.arena_bytes(&ids)?, Pages::Huge, "weights")?;
        let mut weights: Vec<Option<Loaded>> = program.weights.iter().map(|_| None).collect();
        for id in ids {
            let (loaded, bytes) = team.install(|| loading.load(id, &mut arena))?;
            weights[id.0] = Some(loaded);
            progress(bytes);
        }
        let work =
            weights.iter().filter_map(|w| if let Some(Loaded::Matrix(m)) = w { Some(m.work_len()) } else { None });
        let scratch = exec::Scratch::new(team.len(), work.max().unwrap_or(0), || AttentionWork::new(hp.head_dim));
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
            scratch,
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
    fn tensor(&self, id: WeightId) -> Result<&TensorInfo> {
        let name = &self.program.weight(id).tensor;
        let missing = || tandem_models::Error::MissingTensor { tensor: name.clone() };
        Ok(self.gguf.tensor(name).ok_or_else(missing)?)
    }

    /// Bytes of all matrices that will be packed.
    fn arena_bytes(&self, ids: &[WeightId]) -> Result<usize> {
        let bytes = |id: &WeightId| {
            let weight = self.program.weight(*id);
            Ok(match (weight.role, self.precision) {
                (WeightRole::Matrix | WeightRole::Experts { .. }, Precision::Fast) => {
                    Matrix::packed_bytes(self.tensor(*id)?, weight.n_out)
                }
                (WeightRole::Matrix | WeightRole::Experts { .. }, Precision::Exact)
                | (WeightRole::Table | WeightRole::Vector, _) => 0,
            })
        };
        ids.iter().map(bytes).sum()
    }

    /// Loads one weight in the form its role asks for; also returns its bytes in the file.
    fn load(&mut self, id: WeightId, arena: &mut [u8]) -> Result<(Loaded, u64)> {
        let tensor = self.tensor(id)?.clone();
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
}
