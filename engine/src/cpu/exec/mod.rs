//! Walks the steps of a program: the CPU backend's side of every [`Step`].
//!
//! All members of the team run [`Exec::step`] together. A step is one or a few phases; in a phase members claim disjoint
//! pieces of work, and all that others write is read there. The small steps of a single token are no phases: one member does
//! them alone, and reads and writes what it likes meanwhile.

mod ahead;
mod attend;
mod experts;
mod observe;
mod scratch;

use std::ops::Range;
use std::sync::PoisonError;

use tandem_models::{Activation, Block, BlockKind, Linear, Program, Reg, Step, Vector, WeightId};

use super::attention::HeadCache;
use super::isa::LANES;
use super::kernels::{AttendFn, Kernels};
use super::kv_format::{KvF16, KvF32, KvFormat, KvQ4, KvQ8};
use super::matmul::{ActGroup, Acts, columns_per_pass};
use super::matrix::Matrix;
use super::ops;
use super::pack::GROUP;
use super::team::{Member, Shared};
use super::{CpuBackend, Loaded};
use crate::backend::{Batch, Hidden};
use crate::model::KvType;

use experts::SharedRouting;
use observe::Observed;
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
    routing: SharedRouting,
    members: Shared<MemberScratch>,
    /// Where inputs of matrices are summed, if they are.
    observed: Option<Observed>,
}

// SAFETY: the raw pointers inside `HeadCache` are to memory that phases write disjointly, like `Shared`.
unsafe impl Sync for Exec<'_> {}

