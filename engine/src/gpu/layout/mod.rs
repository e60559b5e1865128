//! What a set of blocks takes in GPU memory, worked out before a device is opened. Loading allocates exactly this.

mod matrix;
mod rows;

use std::collections::HashMap;
use std::ops::Range;

use tandem_loader::Gguf;
use tandem_models::{Hparams, Program, Step, WeightId};
use tandem_shaders::{Acts, BestStep, GROUP, HeadShape};

use super::error::GpuError;
use super::{GpuOptions, Requirement};
use crate::backend::MemoryReport;
use crate::error::Result;
use crate::model::KvType;

pub(super) use matrix::{MatrixSpec, Product, tensor};
pub(super) use rows::{Buf, Rows, pair_rows, rows_of, stride};

/// Vectors begin at multiples of this in their buffer: what every adapter accepts as the offset of a binding.
const ALIGNMENT: usize = 256;
/// Bytes of one of the two staging buffers that weights go through.
pub(super) const STAGING: usize = 16 << 20;
/// Bytes of a binding on adapters with much memory; wgpu's own limit.
const USUAL_BINDING: u64 = (1 << 31) - 4;
/// Floats of logits kept on the device; a batch that asks for more is done in pieces.
const MAX_LOGITS: usize = 4 << 20;
/// Most workgroups that share out the cache of a few queries.
pub(super) const MAX_SHARES: usize = 512;
/// Fewest pairs in a tile of a product with experts.
pub(super) const MIN_TILE: usize = 16;

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub(super) struct CacheSpec {
    /// Bytes of one head's keys and of its values.
    pub(super) head_bytes: usize,
    /// KV heads whose keys fit in one binding.
    pub(super) parts: Vec<Range<usize>>,
}

/// Bytes of the lists that say which experts tokens have chosen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RoutingSpec {
    pub(super) chosen: usize,
    pub(super) order: usize,
    pub(super) tiles: usize,
}

/// Bytes of what finds the most likely tokens; nothing without the output head.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BestSpec {
    pub(super) maxima: usize,
    pub(super) state: usize,
    pub(super) collected: usize,
    pub(super) best: usize,
}

impl BestSpec {
    fn new() -> BestSpec {
        BestSpec {
            maxima: 4 * BestStep::MAX_SLICES,
            state: 8,
            collected: 8 * BestStep::MAX_COLLECTED,
            best: 8 * (1 + BestStep::MAX_K),
        }
    }
}

/// Everything that is allocated for a set of blocks.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) matrices: Vec<MatrixSpec>,
    /// Products by (block, step).
    pub(super) products: HashMap<(usize, usize), Vec<Product>>,
    /// Byte offset of each vector in the buffer of vectors.
    pub(super) vectors: HashMap<WeightId, usize>,
    /// Byte offset of each matrix's stacked biases there.
    pub(super) biases: HashMap<usize, usize>,
    /// Byte offset there of the scales of each matrix's rows, after the biases of the same matrix; rows of one file's
    /// matrix have the same one. Matrices without are missing.
    pub(super) scales: HashMap<usize, usize>,
    pub(super) vector_bytes: usize,
    /// By layer.
    pub(super) caches: Vec<Option<CacheSpec>>,
    pub(super) shape: HeadShape,
    /// Bytes of each buffer of activations; those that no step uses are missing.
    pub(super) bufs: HashMap<Buf, usize>,
    pub(super) act_bytes: usize,
    pub(super) angle_bytes: usize,
    pub(super) partial_bytes: usize,
    pub(super) routing: RoutingSpec,
    pub(super) best: BestSpec,
    /// Rows of logits computed at a time; 0 without the output head.
    pub(super) logit_rows: usize,
    pub(super) readback_bytes: usize,
    pub(super) staging_bytes: usize,
}

/// Most bytes of a binding: what the adapter (if it is known) and the options allow.
pub(super) fn binding_limit(options: &GpuOptions, adapter: Option<u64>) -> u64 {
    adapter.unwrap_or(USUAL_BINDING).min(options.binding_limit.unwrap_or(u64::MAX))
}

/// Most tokens of a batch: workgroups are numbered by 16 bits, and a token may need one for each of its experts.
pub(super) fn max_batch(program: &Program, options: &GpuOptions) -> usize {
    options.max_batch.clamp(1, 65535 / program.hparams.n_expert_used.max(1))
}

