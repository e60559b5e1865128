//! Walks the steps of a program: the CPU backend's side of every [`Step`].
//!
//! All members of the team run [`Exec::step`] together. A step is one or a few phases; in a phase members claim disjoint
//! pieces of work, and a barrier ends it.

use std::ops::Range;

use tandem_models::{Activation, Linear, Program, Reg, Step, Vector, WeightId};

use super::attention::{AttentionWork, CHUNK, HeadCache, KvElement, KvF16, KvF32, MAX_ROWS, QueryRow};
use super::isa::LANES;
use super::kernels::Kernels;
use super::matmul::{ActGroup, Acts};
use super::matrix::Matrix;
use super::ops;
use super::pack::GROUP;
use super::team::{Member, Shared};
use super::{CpuBackend, Loaded};
use crate::backend::{Batch, Hidden};
use crate::model::KvType;

/// Most columns multiplied with a panel at a time: their results stay in the L1 or L2 cache.
const MAX_COLS: usize = 512;

/// Number of registers.
const N_REGISTERS: usize = 7;

/// Where a register's rows are kept.
fn slot(reg: Reg) -> usize {
    match reg {
        Reg::X => 0,
        Reg::H => 1,
        Reg::Q => 2,
        Reg::K => 3,
        Reg::V => 4,
        Reg::A => 5,
        Reg::F => 6,
    }
}

/// Registers and work memory, grown to the largest batch seen.
pub(crate) struct Scratch {
    /// All registers but X, by [`slot`].
    registers: [Vec<f32>; N_REGISTERS],
    /// The quantized input of the product at hand.
    groups: Vec<ActGroup>,
    /// Cosines and sines, `[n_ropes][n_tokens][n_rot / 2]`.
    angles: Vec<(Vec<f32>, Vec<f32>)>,
    /// Running results of queries: weighted values, then maximum and sum.
    partial: Vec<f32>,
    members: Vec<MemberScratch>,
}

