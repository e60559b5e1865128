//! The kernels one by one, for `benches/kernels.rs`: each a value that owns its operands, and a `run`.
//!
//! No part of the engine's interface. A kernel runs on the calling thread, on operands that fit the L2 cache.

use tandem_loader::{GgmlType, quant};
use tandem_models::{Activation, RopePairing};

use super::IsaLevel;
use super::attention::{AttentionWork, CHUNK, HeadCache, LONG, MAX_QUERIES, QueryRow};
use super::isa::LANES;
use super::kernels::{AttendFn, Kernels};
use super::kv::LayerCache;
use super::kv_format::{KvF16, KvF32, KvFormat, KvQ4, KvQ8};
use super::matmul::{ActGroup, Acts};
use super::matrix::Matrix;
use super::ops;
use super::pack::GROUP;
use crate::error::Result;
use crate::model::KvType;

/// A small generator, so that operands are the same in every run: xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Numbers in -1..1.
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    /// Random blocks that decode to ordinary numbers: neither huge nor denormal, for neither is what models have.
    fn blocks(&mut self, ty: GgmlType, decode: quant::Decode, n: usize) -> Vec<u8> {
        let mut weights = vec![0.0f32; ty.block_size()];
        let mut out = Vec::with_capacity(n * ty.block_bytes());
        let mut block = vec![0; ty.block_bytes()];
        while out.len() < n * ty.block_bytes() {
            block.iter_mut().for_each(|byte| *byte = (self.next() >> 32) as u8);
            if ty == GgmlType::TQ2_0 {
                // As models have them: ternary, 2 in place of 3.
                block[..64].iter_mut().for_each(|byte| *byte &= !(*byte >> 1 & 0x55));
            }
            decode(&block, &mut weights);
            let largest = weights.iter().map(|w| w.abs()).fold(0.0, f32::max);
            if weights.iter().all(|w| w.is_finite()) && (1e-6..1e6).contains(&largest) {
                out.extend_from_slice(&block);
            }
        }
        out
    }
}