impl Layout {
    /// Lays out `blocks` of a program.
    ///
    /// # Errors
    /// A weight type or a shape that the kernels do not handle; a row or a head larger than a binding.
    pub(super) fn new(
        gguf: &Gguf,
        program: &Program,
        blocks: &[Range<usize>],
        options: &GpuOptions,
        binding: u64,
    ) -> Result<Layout> {
        let mut layout = Layout {
            matrices: Vec::new(),
            products: HashMap::new(),
            vectors: HashMap::new(),
            biases: HashMap::new(),
            scales: HashMap::new(),
            // The first vector is all zeros: the bias of matrices without one.
            vector_bytes: ALIGNMENT,
            caches: vec![None; program.hparams.n_layer],
            shape: head_shape(&program.hparams)?,
            bufs: HashMap::new(),
            act_bytes: 0,
            angle_bytes: 0,
            partial_bytes: 0,
            routing: RoutingSpec::default(),
            best: BestSpec::default(),
            logit_rows: 0,
            readback_bytes: 0,
            staging_bytes: 0,
        };
        let rows = max_batch(program, options);
        for block in blocks.iter().cloned().flatten() {
            for (s, step) in program.blocks[block].steps.iter().enumerate() {
                layout.add_vectors(program, step);
                layout.add_products(gguf, program, (block, s), step, options, binding)?;
                layout.add_work_memory(program, step, options, rows, binding)?;
            }
        }
        layout.add_buffer(Buf::X, bytes(rows, stride(program, Buf::X)));
        let logits = bytes(layout.logit_rows, program.hparams.n_vocab);
        if logits > 0 {
            layout.add_buffer(Buf::Logits, logits);
        }
        layout.readback_bytes = logits.max(layout.bufs[&Buf::X]).max(layout.best.best);
        layout.staging_bytes = if layout.matrices.is_empty() { 0 } else { 2 * STAGING };
        Ok(layout)
    }

    fn add_buffer(&mut self, buf: Buf, bytes: usize) {
        let known = self.bufs.entry(buf).or_default();
        *known = bytes.max(*known);
    }

    fn add_vectors(&mut self, program: &Program, step: &Step) {
        for id in rows::vectors(step) {
            if !self.vectors.contains_key(&id) {
                self.vectors.insert(id, self.vector_bytes);
                let n = program.weight(id).n_elements();
                self.vector_bytes += (4 * n).next_multiple_of(ALIGNMENT);
            }
        }
    }

    /// Everything but weights that a step needs, for `rows` tokens.
    fn add_work_memory(
        &mut self,
        program: &Program,
        step: &Step,
        options: &GpuOptions,
        rows: usize,
        binding: u64,
    ) -> Result<()> {
        for (buf, floats) in rows::buffers(step, program) {
            self.add_buffer(buf, bytes(rows, floats));
        }
        let hp = &program.hparams;
        match step {
            Step::StoreKv { layer } | Step::Attend { layer, .. } => {
                self.caches[*layer] = Some(CacheSpec::new(program, options, binding)?);
                self.partial_bytes = partial_bytes(self.shape);
            }
            Step::Rope { .. } => {
                let pairs: usize = program.ropes.iter().map(|r| r.freqs.len()).sum();
                self.angle_bytes = bytes(rows, 2 * pairs);
            }
            Step::Route { .. } => {
                let pairs = rows * hp.n_expert_used;
                let tiles = 1 + pairs / MIN_TILE + hp.n_expert;
                self.routing = RoutingSpec { chosen: 8 * pairs, order: 4 * pairs, tiles: 16 * tiles };
                check_experts(hp)?;
            }
            Step::Logits { .. } => {
                self.logit_rows = (MAX_LOGITS / hp.n_vocab).clamp(1, rows);
                self.best = BestSpec::new();
            }
            Step::Embed { .. }
            | Step::Norm { .. }
            | Step::Qkv { .. }
            | Step::HeadNorm { .. }
            | Step::Linear { .. }
            | Step::ExpertGlu { .. }
            | Step::ExpertDown { .. }
            | Step::SigmoidGate { .. }
            | Step::Glu { .. } => {}
        }
        Ok(())
    }

    /// Stacks the matrices of a step as far as neighbours have the same type.
    fn add_products(
        &mut self,
        gguf: &Gguf,
        program: &Program,
        at: (usize, usize),
        step: &Step,
        options: &GpuOptions,
        binding: u64,
    ) -> Result<()> {
        // Experts read rows of their own.
        let rows_per_token = if matches!(step, Step::ExpertDown { .. }) { program.hparams.n_expert_used } else { 1 };
        let rows = max_batch(program, options) * rows_per_token;
        let linears = rows::linears(step);
        let formats: Vec<_> =
            linears.iter().map(|l| matrix::format(tensor(gguf, program, l.weight)?)).collect::<Result<_>>()?;
        let (mut first, mut i) = (0, 0);
        while i < linears.len() {
            let same = formats[i..].iter().take_while(|f| f.ty == formats[i].ty).count();
            let stack = &linears[i..i + same];
            let matrix = match self.matrices.iter().position(|m| m.linears == stack) {
                Some(known) => known,
                None => self.add_matrix(MatrixSpec::new(program, stack, formats[i], binding)?),
            };
            self.products.entry(at).or_default().push(Product { matrix, first });
            let spec = &self.matrices[matrix];
            let acts = spec.acts(options.precision, is_head(step));
            if acts != Acts::F32 {
                self.act_bytes = self.act_bytes.max(rows * (spec.n_in / GROUP) * acts.group_bytes());
            }
            first += spec.n_out;
            i += same;
        }
        Ok(())
    }