/// Runs blocks over a batch.
pub(super) fn run(cpu: &mut CpuBackend, blocks: Range<usize>, batch: &Batch<'_>, hidden: &mut Hidden) {
    let n = batch.tokens.len();
    let program = cpu.program.clone();
    let inputs = cpu.options.inputs.clone();
    let mut inputs = inputs.as_ref().map(|inputs| inputs.lock().unwrap_or_else(PoisonError::into_inner));
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
        routing: scratch.routing.share(),
        members: Shared::new(&mut scratch.members),
        observed: inputs.as_deref_mut().map(Observed::new),
    };
    cpu.team.run(|member| {
        // SAFETY: each member takes its own scratch.
        let own = unsafe { &mut exec.members.get_mut(member.index..member.index + 1)[0] };
        // Without output rows there is nothing for the head to do.
        let needed = |block: &&Block| block.kind != BlockKind::Head || !batch.output_rows().is_empty();
        let mut steps = program.blocks[blocks.clone()].iter().filter(needed).flat_map(|b| &b.steps);
        loop {
            exec.read_ahead(steps.clone(), member);
            let Some(step) = steps.next() else { break };
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

/// Whether rows are quantized to int8 as input of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Int8 {
    No,
    Once,
    /// What int8 leaves over of a row is a second column.
    Twice,
}

/// The input of products.
struct Input {
    acts: Acts,
    /// The register and the row that each member still has to quantize for itself.
    own_row: Option<(Reg, usize, Int8)>,
}

impl Input {
    /// The input, to be asked for in the phase that reads it, where the register stays as it is.
    fn ready(&mut self, exec: &Exec<'_>, own: &mut MemberScratch) -> &Acts {
        if let Some((reg, t, int8)) = self.own_row.take() {
            exec.quantize_row(reg, self.acts.n_in, t, int8, &mut own.groups);
            self.acts.groups = own.groups.as_ptr();
        }
        &self.acts
    }
}

// SAFETY of the `Shared` accesses below: within a phase, members claim disjoint rows, heads or panels, write only what
// belongs to them, and read only registers that no member writes in that phase. Outside of phases, and of what one member
// does alone, they read nothing that any member writes.
impl Exec<'_> {
    fn n(&self) -> usize {
        self.batch.tokens.len()
    }

    fn width(&self, reg: Reg) -> usize {
        self.program.registers.width(reg)
    }

    fn matrix(&self, linear: &Linear) -> &Matrix {
        self.matrices(linear.weight)
    }

    /// The matrix, or the matrices of all experts, of a weight.
    fn matrices(&self, id: WeightId) -> &Matrix {
        match &self.weights[id.0] {
            Some(Loaded::Matrix(matrix)) => matrix,
            Some(Loaded::Table { .. } | Loaded::Vector(_)) | None => {
                unreachable!("the builder gave this weight the matrix or the experts role")
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
        if let Some(observed) = &self.observed {
            self.observe(observed, step, m);
        }
        match step {
            Step::Embed { table, scale } => self.embed(*table, *scale, m),
            Step::Norm { norm, input, output, add } => self.norm(norm, *input, *output, *add, m),
            Step::Qkv { q, k, v } => {
                let mut input = self.input(Reg::H, &[q, k, v], m);
                self.products(&[(q, Reg::Q, false), (k, Reg::K, false), (v, Reg::V, false)], &mut input, m, own);
            }
            Step::HeadNorm { q, k } => self.head_norms(q, k, m),
            Step::Rope { rope } => self.rope(*rope, m),
            Step::StoreKv { layer } => self.store_kv(*layer, m),
            Step::Attend { layer, scale, window } => self.attend(*layer, *scale, *window, m, own),
            Step::Linear { linear, input, output, add } => {
                let mut input = self.input(*input, &[linear], m);
                self.products(&[(linear, *output, *add)], &mut input, m, own);
            }
            Step::Glu { gate, up, act } => self.glu(gate, up, *act, m, own),
            Step::Route { router, normalize } => self.route(router, *normalize, m, own),
            Step::ExpertGlu { gate, up, act } => self.expert_glu(*gate, *up, *act, m, own),
            Step::ExpertDown { down, output, add } => self.expert_down(*down, *output, *add, m, own),
            Step::SigmoidGate { weight, n_ff } => self.sigmoid_gate(*weight, *n_ff, m),
            Step::Logits { linear, soft_cap } => self.logits(linear, *soft_cap, m, own),
        }
    }

    /// Work on each token of the batch for itself. That of a single token is little: one member does it alone.
    fn tokens(&self, m: &Member<'_>, body: impl FnMut(Range<usize>)) {
        if self.n() == 1 { m.alone(body) } else { m.phase_even(self.n(), body) }
    }

    fn embed(&self, table: WeightId, scale: f32, m: &Member<'_>) {
        let Some(Loaded::Table { decode, tensor }) = &self.weights[table.0] else {
            unreachable!("the builder gave the embedding the table role")
        };
        let n_embd = self.width(Reg::X);
        let data = self.gguf.data(tensor);
        let row_bytes = data.len() / tensor.n_rows();
        self.tokens(m, |rows| {
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
        self.tokens(m, |rows| {
            for t in rows {
                let at = t * width..(t + 1) * width;
                if input == output {
                    // SAFETY: this member's rows.
                    unsafe { (self.kernels.head_norm)(to.get_mut(at), weight, norm.eps) };
                    continue;
                }
                // SAFETY: this member's rows of two different registers.
                unsafe { (self.kernels.rms_norm)(from.get(at.clone()), weight, norm.eps, to.get_mut(at), add) };
            }
        });
    }

    /// The batch's rows of a register as input of products: quantized to int8, if one of the matrices wants that.
    fn input(&self, input: Reg, linears: &[&Linear], m: &Member<'_>) -> Input {
        let quantized = linears.iter().any(|l| self.matrix(l).wants_quantized());
        let int8 = if quantized { Int8::Once } else { Int8::No };
        self.rows_as_input(input, self.matrix(linears[0]).n_in, 0..self.n(), int8, m)
    }

    /// Rows of `n_in` floats of a register as input of products. A single row is quantized by every member for itself, which
    /// takes less time than to share the work and to wait for each other.
    fn rows_as_input(&self, reg: Reg, n_in: usize, rows: Range<usize>, int8: Int8, m: &Member<'_>) -> Input {
        let quantized = int8 != Int8::No;
        if quantized && rows.len() > 1 {
            let per_row = if int8 == Int8::Twice { 2 } else { 1 } * (n_in / GROUP);
            m.phase_even(rows.len(), |items| {
                for i in items {
                    // SAFETY: this member's rows.
                    let out = unsafe { self.groups.get_mut(i * per_row..(i + 1) * per_row) };
                    self.quantize_row(reg, n_in, rows.start + i, int8, out);
                }
            });
        }
        let x = self.registers[slot(reg)].start_of(rows.start * n_in..rows.end * n_in);
        let acts = Acts { n_in, x, groups: self.groups.as_ptr(), rows: std::ptr::null() };
        Input { acts, own_row: (quantized && rows.len() == 1).then_some((reg, rows.start, int8)) }
    }

    /// Quantizes row `t` of `n_in` floats of a register to int8.
    fn quantize_row(&self, reg: Reg, n_in: usize, t: usize, int8: Int8, out: &mut [ActGroup]) {
        let (main, rest) = out.split_at_mut(n_in / GROUP);
        // SAFETY: no member writes the register before the phase is over, and the product's output is another one; rows of
        // whole groups; `kernels` are those of this CPU.
        unsafe {
            let row = self.registers[slot(reg)].get(t * n_in..(t + 1) * n_in);
            if int8 == Int8::Twice {
                return (self.kernels.quantize_twice)(row.as_ptr(), main, &mut rest[..n_in / GROUP]);
            }
            let least = match self.program.one_scale_per_token {
                true => (self.kernels.absmax)(row.as_ptr(), n_in),
                false => 0.0,
            };
            (self.kernels.quantize)(row.as_ptr(), least, main);
        }
    }

    /// A phase over panels. A single column goes through them as fast as they can be read, which runs help.
    fn panel_phase(&self, n_panels: usize, m: &Member<'_>, body: impl FnMut(Range<usize>)) {
        if self.n() == 1 { m.phase_runs(n_panels, body) } else { m.phase_even(n_panels, body) }
    }

    /// Products of one input with one or more matrices, as one phase over all their panels.
    fn products(&self, targets: &[(&Linear, Reg, bool)], input: &mut Input, m: &Member<'_>, own: &mut MemberScratch) {
        let total: usize = targets.iter().map(|(l, ..)| self.matrix(l).n_panels()).sum();
        self.panel_phase(total, m, |claimed| {
            let acts = input.ready(self, own);
            let mut first = 0;
            for (linear, reg, add) in targets {
                let matrix = self.matrix(linear);
                let panels =
                    claimed.start.saturating_sub(first)..claimed.end.saturating_sub(first).min(matrix.n_panels());
                first += matrix.n_panels();
                let target = Target { out: self.registers[slot(*reg)], stride: self.width(*reg), add: *add };
                self.panels(linear, panels, acts, self.n(), target, own);
            }
        });
    }

    /// Multiplies some panels with the first `n` columns of `acts`; adds the bias.
    fn panels(
        &self,
        linear: &Linear,
        panels: Range<usize>,
        acts: &Acts,
        n: usize,
        target: Target,
        own: &mut MemberScratch,
    ) {
        let matrix = self.matrix(linear);
        for cols in column_passes(n, matrix.n_in) {
            for p in panels.clone() {
                let rows = p * LANES..matrix.n_out.min((p + 1) * LANES);
                // SAFETY: `acts` covers all columns of the batch.
                unsafe { matrix.multiply(self.arena, p, acts, cols.clone(), &mut own.work, &mut own.tile) };
                let tiles = &mut own.tile[..LANES * cols.len()];
                self.scale_and_bias(linear, &rows, tiles);
                self.write(tiles, cols.clone(), rows, target);
            }
        }
    }

    /// What a matrix's product becomes: rows `rows` of some columns, `[columns][16]`.
    fn scale_and_bias(&self, linear: &Linear, rows: &Range<usize>, tiles: &mut [f32]) {
        if linear.scale != 1.0 {
            tiles.iter_mut().for_each(|y| *y *= linear.scale);
        }
        if let Some(bias) = linear.bias {
            let bias = &self.vector(bias)[rows.clone()];
            for tile in tiles.chunks_exact_mut(LANES) {
                tile.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }

    /// Writes (or adds) rows `rows` of the columns `cols`, in `tiles`, `[columns][16]`.
    fn write(&self, tiles: &[f32], cols: Range<usize>, rows: Range<usize>, target: Target) {
        assert!(tiles.len() == LANES * cols.len());
        if rows.len() == LANES && !cols.is_empty() {
            let all = cols.start * target.stride + rows.start..(cols.end - 1) * target.stride + rows.end;
            let out = target.out.start_of(all);
            // SAFETY: this member's panel, 16 floats of every column; `kernels` are those of this CPU.
            return unsafe { (self.kernels.write_tiles)(tiles.as_ptr(), cols.len(), out, target.stride, target.add) };
        }
        for (col, tile) in cols.zip(tiles.chunks_exact(LANES)) {
            let at = col * target.stride + rows.start;
            // SAFETY: this member's panel.
            write_tile(unsafe { target.out.get_mut(at..at + rows.len()) }, tile, target.add);
        }
    }

    fn glu(&self, gate: &Linear, up: &Linear, act: Activation, m: &Member<'_>, own: &mut MemberScratch) {
        let mut input = self.input(Reg::H, &[gate, up], m);
        let n_in = self.matrix(gate).n_in;
        self.panel_phase(self.matrix(gate).n_panels(), m, |panels| {
            let acts = input.ready(self, own);
            for cols in column_passes(self.n(), n_in) {
                for p in panels.clone() {
                    // SAFETY: `acts` covers all columns of the batch.
                    unsafe {
                        self.matrix(gate).multiply(self.arena, p, acts, cols.clone(), &mut own.work, &mut own.tile);
                        self.matrix(up).multiply(self.arena, p, acts, cols.clone(), &mut own.work, &mut own.tile2);
                    }
                    self.activate(gate, up, act, p, cols.clone(), own);
                }
            }
        });
    }

    /// Joins panel `p` of gate and up, as they lie in the member's tiles, in register F.
    fn activate(
        &self,
        gate: &Linear,
        up: &Linear,
        act: Activation,
        p: usize,
        cols: Range<usize>,
        own: &mut MemberScratch,
    ) {
        let n_ff = self.matrix(gate).n_out;
        let rows = p * LANES..n_ff.min((p + 1) * LANES);
        let all = ..LANES * cols.len();
        let (gates, ups) = (&mut own.tile[all], &mut own.tile2[all]);
        self.scale_and_bias(gate, &rows, gates);
        self.scale_and_bias(up, &rows, ups);
        // SAFETY: equally long, whole vectors; `kernels` are those of this CPU.
        unsafe { (self.kernels.glu)(act, gates, ups) };
        self.write(gates, cols, rows, Target { out: self.registers[slot(Reg::F)], stride: n_ff, add: false });
    }

    fn head_norms(&self, q: &Vector, k: &Vector, m: &Member<'_>) {
        let hd = self.program.hparams.head_dim;
        self.tokens(m, |rows| {
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
        self.tokens(m, |rows| {
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
        self.tokens(m, |rows| {
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

    /// The output head. Its int8 input has a remainder, which goes through the matrix as a second column: the head is
    /// where rounding does the most harm, and has few rows to multiply.
    fn logits(&self, linear: &Linear, soft_cap: Option<f32>, m: &Member<'_>, own: &mut MemberScratch) {
        let rows = self.batch.output_rows();
        let matrix = self.matrix(linear);
        let n_in = matrix.n_in;
        let parts = if matrix.wants_quantized() { 2 } else { 1 };
        let int8 = if parts == 2 { Int8::Twice } else { Int8::No };
        let mut input = self.rows_as_input(Reg::H, n_in, rows.clone(), int8, m);
        self.panel_phase(matrix.n_panels(), m, |panels| {
            let acts = input.ready(self, own);
            for cols in column_passes(parts * rows.len(), n_in) {
                for p in panels.clone() {
                    // SAFETY: `acts` covers the columns.
                    unsafe { matrix.multiply(self.arena, p, acts, cols.clone(), &mut own.work, &mut own.tile) };
                    let tiles = own.tile.chunks_exact_mut(parts * LANES);
                    for (row, tile) in (cols.start / parts..cols.end / parts).zip(tiles) {
                        self.finish_logits(linear, soft_cap, p, row, tile);
                    }
                }
            }
        });
    }

    /// Writes one panel's logits of one row: the sum of the tile's columns, with bias and soft cap.
    fn finish_logits(&self, linear: &Linear, soft_cap: Option<f32>, p: usize, row: usize, tile: &[f32]) {
        let n_vocab = self.matrix(linear).n_out;
        let outputs = p * LANES..n_vocab.min((p + 1) * LANES);
        let bias = linear.bias.map(|b| &self.vector(b)[outputs.clone()]);
        let scale = linear.scale;
        // SAFETY: this member's panel.
        let out = unsafe { self.logits.get_mut(row * n_vocab + outputs.start..row * n_vocab + outputs.end) };
        for (i, out) in out.iter_mut().enumerate() {
            let y = scale * (tile[i] + tile.get(LANES + i).copied().unwrap_or(0.0)) + bias.map_or(0.0, |b| b[i]);
            *out = soft_cap.map_or(y, |cap| cap * (y / cap).tanh());
        }
    }
}

/// Ranges that cover `n` columns, each small enough to stay in a cache while panels pass by.
fn column_passes(n: usize, n_in: usize) -> impl Iterator<Item = Range<usize>> {
    let step = columns_per_pass(n_in, MAX_COLS);
    (0..n).step_by(step).map(move |start| start..n.min(start + step))
}