/// Work memory of one thread.
pub(crate) struct MemberScratch {
    work: Vec<u8>,
    tile: Vec<f32>,
    tile2: Vec<f32>,
    attention: AttentionWork,
    mix: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(n_members: usize, work_bytes: usize, attention: impl Fn() -> AttentionWork) -> Scratch {
        let member = || MemberScratch {
            work: vec![0; work_bytes + 64],
            tile: Vec::new(),
            tile2: Vec::new(),
            attention: attention(),
            mix: Vec::new(),
        };
        Scratch {
            registers: Default::default(),
            groups: Vec::new(),
            angles: Vec::new(),
            partial: Vec::new(),
            members: (0..n_members).map(|_| member()).collect(),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let floats: usize = self.registers.iter().map(Vec::len).sum::<usize>()
            + self.partial.len()
            + self.angles.iter().map(|(c, s)| c.len() + s.len()).sum::<usize>();
        let members = self
            .members
            .iter()
            .map(|m| m.work.len() + 4 * (m.tile.len() + m.tile2.len() + m.mix.len()) + m.attention.bytes());
        4 * floats + std::mem::size_of_val(&*self.groups) + members.sum::<usize>()
    }

    /// Makes room for a batch of `n` tokens, and computes its rotation angles.
    fn prepare(&mut self, program: &Program, start: usize, n: usize) {
        let grow = |v: &mut Vec<f32>, len: usize| v.resize(len.max(v.len()), 0.0);
        let regs = &program.registers;
        for reg in [Reg::H, Reg::Q, Reg::K, Reg::V, Reg::A, Reg::F] {
            grow(&mut self.registers[slot(reg)], n * regs.width(reg));
        }
        let widest = regs.n_embd.max(regs.n_q).max(regs.n_ff).next_multiple_of(GROUP);
        self.groups.resize((n * widest / GROUP).max(self.groups.len()), ActGroup::default());
        self.angles.resize_with(program.ropes.len(), Default::default);
        for (rope, (cos, sin)) in program.ropes.iter().zip(&mut self.angles) {
            let half = rope.freqs.len();
            grow(cos, n * half);
            grow(sin, n * half);
            for t in 0..n {
                let at = t * half..(t + 1) * half;
                ops::rope_angles(rope, start + t, &mut cos[at.clone()], &mut sin[at]);
            }
        }
        let hp = &program.hparams;
        let stride = hp.head_dim.next_multiple_of(LANES);
        let n_chunks = (start + n).div_ceil(CHUNK);
        if n == 1 {
            grow(&mut self.partial, hp.n_head * n_chunks * (stride + 2));
        }
        for member in &mut self.members {
            grow(&mut member.tile, n.min(MAX_COLS) * LANES);
            grow(&mut member.tile2, n.min(MAX_COLS) * LANES);
            grow(&mut member.mix, MAX_ROWS * stride);
        }
    }
}

/// Everything a member needs during one pass.
struct Exec<'a> {
    program: &'a Program,
    gguf: &'a tandem_loader::Gguf,
    kernels: Kernels,
    kv_type: KvType,
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
        for step in program.blocks[blocks.clone()].iter().flat_map(|b| &b.steps) {
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
        // SAFETY: the input registers are not written in the phases that use this.
        unsafe {
            Acts {
                n_in,
                x: self.registers[slot(input)].get(0..self.n() * n_in).as_ptr(),
                groups: self.groups.get(0..0).as_ptr(),
            }
        }
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
        }
    }

    fn store_kv_as<E: KvElement>(&self, layer: usize, m: &Member<'_>) {
        let (hd, width) = (self.program.hparams.head_dim, self.width(Reg::K));
        m.phase_even(self.n(), |rows| {
            for t in rows {
                for (h, cache) in self.heads[layer].iter().enumerate() {
                    let at = t * width + h * hd..t * width + (h + 1) * hd;
                    // SAFETY: K and V are only read; positions of different rows are different elements.
                    unsafe {
                        let (k, v) =
                            (self.registers[slot(Reg::K)].get(at.clone()), self.registers[slot(Reg::V)].get(at));
                        cache.store::<E>(self.batch.start + t, k, v);
                    }
                }
            }
        });
    }

    fn attend(&self, layer: usize, scale: f32, window: Option<usize>, m: &Member<'_>, own: &mut MemberScratch) {
        if self.n() == 1 {
            self.attend_one(layer, scale, window, m, own);
        } else {
            self.attend_batch(layer, scale, window, m, own);
        }
    }

    fn attend_chunk(
        &self,
        cache: &HeadCache,
        rows: &mut [QueryRow],
        scale: f32,
        chunk: usize,
        work: &mut AttentionWork,
    ) {
        // SAFETY: the cache holds all positions up to this batch's, and rows are set up by the callers.
        unsafe {
            match self.kv_type {
                KvType::F16 => (self.kernels.attend_f16)(cache, rows, scale, chunk, work),
                KvType::F32 => (self.kernels.attend_f32)(cache, rows, scale, chunk, work),
            }
        }
    }

    /// Positions token `t` of the batch sees.
    fn sees(&self, t: usize, window: Option<usize>) -> (usize, usize) {
        let end = self.batch.start + t + 1;
        (window.map_or(0, |w| end.saturating_sub(w)), end)
    }

    /// The `i`-th query of a KV head's group (token-major), with its result in `out`.
    fn query(&self, kv_head: usize, i: usize, window: Option<usize>, out: &mut [f32]) -> QueryRow {
        let hp = &self.program.hparams;
        let group = hp.n_head / hp.n_head_kv;
        let (t, h) = (i / group, kv_head * group + i % group);
        let at = t * self.width(Reg::Q) + h * hp.head_dim;
        out.fill(0.0);
        // SAFETY: Q is only read while attending.
        let q = unsafe { self.registers[slot(Reg::Q)].get(at..at + hp.head_dim) };
        QueryRow { q: q.as_ptr(), sees: self.sees(t, window), out: out.as_mut_ptr(), max: f32::NEG_INFINITY, sum: 0.0 }
    }

    /// Writes a query's finished result to register A.
    fn finish(&self, kv_head: usize, i: usize, mix: &[f32], sum: f32) {
        let hp = &self.program.hparams;
        let group = hp.n_head / hp.n_head_kv;
        let at = i / group * self.width(Reg::A) + (kv_head * group + i % group) * hp.head_dim;
        // SAFETY: this member's query.
        let out = unsafe { self.registers[slot(Reg::A)].get_mut(at..at + hp.head_dim) };
        let inverse = 1.0 / sum;
        out.iter_mut().zip(mix).for_each(|(o, x)| *o = x * inverse);
    }

    /// Many tokens: members claim groups of queries and walk all their chunks.
    fn attend_batch(&self, layer: usize, scale: f32, window: Option<usize>, m: &Member<'_>, own: &mut MemberScratch) {
        let hp = &self.program.hparams;
        let stride = hp.head_dim.next_multiple_of(LANES);
        let queries = self.n() * (hp.n_head / hp.n_head_kv);
        let blocks = queries.div_ceil(MAX_ROWS);
        m.phase(blocks * hp.n_head_kv, 1, |items| {
            for item in items {
                // The longest first, so that the last ones claimed are short.
                let (kv_head, block) = (item % hp.n_head_kv, blocks - 1 - item / hp.n_head_kv);
                let range = block * MAX_ROWS..queries.min((block + 1) * MAX_ROWS);
                let mixes = own.mix.chunks_exact_mut(stride);
                let mut rows: [Option<QueryRow>; MAX_ROWS] = [None; MAX_ROWS];
                for ((slot, i), mix) in rows.iter_mut().zip(range.clone()).zip(mixes) {
                    *slot = Some(self.query(kv_head, i, window, mix));
                }
                let mut filled =
                    rows.map(|r| r.unwrap_or(rows[0].unwrap_or_else(|| unreachable!("a block has queries"))));
                let filled = &mut filled[..range.len()];
                let first = filled.iter().map(|r| r.sees.0).min().unwrap_or(0);
                let last = filled.iter().map(|r| r.sees.1).max().unwrap_or(0);
                for chunk in first / CHUNK..last.div_ceil(CHUNK) {
                    self.attend_chunk(&self.heads[layer][kv_head], filled, scale, chunk, &mut own.attention);
                }
                for (row, i) in filled.iter().zip(range) {
                    // SAFETY: `out` is this member's `mix`, `stride` long.
                    let mix = unsafe { std::slice::from_raw_parts(row.out, stride) };
                    self.finish(kv_head, i, mix, row.sum);
                }
            }
        });
    }

    /// One token: members claim (KV head, chunk) pairs, then merge the shares in order.
    fn attend_one(&self, layer: usize, scale: f32, window: Option<usize>, m: &Member<'_>, own: &mut MemberScratch) {
        let hp = &self.program.hparams;
        let stride = hp.head_dim.next_multiple_of(LANES);
        let group = hp.n_head / hp.n_head_kv;
        let (first, last) = self.sees(0, window);
        let chunks = first / CHUNK..last.div_ceil(CHUNK);
        // Of each head and chunk: weighted values, maximum, sum.
        let share = stride + 2;
        let at = |h: usize, c: usize| (h * chunks.len() + c) * share;
        m.phase(hp.n_head_kv * chunks.len(), 1, |items| {
            for item in items {
                let (kv_head, c) = (item / chunks.len(), item % chunks.len());
                for from in (0..group).step_by(MAX_ROWS) {
                    let n = MAX_ROWS.min(group - from);
                    let row = |i: usize| {
                        let start = at(kv_head * group + from + i, c);
                        // SAFETY: this member's head and chunk.
                        self.query(kv_head, from + i, window, unsafe { self.partial.get_mut(start..start + stride) })
                    };
                    let mut rows: [QueryRow; MAX_ROWS] = std::array::from_fn(|i| row(i.min(n - 1)));
                    let rows = &mut rows[..n];
                    self.attend_chunk(&self.heads[layer][kv_head], rows, scale, chunks.start + c, &mut own.attention);
                    for (i, row) in rows.iter().enumerate() {
                        let end = at(kv_head * group + from + i, c) + share;
                        // SAFETY: this member's head and chunk.
                        unsafe { self.partial.get_mut(end - 2..end) }.copy_from_slice(&[row.max, row.sum]);
                    }
                }
            }
        });
        m.phase_even(hp.n_head, |heads| {
            for h in heads {
                let mix = &mut own.mix[..stride];
                let (kv_head, i) = (h / group, h % group);
                let mut row = self.query(kv_head, i, window, mix);
                for c in 0..chunks.len() {
                    // SAFETY: written in the phase before.
                    let part = unsafe { self.partial.get(at(h, c)..at(h, c) + share) };
                    if part[stride + 1] > 0.0 {
                        let shares = (part[stride], part[stride + 1]);
                        // SAFETY: `stride` floats each; `kernels` are those of this CPU.
                        unsafe { (self.kernels.merge)(&mut row, shares, part.as_ptr(), stride) };
                    }
                }
                self.finish(kv_head, i, &own.mix[..stride], row.sum);
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