    fn add_matrix(&mut self, spec: MatrixSpec) -> usize {
        let offsets = [(spec.has_bias(), &mut self.biases), (spec.has_scale(), &mut self.scales)];
        for (_, offsets) in offsets.into_iter().filter(|(is_there, _)| *is_there) {
            offsets.insert(self.matrices.len(), self.vector_bytes);
            self.vector_bytes += (4 * spec.n_out).next_multiple_of(ALIGNMENT);
        }
        self.matrices.push(spec);
        self.matrices.len() - 1
    }

    /// Bytes held once loading is done.
    pub(super) fn memory(&self) -> MemoryReport {
        let scratch = [
            self.bufs.values().sum(),
            self.act_bytes,
            self.angle_bytes,
            self.partial_bytes,
            self.routing.chosen,
            self.routing.order,
            self.routing.tiles,
            self.best.maxima,
            self.best.state,
            self.best.collected,
            self.best.best,
            self.readback_bytes,
        ];
        MemoryReport {
            weights: self.vector_bytes + self.matrices.iter().map(MatrixSpec::bytes).sum::<usize>(),
            kv_cache: self.caches.iter().flatten().map(CacheSpec::bytes).sum(),
            scratch: scratch.iter().sum(),
        }
    }
}

/// Whether a step is the output head's product.
pub(super) fn is_head(step: &Step) -> bool {
    matches!(step, Step::Logits { .. })
}

/// Bytes of rows of floats; sizes that overflow become one that no device has.
fn bytes(rows: usize, floats: usize) -> usize {
    rows.saturating_mul(floats).saturating_mul(4)
}

impl CacheSpec {
    fn new(program: &Program, options: &GpuOptions, binding: u64) -> Result<CacheSpec> {
        let hp = &program.hparams;
        let head_bytes = cache_tiles(options.n_ctx).saturating_mul(GROUP * element_bytes(options.kv_type, hp.head_dim));
        let most = binding as usize / head_bytes.max(1);
        if most == 0 {
            let what = format!("a context of {} positions ({head_bytes} bytes per head)", options.n_ctx);
            return Err(GpuError::Unsupported { what }.into());
        }
        let parts = (0..hp.n_head_kv).step_by(most).map(|h| h..hp.n_head_kv.min(h + most)).collect();
        Ok(CacheSpec { head_bytes, parts })
    }

    /// Bytes of keys and values.
    fn bytes(&self) -> usize {
        2 * self.head_bytes * self.parts.last().map_or(0, |p| p.end)
    }
}

/// Tiles of 32 positions that a cache is made of.
pub(super) fn cache_tiles(n_ctx: usize) -> usize {
    n_ctx.div_ceil(GROUP)
}

/// Sizes of the attention heads, as the kernels take them.
fn head_shape(hp: &Hparams) -> Result<HeadShape> {
    let shape = HeadShape { head_dim: hp.head_dim as u32, group: (hp.n_head / hp.n_head_kv.max(1)) as u32 };
    if shape.threads() > 256 {
        return Err(GpuError::Unsupported { what: format!("a head of {} elements (at most 1024)", hp.head_dim) }.into());
    }
    Ok(shape)
}

/// Routing keeps all experts' logits in workgroup memory.
fn check_experts(hp: &Hparams) -> Result<()> {
    if hp.n_expert <= 1024 {
        return Ok(());
    }
    Err(GpuError::Unsupported { what: format!("a mixture of {} experts (at most 1024)", hp.n_expert) }.into())
}

/// Bytes of the shares that are merged at the end: of each query its mix, maximum and sum.
fn partial_bytes(shape: HeadShape) -> usize {
    MAX_SHARES * (shape.max_rows() * (shape.quads() + 1) * 16) as usize
}

/// Bytes of a key or value of one head.
pub(super) fn element_bytes(kv_type: KvType, head_dim: usize) -> usize {
    let groups = head_dim.div_ceil(GROUP);
    match kv_type {
        KvType::F32 => head_dim.div_ceil(4) * 16,
        KvType::F16 => head_dim.div_ceil(4) * 8,
        // Scales in pairs, so that a position's never share a word with another's.
        KvType::Q8_0 => groups * 32 + groups.div_ceil(2) * 4,
        KvType::Q4_0 => groups * 16 + groups.div_ceil(2) * 4,
    }
}

/// What [`super::GpuBackend::load`] will take, worked out without a device. See [`super::required_bytes`].
pub(super) fn required(
    gguf: &Gguf,
    program: &Program,
    blocks: &[Range<usize>],
    options: &GpuOptions,
) -> Result<Requirement> {
    let layout = Layout::new(gguf, program, blocks, options, binding_limit(options, None))?;
    Ok(Requirement { memory: layout.memory(), staging: layout.staging_bytes })
}
