//! The CPU backend: packed weights, int8 activations, one parallel region per forward pass.

mod attention;
mod buffer;
mod exec;
mod isa;
mod kernels;
mod kv;
mod matmul;
mod matrix;
mod ops;
mod pack;
mod team;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use tandem_loader::{Gguf, quant};
use tandem_models::{Program, Step, WeightId, WeightRole};

use crate::backend::{Backend, Batch, Hidden, MemoryReport};
use crate::error::Result;
use crate::model::{KvType, Precision};
use attention::AttentionWork;
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
        let level = IsaLevel::best(options.isa);
        let kernels = level.kernels();
        let mut team = Team::new(options.threads)?;
        let hp = &program.hparams;
        let mut weights: Vec<Option<Loaded>> = program.weights.iter().map(|_| None).collect();
        let mut cache: Vec<Option<LayerCache>> = (0..hp.n_layer).map(|_| None).collect();
        for block in blocks.iter().flat_map(|r| &program.blocks[r.clone()]) {
            for id in &block.weights {
                let loaded = load_weight(gguf, program, *id, &kernels, options.precision, &mut team)?;
                weights[id.0] = Some(loaded);
                progress(gguf.tensor(&program.weight(*id).tensor).map_or(0, |t| t.n_bytes() as u64));
            }
            for step in &block.steps {
                if let Step::StoreKv { layer } = step {
                    let layer_cache = LayerCache::new(options.n_ctx, hp.n_head_kv, hp.head_dim, options.kv_type)?;
                    cache[*layer] = Some(layer_cache);
                }
            }
        }
        let work =
            weights.iter().filter_map(|w| if let Some(Loaded::Matrix(m)) = w { Some(m.work_bytes()) } else { None });
        let scratch = exec::Scratch::new(team.len(), work.max().unwrap_or(0), || {
            AttentionWork::new(hp.head_dim.next_multiple_of(isa::LANES))
        });
        Ok(CpuBackend {
            name: format!("CPU ({} threads, {})", team.len(), kernels.name),
            gguf: gguf.clone(),
            program: program.clone(),
            kernels,
            options,
            team,
            weights,
            cache,
            scratch,
        })
    }
}

/// Loads one weight in the form its role asks for.
fn load_weight(
    gguf: &Arc<Gguf>,
    program: &Program,
    id: WeightId,
    kernels: &Kernels,
    precision: Precision,
    team: &mut Team,
) -> Result<Loaded> {
    let weight = program.weight(id);
    let missing = || tandem_models::Error::MissingTensor { tensor: weight.tensor.clone() };
    let tensor = gguf.tensor(&weight.tensor).ok_or_else(missing)?;
    Ok(match (weight.role, precision) {
        (WeightRole::Vector, _) => Loaded::Vector(gguf.dequantize(tensor)?),
        (WeightRole::Table, _) => Loaded::Table { decode: quant::decoder(tensor)?, tensor: tensor.clone() },
        (WeightRole::Matrix, Precision::Exact) => Loaded::Matrix(Matrix::rows(gguf, tensor, kernels)?),
        (WeightRole::Matrix, Precision::Fast) => Loaded::Matrix(team.install(|| Matrix::pack(gguf, tensor, kernels))?),
    })
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
            Loaded::Matrix(m) => m.bytes(),
            Loaded::Table { .. } => 0,
            Loaded::Vector(v) => 4 * v.len(),
        };
        MemoryReport {
            weights: self.weights.iter().flatten().map(weight).sum(),
            kv_cache: self.cache.iter().flatten().map(LayerCache::bytes).sum(),
            scratch: self.scratch.bytes(),
        }
    }
}
