//! What a set of blocks takes in GPU memory, worked out before a device is opened. Loading allocates exactly this.

use std::collections::HashMap;
use std::ops::Range;

use tandem_loader::{Gguf, TensorInfo};
use tandem_models::{Hparams, Linear, Program, Reg, Step, WeightId};
use tandem_shaders::{Decode, Format, GROUP, HeadShape};

use super::error::GpuError;
use super::{GpuOptions, Requirement};
use crate::backend::MemoryReport;
use crate::error::Result;
use crate::model::{KvType, Precision};

/// Vectors, parts of buffers and dynamic offsets begin at multiples of this: what every adapter accepts.
const ALIGNMENT: usize = 256;
/// Bytes of one of the two staging buffers that weights go through.
pub(super) const STAGING: usize = 16 << 20;
/// Bytes of a binding on adapters with much memory; wgpu's own limit.
const USUAL_BINDING: u64 = (1 << 31) - 4;
/// Floats of logits kept on the device; a batch that asks for more is done in pieces.
const MAX_LOGITS: usize = 4 << 20;
/// Bytes of a group of 32 activations as int8: quants, and scale and sums beside them.
pub(super) const ACT_GROUP_BYTES: usize = 48;
/// Most workgroups that share out the cache of a few queries.
pub(super) const MAX_SHARES: usize = 512;

/// Buffers of activations. Q, K and V lie side by side in the rows of one, gate and up projection in those of another,
/// so that one product can write them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Buf {
    X,
    H,
    Qkv,
    A,
    GateUp,
    F,
    Logits,
}

/// Where rows of activations lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) buf: Buf,
    /// First column.
    pub(super) column: usize,
    /// Floats from one row to the next.
    pub(super) stride: usize,
}

/// Matrices of one type stacked on each other: one product computes all their rows.
#[derive(Debug, Clone)]
pub(super) struct MatrixSpec {
    /// The matrices, each with its bias.
    pub(super) linears: Vec<Linear>,
    pub(super) format: &'static Format,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    /// Row ranges, each small enough for one binding.
    pub(super) parts: Vec<Range<usize>>,
}

impl MatrixSpec {
    pub(super) fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.n_in)
    }

    pub(super) fn has_bias(&self) -> bool {
        self.linears.iter().any(|l| l.bias.is_some())
    }

    /// Whether its products read int8 activations.
    pub(super) fn wants_int8(&self, precision: Precision) -> bool {
        precision == Precision::Fast && self.format.decode == Decode::Quants
    }
}

/// A step's product: a stack of matrices and where its results begin among the step's outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    /// Index into [`Layout::matrices`].
    pub(super) matrix: usize,
    /// Rows of the step's matrices before this stack.
    pub(super) first: usize,
}

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub(super) struct CacheSpec {
    /// Bytes of one head's keys and of its values.
    pub(super) head_bytes: usize,
    /// KV heads whose keys fit in one binding.
    pub(super) parts: Vec<Range<usize>>,
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
    pub(super) vector_bytes: usize,
    /// By layer.
    pub(super) caches: Vec<Option<CacheSpec>>,
    pub(super) shape: HeadShape,
    /// Bytes of each buffer of activations; those that no step uses are missing.
    pub(super) bufs: HashMap<Buf, usize>,
    pub(super) act_bytes: usize,
    pub(super) angle_bytes: usize,
    pub(super) partial_bytes: usize,
    /// Rows of logits computed at a time; 0 without the output head.
    pub(super) logit_rows: usize,
    pub(super) readback_bytes: usize,
    pub(super) staging_bytes: usize,
}

/// Most bytes of a binding: what the adapter (if it is known) and the options allow.
pub(super) fn binding_limit(options: &GpuOptions, adapter: Option<u64>) -> u64 {
    adapter.unwrap_or(USUAL_BINDING).min(options.binding_limit.unwrap_or(u64::MAX))
}

/// The part of a buffer where a register's rows are.
pub(super) fn rows_of(program: &Program, reg: Reg) -> Rows {
    let regs = &program.registers;
    let (buf, column) = match reg {
        Reg::X => (Buf::X, 0),
        Reg::H => (Buf::H, 0),
        Reg::Q => (Buf::Qkv, 0),
        Reg::K => (Buf::Qkv, regs.n_q),
        Reg::V => (Buf::Qkv, regs.n_q + regs.n_kv),
        Reg::A => (Buf::A, 0),
        Reg::F | Reg::R => (Buf::F, 0),
    };
    Rows { buf, column, stride: stride(program, buf) }
}