/// The instruction sets of this CPU.
pub fn instruction_sets() -> Vec<IsaLevel> {
    IsaLevel::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

/// All weight types that have kernels.
pub fn weight_types() -> Vec<GgmlType> {
    let matrix = IsaLevel::Scalar.kernels().matrix;
    GgmlType::ALL.iter().copied().filter(|ty| matrix(*ty).is_some() && quant::decode_fn(*ty).is_some()).collect()
}

/// Different blocks in a matrix, repeated: finding ordinary ones takes time.
const BLOCKS: usize = 64;

/// A matrix times some columns of activations: GEMV where there are one or two, GEMM from three on.
pub struct Product {
    matrix: Matrix,
    arena: Vec<u8>,
    x: Vec<f32>,
    groups: Vec<ActGroup>,
    work: Vec<f32>,
    tile: Vec<f32>,
}

impl Product {
    /// `[n_out, n_in]` times `[n_in, n_cols]`. The type is one of [`weight_types`], and `n_in` a multiple of its block
    /// and of 32.
    pub fn new(isa: IsaLevel, ty: GgmlType, n_in: usize, n_out: usize, n_cols: usize) -> Option<Product> {
        let kernels = isa.kernels();
        let decode = quant::decode_fn(ty)?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let n_blocks = n_in / ty.block_size() * n_out;
        let some = random.blocks(ty, decode, BLOCKS);
        let file: Vec<u8> = some.iter().copied().cycle().take(n_blocks * ty.block_bytes()).collect();
        let matrix = Matrix::packed(kernels.of(ty, &file)?, n_in, n_out, 1, file.len() / n_out, 0);
        let mut arena = vec![0; file.len() / n_out * n_out.next_multiple_of(LANES)];
        matrix.pack_panels(&file, 0..matrix.n_panels(), &mut arena);
        let x = random.floats(n_in * n_cols);
        let mut groups = vec![ActGroup::default(); x.len() / GROUP];
        // SAFETY: 32 floats per group; `IsaLevel::kernels` asked the CPU.
        unsafe { (kernels.quantize)(x.as_ptr(), 0.0, &mut groups) };
        let (work, tile) = (vec![0.0; matrix.work_len()], vec![0.0; n_cols * LANES]);
        Some(Product { matrix, arena, x, groups, work, tile })
    }

    /// Multiplies; gives a number of the result.
    pub fn run(&mut self) -> f32 {
        let n_in = self.matrix.n_in;
        let acts = Acts { n_in, x: self.x.as_ptr(), groups: self.groups.as_ptr(), rows: std::ptr::null() };
        for p in 0..self.matrix.n_panels() {
            let cols = 0..self.x.len() / n_in;
            // SAFETY: `acts` has rows of `n_in` for all columns, both as floats and quantized.
            unsafe { self.matrix.multiply(&self.arena, p, &acts, cols, &mut self.work, &mut self.tile) };
        }
        self.tile[0]
    }

    /// Bytes of weights that a run reads.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// Multiplications and additions of a run.
    pub fn ops(&self) -> usize {
        2 * self.matrix.n_out * self.x.len()
    }
}

/// Quantization of activations to int8.
pub struct Quantize {
    kernels: Kernels,
    x: Vec<f32>,
    groups: Vec<ActGroup>,
}

impl Quantize {
    /// Of `n` activations, a multiple of 32.
    pub fn new(isa: IsaLevel, n: usize) -> Quantize {
        let x = Random(3).floats(n);
        Quantize { kernels: isa.kernels(), groups: vec![ActGroup::default(); n / GROUP], x }
    }

    /// Quantizes.
    pub fn run(&mut self) -> f32 {
        // SAFETY: 32 floats per group; `IsaLevel::kernels` asked the CPU.
        unsafe { (self.kernels.quantize)(self.x.as_ptr(), 0.0, &mut self.groups) };
        self.groups[0].d
    }
}

/// Some queries against one chunk of the cache of one KV head.
pub struct Attention {
    attend: AttendFn,
    /// Owns the memory that `head` points to.
    _cache: LayerCache,
    head: HeadCache,
    queries: Vec<f32>,
    out: Vec<f32>,
    work: AttentionWork,
}

impl Attention {
    /// Positions of the chunk.
    pub const POSITIONS: usize = CHUNK;
    /// Most queries that share a chunk.
    pub const MAX_QUERIES: usize = MAX_QUERIES;

    /// `n_queries` (at most [`Attention::MAX_QUERIES`]) of `head_dim` elements, a multiple of 16.
    ///
    /// # Errors
    /// No memory.
    pub fn new(isa: IsaLevel, kv_type: KvType, head_dim: usize, n_queries: usize) -> Result<Attention> {
        assert!(
            n_queries <= MAX_QUERIES && head_dim.is_multiple_of(LANES),
            "more queries or another head than promised"
        );
        let mut cache = LayerCache::new(CHUNK, 1, head_dim, kv_type)?;
        let head = cache.heads(1).next().unwrap_or_else(|| unreachable!("the cache was made for one head"));
        let store = match kv_type {
            KvType::F32 => store::<KvF32>,
            KvType::F16 => store::<KvF16>,
            KvType::Q8_0 => store::<KvQ8>,
            KvType::Q4_0 => store::<KvQ4>,
        };
        let mut random = Random(5);
        (0..CHUNK).for_each(|position| store(&head, position, &random.floats(2 * head_dim)));
        Ok(Attention {
            attend: (isa.kernels().attend)(kv_type),
            _cache: cache,
            head,
            queries: random.floats(n_queries * head_dim),
            out: vec![0.0; n_queries * head_dim],
            work: AttentionWork::new(head_dim),
        })
    }

    /// Attends.
    pub fn run(&mut self) -> f32 {
        let head_dim = self.head.head_dim;
        let (queries, out) = (self.queries.chunks_exact(head_dim), self.out.chunks_exact_mut(head_dim));
        let mut rows: Vec<QueryRow> = queries
            .zip(out)
            .map(|(q, out)| QueryRow {
                q: q.as_ptr(),
                // Of a long text, of which this is the first chunk.
                sees: (0, LONG + 1),
                out: out.as_mut_ptr(),
                max: f32::NEG_INFINITY,
                sum: 0.0,
            })
            .collect();
        let scale = 1.0 / (head_dim as f32).sqrt();
        // SAFETY: the cache has this format and holds the chunk; queries and results have `head_dim` elements, which
        // is a multiple of 16; `IsaLevel::kernels` asked the CPU.
        unsafe { (self.attend)(&self.head, &mut rows, scale, 0, &mut self.work) };
        rows[0].sum
    }

    /// Multiplications and additions of a run, in scores and weighted values.
    pub fn ops(&self) -> usize {
        4 * self.queries.len() * CHUNK
    }
}

/// Stores a key and a value, which follow each other in `both`.
fn store<K: KvFormat>(head: &HeadCache, position: usize, both: &[f32]) {
    let (key, value) = both.split_at(head.head_dim);
    // SAFETY: the caller's cache has this format and `CHUNK` positions, and is in no other hands.
    unsafe { head.store::<K>(position, key, value) };
}

/// The RMS norm of a row.
pub struct Norm {
    kernels: Kernels,
    x: Vec<f32>,
    weight: Vec<f32>,
    out: Vec<f32>,
}

impl Norm {
    /// Of `n` elements.
    pub fn new(isa: IsaLevel, n: usize) -> Norm {
        let mut random = Random(7);
        Norm { kernels: isa.kernels(), x: random.floats(n), weight: random.floats(n), out: vec![0.0; n] }
    }

    /// Normalizes.
    pub fn run(&mut self) -> f32 {
        // SAFETY: `IsaLevel::kernels` asked the CPU.
        unsafe { (self.kernels.rms_norm)(&self.x, &self.weight, 1e-5, &mut self.out, false) };
        self.out[0]
    }
}

/// The rotation of a head.
pub struct Rotation {
    pairing: RopePairing,
    head: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Of a head of `n` elements.
    pub fn new(pairing: RopePairing, n: usize) -> Rotation {
        let mut random = Random(9);
        let (sin, cos) = random.floats(n / 2).iter().map(|angle| angle.sin_cos()).unzip();
        Rotation { pairing, head: random.floats(n), cos, sin }
    }

    /// Rotates.
    pub fn run(&mut self) -> f32 {
        ops::rotate(&mut self.head, self.pairing, &self.cos, &self.sin);
        self.head[0]
    }
}

/// The activation of a gated unit.
pub struct Glu {
    kernels: Kernels,
    act: Activation,
    gate: Vec<f32>,
    up: Vec<f32>,
    out: Vec<f32>,
}

impl Glu {
    /// Of `n` elements, a multiple of 16.
    pub fn new(isa: IsaLevel, act: Activation, n: usize) -> Glu {
        let mut random = Random(11);
        Glu { kernels: isa.kernels(), act, gate: random.floats(n), up: random.floats(n), out: vec![0.0; n] }
    }

    /// Activates.
    pub fn run(&mut self) -> f32 {
        assert!(self.out.len().is_multiple_of(LANES) && self.up.len() == self.out.len());
        // The kernel works in place.
        self.out.copy_from_slice(&self.gate);
        // SAFETY: equally long, whole vectors; `IsaLevel::kernels` asked the CPU.
        unsafe { (self.kernels.glu)(self.act, &mut self.out, &self.up) };
        self.out[0]
    }
}
