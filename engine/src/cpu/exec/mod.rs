//! Walks the steps of a program: the CPU backend's side of every [`Step`].
//!
//! All members of the team run [`Exec::step`] together. A step is one or a few phases; in a phase members claim disjoint
//! pieces of work, and a barrier ends it.

mod attend;
mod scratch;

use std::ops::Range;

use tandem_models::{Activation, Block, BlockKind, Linear, Program, Reg, Step, Vector, WeightId};

use super::attention::HeadCache;
use super::isa::LANES;
use super::kernels::{AttendFn, Kernels};
use super::kv_format::{KvF16, KvF32, KvFormat, KvQ4, KvQ8};
use super::matmul::{ActGroup, Acts};
use super::matrix::Matrix;
use super::ops;
use super::pack::GROUP;
use super::team::{Member, Shared};
use super::{CpuBackend, Loaded};
use crate::backend::{Batch, Hidden};
use crate::model::KvType;

use scratch::{MemberScratch, N_REGISTERS, slot};
pub(super) use scratch::{Scratch, Sizes};

/// Most columns multiplied with a panel at a time: their results stay in the L1 or L2 cache.
const MAX_COLS: usize = 512;

/// Everything a member needs during one pass.
struct Exec<'a> {
    program: &'a Program,
    gguf: &'a tandem_loader::Gguf,
    kernels: Kernels,
    kv_type: KvType,
    attend: AttendFn,
    arena: &'a [u8],
    weights: &'a [Option<Loaded>],
    heads: Vec<Vec<HeadCache>>,
    batch: Batch<'a>,
    registers: [Shared<f32>; N_REGISTERS],
    logits: Shared<f32>,
    groups: Shared<ActGroup>,
    angles: &'a [(Vec<f32>, Vec<f32>)],
    partial: Shared<f32>,
    members: Shared<MemberScratch>,
}

// SAFETY: the raw pointers inside `HeadCache` are to memory that phases write disjointly, like `Shared`.
unsafe impl Sync for Exec<'_> {}

/// Runs blocks over a batch.
pub(super) fn run(cpu: &mut CpuBackend, blocks: Range<usize>, batch: &Batch<'_>, hidden: &mut Hidden) {
    let n = batch.tokens.len();
    let program = cpu.program.clone();
    // What the kernels do not check.
    assert!(batch.start.checked_add(n).is_some_and(|end| end <= cpu.options.n_ctx), "a batch outside the context");
    assert!(batch.outputs.0 <= batch.outputs.1 && batch.outputs.1 <= n, "outputs outside the batch");
    cpu.scratch.prepare(&program, batch.start, n);
    hidden.x.resize(n * program.registers.n_embd, 0.0);
    hidden.logits.resize(batch.output_rows().len() * program.hparams.n_vocab, 0.0);
    let scratch = &mut cpu.scratch;
    let mut registers = scratch.registers.each_mut().map(|v| Shared::new(v));
    registers[slot(Reg::X)] = Shared::new(&mut hidden.x);
    let n_head_kv = program.hparams.n_head_kv;
    let exec = Exec {
        program: &program,
        gguf: &cpu.gguf,
        kernels: cpu.kernels,
        kv_type: cpu.options.kv_type,
        attend: (cpu.kernels.attend)(cpu.options.kv_type),
        arena: &cpu.arena,
        weights: &cpu.weights,
        heads: cpu.cache.iter_mut().map(|c| c.iter_mut().flat_map(|c| c.heads(n_head_kv)).collect()).collect(),
        batch: *batch,
        registers,
        logits: Shared::new(&mut hidden.logits),
        groups: Shared::new(&mut scratch.groups),
        angles: &scratch.angles,
        partial: Shared::new(&mut scratch.partial),
        members: Shared::new(&mut scratch.members),
    };
    cpu.team.run(|member| {
        // SAFETY: each member takes its own scratch.
        let own = unsafe { &mut exec.members.get_mut(member.index..member.index + 1)[0] };
        // Without output rows there is nothing for the head to do.
        let needed = |block: &&Block| block.kind != BlockKind::Head || !batch.output_rows().is_empty();
        for step in program.blocks[blocks.clone()].iter().filter(needed).flat_map(|b| &b.steps) {
            exec.step(step, member, own);
        }
    });
}

/// Where a matrix product goes.
#[derive(Clone, Copy)]
struct Target {
    out: Shared<f32>,
    /// Floats per row of `out`.
    stride: usize,
    add: bool,
}