/// Floats from one row of a buffer to the next: a multiple of 32, so that rows are whole groups of `vec4`s.
pub(super) fn stride(program: &Program, buf: Buf) -> usize {
    let regs = &program.registers;
    let width = match buf {
        Buf::X | Buf::H => regs.n_embd,
        Buf::Qkv => regs.n_q + 2 * regs.n_kv,
        Buf::A => regs.n_q,
        Buf::GateUp => 2 * regs.n_ff,
        Buf::F => regs.n_ff,
        Buf::Logits => return program.hparams.n_vocab,
    };
    width.next_multiple_of(GROUP)
}

/// The matrices of a step, in the order of the columns they write.
fn linears(step: &Step) -> Vec<Linear> {
    match step {
        Step::Qkv { q, k, v } => vec![*q, *k, *v],
        Step::Glu { gate, up, .. } => vec![*gate, *up],
        Step::Linear { linear, .. } | Step::Logits { linear, .. } => vec![*linear],
        Step::Embed { .. }
        | Step::Norm { .. }
        | Step::HeadNorm { .. }
        | Step::Rope { .. }
        | Step::StoreKv { .. }
        | Step::Route { .. }
        | Step::ExpertGlu { .. }
        | Step::ExpertDown { .. }
        | Step::SigmoidGate { .. }
        | Step::Attend { .. } => vec![],
    }
}

/// The vectors of a step, but for biases.
fn vectors(step: &Step) -> Vec<WeightId> {
    match step {
        Step::Norm { norm, .. } => vec![norm.weight],
        Step::HeadNorm { q, k } => vec![q.weight, k.weight],
        Step::Embed { .. }
        | Step::Qkv { .. }
        | Step::Rope { .. }
        | Step::StoreKv { .. }
        | Step::Attend { .. }
        | Step::Linear { .. }
        | Step::Glu { .. }
        | Step::Route { .. }
        | Step::ExpertGlu { .. }
        | Step::ExpertDown { .. }
        | Step::SigmoidGate { .. }
        | Step::Logits { .. } => vec![],
    }
}

