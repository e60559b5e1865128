//! A program of a few steps, on the device and in the reference, and their registers compared.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use tandem_loader::{GgmlType, Gguf, quant};
use tandem_models::{
    Block, BlockKind, Hparams, Linear, Program, Reg, Registers, Rope, Step, Vector, Weight, WeightId, WeightRole,
};

use super::super::layout::{Buf, rows_of};
use super::super::op::Pass;
use super::super::{GpuBackend, GpuOptions, adapters};
use crate::error::Result;
use crate::model::Precision;
use crate::reference::{Reference, RegisterFile};

/// All registers.
pub(super) const REGS: [Reg; 8] = [Reg::X, Reg::H, Reg::Q, Reg::K, Reg::V, Reg::A, Reg::F, Reg::R];

/// Whether there is a device; says so on stderr where there is none.
pub(super) fn has_device() -> bool {
    let found = adapters().iter().any(|a| a.unusable.is_none());
    if !found {
        use std::io::Write;
        // Past the test harness, which hides what passing tests print.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no GPU, not even a software one");
    }
    found
}

/// Repeatable numbers in [-1, 1).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 24
    }

    pub(super) fn float(&mut self) -> f32 {
        (self.bits() & 0xff_ffff) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// Where a block's scales are, and the f16 bits or bytes that make of 1 a weight: see [`random_blocks`].
enum Scales {
    /// f16 at these offsets.
    Halves(&'static [(usize, f32)]),
    /// The f16 is in the upper 4 bits of these four bytes.
    Nibbles([usize; 4]),
    /// Exponents of E8M0, and scales of UE4M3, at the bytes before this one.
    E8m0,
    Ue4m3(usize),
}

fn scales(ty: GgmlType) -> Scales {
    match ty {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4_NL | GgmlType::Q1_0 | GgmlType::Q2_0 => {
            Scales::Halves(&[(0, 1.0)])
        }
        GgmlType::IQ2_XXS | GgmlType::IQ2_XS | GgmlType::IQ2_S => Scales::Halves(&[(0, 1.0)]),
        GgmlType::IQ3_XXS | GgmlType::IQ3_S | GgmlType::IQ1_S | GgmlType::IQ4_XS => Scales::Halves(&[(0, 1.0)]),
        GgmlType::TQ1_0 => Scales::Halves(&[(52, 1.0)]),
        GgmlType::TQ2_0 => Scales::Halves(&[(64, 1.0)]),
        GgmlType::Q4_1 => Scales::Halves(&[(0, 1.0), (2, -7.5)]),
        GgmlType::Q5_1 => Scales::Halves(&[(0, 1.0), (2, -15.5)]),
        GgmlType::Q2_K => Scales::Halves(&[(80, 1.0), (82, 1.5)]),
        GgmlType::Q3_K => Scales::Halves(&[(108, 1.0)]),
        GgmlType::Q4_K => Scales::Halves(&[(0, 1.0), (2, 7.5)]),
        GgmlType::Q5_K => Scales::Halves(&[(0, 1.0), (2, 15.5)]),
        GgmlType::Q6_K => Scales::Halves(&[(208, 1.0)]),
        GgmlType::IQ1_M => Scales::Nibbles([49, 51, 53, 55]),
        GgmlType::MXFP4 => Scales::E8m0,
        GgmlType::NVFP4 => Scales::Ue4m3(4),
        other => panic!("say where the scales of {other} are"),
    }
}

/// Random blocks of a type: any bits, but for scales that make the weights' root mean square that of a product of about 1.
pub(super) fn random_blocks(ty: GgmlType, n_in: usize, n_blocks: usize, random: &mut Random) -> Vec<u8> {
    let size = 1.0 / (n_in as f32).sqrt();
    match ty {
        GgmlType::F32 => (0..n_blocks).flat_map(|_| (1.7 * size * random.float()).to_le_bytes()).collect(),
        GgmlType::F16 => (0..n_blocks).flat_map(|_| f16::from_f32(1.7 * size * random.float()).to_le_bytes()).collect(),
        GgmlType::BF16 => {
            let bf16 = |x| half::bf16::from_f32(x).to_le_bytes();
            (0..n_blocks).flat_map(|_| bf16(1.7 * size * random.float())).collect()
        }
        _ => (0..n_blocks).flat_map(|_| random_block(ty, size, random)).collect(),
    }
}

fn random_block(ty: GgmlType, size: f32, random: &mut Random) -> Vec<u8> {
    let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| random.bits() as u8).collect();
    let set = |block: &mut [u8], scale: f32| match scales(ty) {
        Scales::Halves(fields) => {
            for (at, value) in fields {
                block[*at..at + 2].copy_from_slice(&f16::from_f32(scale * value).to_le_bytes());
            }
        }
        Scales::Nibbles(at) => {
            let bits = f16::from_f32(scale).to_bits();
            (0..4).for_each(|i| block[at[i]] = block[at[i]] & 15 | ((bits >> (4 * i) & 15) << 4) as u8);
        }
        Scales::E8m0 => block[0] = (127.0 + scale.log2()) as u8,
        // An exponent of about the scale's, any mantissa.
        Scales::Ue4m3(n) => {
            let exponent = (7.0 + scale.log2()).clamp(0.0, 14.0) as u8;
            block[..n].iter_mut().for_each(|b| *b = *b & 0x87 | exponent << 3);
        }
    };
    set(&mut block, 1.0);
    let mut weights = vec![0.0f32; ty.block_size()];
    quant::decode_fn(ty).unwrap()(&block, &mut weights);
    let mean = weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32;
    set(&mut block, size / mean.sqrt());
    block
}

/// What is put together before it becomes a program.
pub(super) struct Plan {
    pub(super) hparams: Hparams,
    pub(super) ropes: Vec<Rope>,
    weights: Vec<Weight>,
    tensors: Vec<(String, GgmlType, Vec<usize>, Vec<u8>)>,
    random: Random,
    pub(super) blocks: Vec<Vec<Step>>,
    /// Whether blocks are output heads, and not parts of layers.
    pub(super) is_head: bool,
}

impl Plan {
    /// One layer, with these sizes; `n_ff` is the width of F.
    pub(super) fn new(n_embd: usize, n_ff: usize, (n_head, n_head_kv, head_dim): (usize, usize, usize)) -> Plan {
        let hparams = Hparams {
            n_layer: 1,
            n_embd,
            n_ff: vec![n_ff],
            n_expert: 0,
            n_expert_used: 0,
            n_ff_expert: None,
            n_head,
            n_head_kv,
            head_dim,
            n_vocab: 7,
            n_ctx_train: 512,
            rms_eps: 1e-5,
        };
        let (weights, tensors, blocks) = (vec![], vec![], vec![]);
        let random = Random(n_embd as u64 + 1);
        Plan { hparams, ropes: vec![], weights, tensors, random, blocks, is_head: false }
    }

    fn add(&mut self, ty: GgmlType, role: WeightRole, n_in: usize, n_out: usize, bytes: Vec<u8>) -> WeightId {
        let tensor = format!("w{}", self.weights.len());
        let dims = match role {
            WeightRole::Vector => vec![n_in],
            WeightRole::Matrix | WeightRole::Table => vec![n_in, n_out],
            WeightRole::Experts { n_expert } => vec![n_in, n_out, n_expert],
        };
        self.tensors.push((tensor.clone(), ty, dims, bytes));
        self.weights.push(Weight { tensor, role, n_in, n_out });
        WeightId(self.weights.len() - 1)
    }

    /// A random matrix.
    pub(super) fn matrix(&mut self, ty: GgmlType, n_in: usize, n_out: usize) -> WeightId {
        let bytes = random_blocks(ty, n_in, n_in * n_out / ty.block_size(), &mut self.random);
        self.add(ty, WeightRole::Matrix, n_in, n_out, bytes)
    }

    /// A random embedding table.
    pub(super) fn table(&mut self, n_embd: usize, n_vocab: usize) -> WeightId {
        let bytes = self.random.floats(n_embd * n_vocab).iter().flat_map(|x| x.to_le_bytes()).collect();
        self.add(GgmlType::F32, WeightRole::Table, n_embd, n_vocab, bytes)
    }

    /// A random matrix for each expert.
    pub(super) fn experts(&mut self, ty: GgmlType, n_in: usize, n_out: usize) -> WeightId {
        let n_expert = self.hparams.n_expert;
        let bytes = random_blocks(ty, n_in, n_in * n_out * n_expert / ty.block_size(), &mut self.random);
        self.add(ty, WeightRole::Experts { n_expert }, n_in, n_out, bytes)
    }

    /// A matrix of plain numbers, times `scale`.
    pub(super) fn scaled(&mut self, n_in: usize, n_out: usize, scale: f32) -> Linear {
        let bytes = self.random.floats(n_in * n_out).iter().flat_map(|x| (scale * x).to_le_bytes()).collect();
        let weight = self.add(GgmlType::F32, WeightRole::Matrix, n_in, n_out, bytes);
        Linear { weight, bias: None, scale: 1.0 }
    }

    /// A random vector.
    pub(super) fn vector(&mut self, n: usize) -> WeightId {
        let bytes = self.random.floats(n).iter().flat_map(|x| x.to_le_bytes()).collect();
        self.add(GgmlType::F32, WeightRole::Vector, n, 1, bytes)
    }

    pub(super) fn linear(&mut self, ty: GgmlType, n_in: usize, n_out: usize, bias: bool) -> Linear {
        let weight = self.matrix(ty, n_in, n_out);
        Linear { weight, bias: bias.then(|| self.vector(n_out)), scale: 1.0 }
    }

    pub(super) fn norm(&mut self, n: usize) -> Vector {
        Vector { weight: self.vector(n), eps: 1e-5 }
    }

    fn file(&self) -> Vec<u8> {
        let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut out = [&b"GGUF"[..], &3u32.to_le_bytes(), &(self.tensors.len() as u64).to_le_bytes(), &[0; 8]].concat();
        let mut data = Vec::new();
        for (name, ty, dims, bytes) in &self.tensors {
            data.resize(usize::next_multiple_of(data.len(), 32), 0u8);
            out.extend(string(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend((*d as u64).to_le_bytes()));
            out.extend(ty.id().to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    /// The device and the reference, ready to run each block.
    pub(super) fn bench(self, options: GpuOptions) -> Bench {
        self.try_bench(options).unwrap()
    }

    pub(super) fn try_bench(self, options: GpuOptions) -> Result<Bench> {
        let (gguf, program) = self.model();
        let n_blocks = program.blocks.len();
        let whole = 0..n_blocks;
        let gpu = GpuBackend::load(&gguf, &program, std::slice::from_ref(&whole), &options, &mut |_| ())?;
        let reference = Reference::new(&program, &gguf)?;
        Ok(Bench { gpu, reference, program, random: Random(99), start: 0 })
    }

    /// The file, and the program over it.
    pub(super) fn model(self) -> (Arc<Gguf>, Arc<Program>) {
        let gguf = Arc::new(Gguf::from_bytes("steps.gguf".as_ref(), self.file()).unwrap());
        let hp = self.hparams;
        let registers = Registers {
            n_embd: hp.n_embd,
            n_q: hp.n_head * hp.head_dim,
            n_kv: hp.n_head_kv * hp.head_dim,
            n_ff: hp.n_ff[0],
            n_expert: hp.n_expert,
        };
        let kind = if self.is_head { BlockKind::Head } else { BlockKind::FeedForward(0) };
        let blocks: Vec<Block> = self.blocks.into_iter().map(|steps| Block { kind, steps, weights: vec![] }).collect();
        let program = Arc::new(Program {
            arch: "steps".into(),
            hparams: hp,
            registers,
            weights: self.weights,
            ropes: self.ropes,
            one_scale_per_token: false,
            blocks,
            unused: vec![],
        });
        (gguf, program)
    }
}

/// A program on the device and in the reference.
pub(super) struct Bench {
    pub(super) gpu: GpuBackend,
    pub(super) reference: Reference,
    pub(super) program: Arc<Program>,
    pub(super) random: Random,
    /// Positions in the cache.
    pub(super) start: usize,
}

impl Bench {
    /// Random contents of all registers for `n` tokens.
    pub(super) fn registers(&mut self, n: usize) -> RegisterFile {
        let program = self.program.clone();
        REGS.iter().map(|reg| (*reg, self.random.floats(n * program.registers.width(*reg)))).collect()
    }

    fn rows(&self, reg: Reg) -> (wgpu::Buffer, usize, usize, usize) {
        let rows = rows_of(&self.program, reg);
        let buffer = self.gpu.buffers.bufs[&rows.buf].clone();
        (buffer, rows.column, rows.stride, self.program.registers.width(reg))
    }

    fn uses(&self, reg: Reg) -> bool {
        self.gpu.buffers.bufs.contains_key(&rows_of(&self.program, reg).buf)
    }

    fn write(&self, reg: Reg, values: &[f32]) {
        if !self.uses(reg) {
            return;
        }
        let (buffer, column, stride, width) = self.rows(reg);
        for (t, row) in values.chunks_exact(width).enumerate() {
            let at = 4 * (t * stride + column) as u64;
            self.gpu.gpu.queue.write_buffer(&buffer, at, bytemuck::cast_slice(row));
        }
    }

    /// The contents of a whole buffer.
    pub(super) fn read_buffer(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        let gpu = &self.gpu.gpu;
        let copy = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, buffer.size());
        let submission = gpu.queue.submit([encoder.finish()]);
        copy.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
        gpu.wait(submission).unwrap();
        bytemuck::cast_slice(&copy.get_mapped_range(..).unwrap()).to_vec()
    }

    fn read(&self, reg: Reg, n: usize) -> Vec<f32> {
        let (buffer, column, stride, width) = self.rows(reg);
        let all = self.read_buffer(&buffer);
        (0..n).flat_map(|t| all[t * stride + column..][..width].to_vec()).collect()
    }

    /// Runs a block on the device, on rows `rows` of registers that hold `before`. Returns all registers in use, and the
    /// logits.
    pub(super) fn on_gpu(
        &mut self,
        block: usize,
        before: &RegisterFile,
        n: usize,
        rows: std::ops::Range<usize>,
    ) -> (HashMap<Reg, Vec<f32>>, Vec<f32>) {
        before.iter().for_each(|(reg, values)| self.write(*reg, values));
        let mut angles = vec![0; self.program.ropes.len()];
        let mut staged: Vec<f32> = Vec::new();
        for (rope, first) in self.program.ropes.iter().zip(&mut angles) {
            *first = (staged.len() / 2) as u32;
            for t in 0..n {
                let turn = |f: &f64| (self.start + t) as f64 * f;
                let m = f64::from(rope.magnitude);
                let pair = |f: &f64| [(m * turn(f).cos()) as f32, (m * turn(f).sin()) as f32];
                staged.extend(rope.freqs.iter().flat_map(pair));
            }
        }
        let gpu = &self.gpu.gpu;
        if !staged.is_empty() {
            gpu.queue.write_buffer(&self.gpu.buffers.angles, 0, bytemuck::cast_slice(&staged));
        }
        let pass = Pass { start: self.start, rows, shares: self.gpu.tuning.shares, angles };
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut recorder = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.gpu.ops[block].iter().flatten().for_each(|op| op.record(&mut recorder, &pass));
        }
        let submission = gpu.queue.submit([encoder.finish()]);
        gpu.wait(submission).unwrap();
        let regs = REGS.iter().filter(|reg| self.uses(**reg)).map(|reg| (*reg, self.read(*reg, n))).collect();
        let logits = self.gpu.buffers.bufs.get(&Buf::Logits).map(|buffer| self.read_buffer(buffer));
        (regs, logits.unwrap_or_default())
    }

    /// Runs the steps of a block in the reference.
    pub(super) fn in_reference(&mut self, block: usize, regs: &mut RegisterFile, n: usize) -> Vec<f32> {
        let tokens = vec![0; n];
        let mut logits = Vec::new();
        for step in self.program.blocks[block].steps.clone() {
            self.reference.step(&step, &tokens, regs, &mut logits);
        }
        logits
    }

    /// Runs a block on both for `n` tokens and compares every register. Where the products read int8 activations, the
    /// reference is given `int8`, a register, rounded to what the device makes of it.
    pub(super) fn check(&mut self, block: usize, n: usize, int8: Option<Reg>, limit: f64, what: &str) {
        for (reg, error) in self.errors(block, n, int8) {
            assert!(error <= limit, "{what}, {n} tokens: register {reg:?} is off by {error:.1e} (limit {limit:.0e})");
        }
    }

    /// The errors that [`Bench::check`] looks at.
    pub(super) fn errors(&mut self, block: usize, n: usize, int8: Option<Reg>) -> Vec<(Reg, f64)> {
        let before = self.registers(n);
        let (got, _) = self.on_gpu(block, &before, n, 0..n);
        let mut regs = before.clone();
        if let Some(reg) = int8 {
            round_int8(regs.get_mut(&reg).unwrap());
        }
        self.in_reference(block, &mut regs, n);
        if let Some(reg) = int8 {
            regs.insert(reg, before[&reg].clone());
        }
        got.iter().map(|(reg, got)| (*reg, nmse(&regs[reg], got))).collect()
    }
}

/// Error relative to the power of what is wanted.
pub(super) fn nmse(want: &[f32], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len());
    let square = |x: f64| x * x;
    let error: f64 = want.iter().zip(got).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    error / want.iter().map(|a| square(f64::from(*a))).sum::<f64>().max(1e-30)
}

/// Rounds activations as both backends do: int8 in groups of 32, `d = absmax / 127`.
pub(super) fn round_int8(values: &mut [f32]) {
    for group in values.chunks_mut(32) {
        let absmax = group.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let inverse = 127.0 / absmax;
        group.iter_mut().for_each(|x| *x = (*x * inverse).round_ties_even() * (absmax / 127.0));
    }
}

/// The usual options of these tests.
pub(super) fn options(precision: Precision) -> GpuOptions {
    GpuOptions { precision, max_batch: 80, n_ctx: 256, ..GpuOptions::default() }
}

/// Every type that the decoders and the kernels know.
pub(super) fn types() -> Vec<GgmlType> {
    let known: Vec<GgmlType> = tandem_shaders::FORMATS.iter().map(|f| f.ty).collect();
    assert!(known.iter().all(|ty| quant::decode_fn(*ty).is_some()));
    known
}