/// Writes (or adds) as much of a tile's column as `out` has room for. Whole columns take a path of fixed length.
#[inline(always)]
fn write_tile(out: &mut [f32], tile: &[f32], add: bool) {
    match (out.as_chunks_mut::<LANES>().0.first_mut(), tile.first_chunk::<LANES>()) {
        (Some(out), Some(tile)) if add => out.iter_mut().zip(tile).for_each(|(o, y)| *o += y),
        (Some(out), Some(tile)) => *out = *tile,
        _ if add => out.iter_mut().zip(tile).for_each(|(o, y)| *o += y),
        _ => out.iter_mut().zip(tile).for_each(|(o, y)| *o = *y),
    }
}

// SAFETY of the `Shared` accesses below: within a phase, members claim disjoint rows, heads or panels, write only what
// belongs to them, and read only registers that no member writes in that phase.
impl Exec<'_> {
    fn n(&self) -> usize {
        self.batch.tokens.len()
    }

    fn width(&self, reg: Reg) -> usize {
        self.program.registers.width(reg)
    }

    fn matrix(&self, linear: &Linear) -> &Matrix {
        match &self.weights[linear.weight.0] {
            Some(Loaded::Matrix(matrix)) => matrix,
            Some(Loaded::Table { .. } | Loaded::Vector(_)) | None => {
                unreachable!("a linear step's weight has the matrix role")
            }
        }
    }

    fn vector(&self, id: WeightId) -> &[f32] {
        match &self.weights[id.0] {
            Some(Loaded::Vector(vector)) => vector,
            Some(Loaded::Table { .. } | Loaded::Matrix(_)) | None => {
                unreachable!("the builder gave this weight the vector role")
            }
        }
    }

    fn step(&self, step: &Step, m: &Member<'_>, own: &mut MemberScratch) {
        match step {
            Step::Embed { table, scale } => self.embed(*table, *scale, m),
            Step::Norm { norm, input, output, add } => self.norm(norm, *input, *output, *add, m),
            Step::Qkv { q, k, v } => {
                self.quantize(Reg::H, &[q, k, v], 0..self.n(), m);
                self.products(&[(q, Reg::Q, false), (k, Reg::K, false), (v, Reg::V, false)], Reg::H, m, own);
            }
            Step::HeadNorm { q, k } => self.head_norms(q, k, m),
            Step::Rope { rope } => self.rope(*rope, m),
            Step::StoreKv { layer } => self.store_kv(*layer, m),
            Step::Attend { layer, scale, window } => self.attend(*layer, *scale, *window, m, own),
            Step::Linear { linear, input, output, add } => {
                self.quantize(*input, &[linear], 0..self.n(), m);
                self.products(&[(linear, *output, *add)], *input, m, own);
            }
            Step::Glu { gate, up, act } => self.glu(gate, up, *act, m, own),
            Step::Logits { linear, soft_cap } => self.logits(linear, *soft_cap, m, own),
        }
    }

    fn embed(&self, table: WeightId, scale: f32, m: &Member<'_>) {
        let Some(Loaded::Table { decode, tensor }) = &self.weights[table.0] else {
            unreachable!("the builder gave the embedding the table role")
        };
        let n_embd = self.width(Reg::X);
        let data = self.gguf.data(tensor);
        let row_bytes = data.len() / tensor.n_rows();
        m.phase_even(self.n(), |rows| {
            for t in rows {
                let token = self.batch.tokens[t] as usize;
                // SAFETY: this member's rows.
                let x = unsafe { self.registers[slot(Reg::X)].get_mut(t * n_embd..(t + 1) * n_embd) };
                decode(&data[token * row_bytes..(token + 1) * row_bytes], x);
                x.iter_mut().for_each(|x| *x *= scale);
            }
        });
    }

    fn norm(&self, norm: &Vector, input: Reg, output: Reg, add: bool, m: &Member<'_>) {
        let weight = self.vector(norm.weight);
        let width = weight.len();
        let (from, to) = (self.registers[slot(input)], self.registers[slot(output)]);
        m.phase_even(self.n(), |rows| {
            for t in rows {
                let at = t * width..(t + 1) * width;
                // SAFETY: this member's rows of two different registers.
                unsafe { (self.kernels.rms_norm)(from.get(at.clone()), weight, norm.eps, to.get_mut(at), add) };
            }
        });
    }

    /// Quantizes rows of a register to int8, if one of the matrices that will read it wants that.
    fn quantize(&self, input: Reg, linears: &[&Linear], rows: Range<usize>, m: &Member<'_>) {
        if !linears.iter().any(|l| self.matrix(l).wants_quantized()) {
            return;
        }
        let n_in = self.matrix(linears[0]).n_in;
        let groups = n_in / GROUP;
        // Pieces of a row, so that the members share even a single token's.
        let piece = if rows.len() == 1 { groups.div_ceil(4) } else { groups };
        let pieces = groups.div_ceil(piece);
        m.phase_even(rows.len() * pieces, |items| {
            for item in items {
                let (t, first) = (rows.start + item / pieces, item % pieces * piece);
                let g = t * groups + first..t * groups + groups.min(first + piece);
                // SAFETY: this member's groups.
                unsafe {
                    let x = self.registers[slot(input)].get(g.start * GROUP..g.end * GROUP);
                    (self.kernels.quantize)(x.as_ptr(), self.groups.get_mut(g));
                }
            }
        });
    }

    /// The rows of a register as input of products.
    fn acts(&self, input: Reg, n_in: usize) -> Acts {
        Acts { n_in, x: self.registers[slot(input)].as_ptr(), groups: self.groups.as_ptr() }
    }

    /// Products of one input with one or more matrices, as one phase over all their panels.
    fn products(&self, targets: &[(&Linear, Reg, bool)], input: Reg, m: &Member<'_>, own: &mut MemberScratch) {
        let total: usize = targets.iter().map(|(l, ..)| self.matrix(l).n_panels()).sum();
        m.phase_even(total, |panels| {
            for panel in panels {
                let mut p = panel;
                for (linear, reg, add) in targets {
                    let matrix = self.matrix(linear);
                    if p < matrix.n_panels() {
                        let target = Target { out: self.registers[slot(*reg)], stride: self.width(*reg), add: *add };
                        let acts = self.acts(input, matrix.n_in);
                        self.panel(linear, p, &acts, 0..self.n(), target, own);
                        break;
                    }
                    p -= matrix.n_panels();
                }
            }
        });
    }

    /// One panel of a product for the given columns; row `i` of the target is column `cols.start + i`.
    fn panel(
        &self,
        linear: &Linear,
        p: usize,
        acts: &Acts,
        cols: Range<usize>,
        target: Target,
        own: &mut MemberScratch,
    ) {
        let matrix = self.matrix(linear);
        let first = p * LANES;
        let n_rows = LANES.min(matrix.n_out - first);
        let bias = linear.bias.map(|b| &self.vector(b)[first..first + n_rows]);
        for start in cols.clone().step_by(MAX_COLS) {
            let part = start..cols.end.min(start + MAX_COLS);
            // SAFETY: `acts` covers all columns of the batch.
            unsafe { matrix.multiply(self.arena, p, acts, part.clone(), &mut own.work, &mut own.tile) };
            for (col, tile) in part.zip(own.tile.chunks_exact_mut(LANES)) {
                for (y, b) in tile.iter_mut().zip(bias.into_iter().flatten()) {
                    *y += b;
                }
                let at = (col - cols.start) * target.stride + first;
                // SAFETY: this member's panel.
                let out = unsafe { target.out.get_mut(at..at + n_rows) };
                write_tile(out, tile, target.add);
            }
        }
    }

    fn glu(&self, gate: &Linear, up: &Linear, act: Activation, m: &Member<'_>, own: &mut MemberScratch) {
        self.quantize(Reg::H, &[gate, up], 0..self.n(), m);
        let (n_ff, n_in) = (self.matrix(gate).n_out, self.matrix(gate).n_in);
        m.phase_even(self.matrix(gate).n_panels(), |panels| {
            let acts = self.acts(Reg::H, n_in);
            for p in panels {
                let first = p * LANES;
                let n_rows = LANES.min(n_ff - first);
                for start in (0..self.n()).step_by(MAX_COLS) {
                    let part = start..self.n().min(start + MAX_COLS);
                    // SAFETY: `acts` covers all columns of the batch.
                    unsafe {
                        self.matrix(gate).multiply(self.arena, p, &acts, part.clone(), &mut own.work, &mut own.tile);
                        self.matrix(up).multiply(self.arena, p, &acts, part.clone(), &mut own.work, &mut own.tile2);
                    }
                    let tiles = own.tile.chunks_exact_mut(LANES).zip(own.tile2.chunks_exact_mut(LANES));
                    for (col, (g, u)) in part.zip(tiles) {
                        for (tile, linear) in [(&mut *g, gate), (&mut *u, up)] {
                            let bias = linear.bias.map(|b| &self.vector(b)[first..first + n_rows]);
                            tile.iter_mut().zip(bias.into_iter().flatten()).for_each(|(y, b)| *y += b);
                        }
                        // SAFETY: 16 floats each; this member's panel.
                        unsafe {
                            (self.kernels.glu)(act, g.as_ptr(), u.as_ptr(), g.as_mut_ptr());
                            let at = col * n_ff + first;
                            write_tile(self.registers[slot(Reg::F)].get_mut(at..at + n_rows), g, false);
                        }
                    }
                }
            }
        });
    }

    fn head_norms(&self, q: &Vector, k: &Vector, m: &Member<'_>) {
        let hd = self.program.hparams.head_dim;
        m.phase_even(self.n(), |rows| {
            for (reg, norm) in [(Reg::Q, q), (Reg::K, k)] {
                let (width, weight) = (self.width(reg), self.vector(norm.weight));
                // SAFETY: this member's rows.
                let values = unsafe { self.registers[slot(reg)].get_mut(rows.start * width..rows.end * width) };
                for head in values.chunks_exact_mut(hd) {
                    // SAFETY: `kernels` are those of this CPU.
                    unsafe { (self.kernels.head_norm)(head, weight, norm.eps) };
                }
            }
        });
    }

    fn rope(&self, rope: usize, m: &Member<'_>) {
        let hd = self.program.hparams.head_dim;
        let (spec, (cos, sin)) = (&self.program.ropes[rope], &self.angles[rope]);
        let half = spec.freqs.len();
        m.phase_even(self.n(), |rows| {
            for t in rows {
                let at = t * half..(t + 1) * half;
                for reg in [Reg::Q, Reg::K] {
                    let width = self.width(reg);
                    // SAFETY: this member's rows.
                    let values = unsafe { self.registers[slot(reg)].get_mut(t * width..(t + 1) * width) };
                    for head in values.chunks_exact_mut(hd) {
                        ops::rotate(&mut head[..2 * half], spec.pairing, &cos[at.clone()], &sin[at.clone()]);
                    }
                }
            }
        });
    }

    fn store_kv(&self, layer: usize, m: &Member<'_>) {
        match self.kv_type {
            KvType::F16 => self.store_kv_as::<KvF16>(layer, m),
            KvType::F32 => self.store_kv_as::<KvF32>(layer, m),
            KvType::Q8_0 => self.store_kv_as::<KvQ8>(layer, m),
            KvType::Q4_0 => self.store_kv_as::<KvQ4>(layer, m),
        }
    }

    fn store_kv_as<K: KvFormat>(&self, layer: usize, m: &Member<'_>) {
        let (hd, width) = (self.program.hparams.head_dim, self.width(Reg::K));
        m.phase_even(self.n(), |rows| {
            for t in rows {
                for (h, cache) in self.heads[layer].iter().enumerate() {
                    let at = t * width + h * hd..t * width + (h + 1) * hd;
                    // SAFETY: K and V are only read; positions of different rows are different elements.
                    unsafe {
                        let (k, v) =
                            (self.registers[slot(Reg::K)].get(at.clone()), self.registers[slot(Reg::V)].get(at));
                        cache.store::<K>(self.batch.start + t, k, v);
                    }
                }
            }
        });
    }

    fn logits(&self, linear: &Linear, soft_cap: Option<f32>, m: &Member<'_>, own: &mut MemberScratch) {
        let rows = self.batch.output_rows();
        self.quantize(Reg::H, &[linear], rows.clone(), m);
        let matrix = self.matrix(linear);
        let n_vocab = matrix.n_out;
        let target = Target { out: self.logits, stride: n_vocab, add: false };
        m.phase_even(matrix.n_panels(), |panels| {
            for p in panels {
                self.panel(linear, p, &self.acts(Reg::H, matrix.n_in), rows.clone(), target, own);
                let Some(cap) = soft_cap else { continue };
                for row in 0..rows.len() {
                    let at = row * n_vocab + p * LANES;
                    // SAFETY: this member's panel.
                    let out = unsafe { self.logits.get_mut(at..at + LANES.min(n_vocab - p * LANES)) };
                    out.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
                }
            }
        });
    }
}