/// The buffers a step reads or writes.
fn buffers(step: &Step, program: &Program) -> Vec<Buf> {
    let buf = |reg: &Reg| rows_of(program, *reg).buf;
    match step {
        Step::Embed { .. } => vec![Buf::X],
        Step::Norm { input, output, .. } | Step::Linear { input, output, .. } => vec![buf(input), buf(output)],
        Step::Qkv { .. } => vec![Buf::H, Buf::Qkv],
        Step::HeadNorm { .. } | Step::Rope { .. } | Step::StoreKv { .. } => vec![Buf::Qkv],
        Step::Attend { .. } => vec![Buf::Qkv, Buf::A],
        Step::Glu { .. } => vec![Buf::H, Buf::GateUp, Buf::F],
        Step::Logits { .. } => vec![Buf::H],
        Step::Route { .. } | Step::ExpertGlu { .. } | Step::ExpertDown { .. } | Step::SigmoidGate { .. } => vec![],
    }
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
        let hp = &program.hparams;
        let n_vocab = hp.n_vocab;
        let shape = head_shape(hp)?;
        let mut layout = Layout {
            matrices: Vec::new(),
            products: HashMap::new(),
            vectors: HashMap::new(),
            biases: HashMap::new(),
            vector_bytes: ALIGNMENT, // the first vector is all zeros: the bias of matrices without one
            caches: vec![None; hp.n_layer],
            shape,
            bufs: HashMap::new(),
            act_bytes: 0,
            angle_bytes: 0,
            partial_bytes: 0,
            logit_rows: 0,
            readback_bytes: 0,
            staging_bytes: 0,
        };
        let rows = options.max_batch.max(1);
        let bytes = |floats: usize| rows.saturating_mul(floats).saturating_mul(4);
        let used: Vec<usize> = blocks.iter().cloned().flatten().collect();
        for (b, (s, step)) in
            used.iter().flat_map(|b| program.blocks[*b].steps.iter().enumerate().map(move |s| (*b, s)))
        {
            for buf in buffers(step, program) {
                layout.bufs.insert(buf, bytes(stride(program, buf)));
            }
            layout.add_vectors(program, step);
            layout.add_products(gguf, program, (b, s), step, binding)?;
            match step {
                Step::StoreKv { layer } | Step::Attend { layer, .. } => {
                    layout.caches[*layer] = Some(CacheSpec::new(program, options, binding)?);
                    layout.partial_bytes = partial_bytes(shape);
                }
                Step::Rope { .. } => {
                    let pairs: usize = program.ropes.iter().map(|r| r.freqs.len()).sum();
                    layout.angle_bytes = bytes(2 * pairs);
                }
                Step::Logits { .. } => layout.logit_rows = (MAX_LOGITS / n_vocab).clamp(1, rows),
                Step::Route { .. } | Step::ExpertGlu { .. } | Step::ExpertDown { .. } | Step::SigmoidGate { .. } => {
                    return Err(GpuError::Unsupported { what: "a mixture of experts".to_owned() }.into());
                }
                Step::Embed { .. }
                | Step::Norm { .. }
                | Step::Qkv { .. }
                | Step::HeadNorm { .. }
                | Step::Linear { .. }
                | Step::Glu { .. } => {}
            }
        }
        layout.bufs.insert(Buf::X, bytes(stride(program, Buf::X)));
        let logits = 4 * layout.logit_rows * n_vocab;
        if logits > 0 {
            layout.bufs.insert(Buf::Logits, logits);
        }
        layout.readback_bytes = logits.max(layout.bufs[&Buf::X]);
        let groups = layout.matrices.iter().map(|m| if m.wants_int8(options.precision) { m.n_in / GROUP } else { 0 });
        layout.act_bytes = rows * groups.max().unwrap_or(0) * ACT_GROUP_BYTES;
        layout.staging_bytes = if layout.matrices.is_empty() { 0 } else { 2 * STAGING };
        Ok(layout)
    }

    fn add_vectors(&mut self, program: &Program, step: &Step) {
        for id in vectors(step) {
            if !self.vectors.contains_key(&id) {
                self.vectors.insert(id, self.vector_bytes);
                self.vector_bytes += (4 * program.weight(id).n_in).next_multiple_of(ALIGNMENT);
            }
        }
    }

    /// Stacks the matrices of a step as far as neighbours have the same type.
    fn add_products(
        &mut self,
        gguf: &Gguf,
        program: &Program,
        at: (usize, usize),
        step: &Step,
        binding: u64,
    ) -> Result<()> {
        let mut first = 0;
        let linears = linears(step);
        let formats =
            linears.iter().map(|l| Ok(format(tensor(gguf, program, l.weight)?)?)).collect::<Result<Vec<_>>>()?;
        let mut i = 0;
        while i < linears.len() {
            let same = formats[i..].iter().take_while(|f| f.ty == formats[i].ty).count();
            let stack = &linears[i..i + same];
            let matrix = match self.matrices.iter().position(|m| m.linears == stack) {
                Some(known) => known,
                None => self.add_matrix(program, stack, formats[i], binding)?,
            };
            self.products.entry(at).or_default().push(Product { matrix, first });
            first += self.matrices[matrix].n_out;
            i += same;
        }
        Ok(())
    }

    fn add_matrix(
        &mut self,
        program: &Program,
        stack: &[Linear],
        format: &'static Format,
        binding: u64,
    ) -> Result<usize> {
        let n_in = program.weight(stack[0].weight).n_in;
        let n_out = stack.iter().map(|l| program.weight(l.weight).n_out).sum();
        let mut spec = MatrixSpec { linears: stack.to_vec(), format, n_in, n_out, parts: Vec::new() };
        let row_bytes = spec.row_bytes().max(1);
        let most = binding as usize / row_bytes;
        if most == 0 {
            let what = format!("a row of {row_bytes} bytes (the GPU sees {binding} at a time)");
            return Err(GpuError::Unsupported { what }.into());
        }
        // Whole tiles of the matrix kernels, where they fit.
        let most = if most >= 64 { most / 64 * 64 } else { most };
        spec.parts = (0..n_out).step_by(most).map(|r| r..n_out.min(r + most)).collect();
        if spec.has_bias() {
            self.biases.insert(self.matrices.len(), self.vector_bytes);
            self.vector_bytes += (4 * n_out).next_multiple_of(ALIGNMENT);
        }
        self.matrices.push(spec);
        Ok(self.matrices.len() - 1)
    }

    /// Bytes of all weights.
    fn weight_bytes(&self) -> usize {
        self.vector_bytes + self.matrices.iter().map(|m| m.n_out * m.row_bytes()).sum::<usize>()
    }

    /// Bytes held once loading is done.
    pub(super) fn memory(&self) -> MemoryReport {
        let scratch =
            [self.bufs.values().sum(), self.act_bytes, self.angle_bytes, self.partial_bytes, self.readback_bytes];
        MemoryReport {
            weights: self.weight_bytes(),
            kv_cache: self.caches.iter().flatten().map(CacheSpec::bytes).sum(),
            scratch: scratch.iter().sum(),
        }
    }
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

pub(super) fn tensor<'a>(gguf: &'a Gguf, program: &Program, id: WeightId) -> Result<&'a TensorInfo> {
    let name = &program.weight(id).tensor;
    Ok(gguf.tensor(name).ok_or_else(|| tandem_models::Error::MissingTensor { tensor: name.clone() })?)
}

fn format(tensor: &TensorInfo) -> std::result::Result<&'static Format, GpuError> {
    let what = || format!("`{}` of type {}", tensor.name, tensor.ty);
    Format::of(tensor.ty).ok_or_else(|| GpuError::Unsupported { what: what() })
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
