//! Registers and work memory of the CPU backend.

use tandem_models::{Program, Reg};

use super::super::attention::{AttentionWork, CHUNK, MAX_ROWS};
use super::super::isa::LANES;
use super::super::matmul::ActGroup;
use super::super::ops;
use super::super::pack::GROUP;
use super::MAX_COLS;

/// Number of registers.
pub(super) const N_REGISTERS: usize = 7;

/// Where a register's rows are kept.
pub(super) fn slot(reg: Reg) -> usize {
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

/// How long each part of the work memory is, in elements: what is allocated, and what the ledger counts.
#[derive(Debug, Clone)]
pub(in crate::cpu) struct Sizes {
    registers: [usize; N_REGISTERS],
    groups: usize,
    /// By rope.
    angles: Vec<usize>,
    partial: usize,
    /// Of each member.
    work: usize,
    tile: usize,
    mix: usize,
    value_stride: usize,
    n_members: usize,
    /// Tokens of the largest batch, and where the last one ends.
    n: usize,
    end: usize,
}

impl Sizes {
    /// For batches of up to `n` tokens that end before position `end`. `work` is the longest work memory of a product.
    pub(in crate::cpu) fn new(program: &Program, n: usize, end: usize, n_members: usize, work: usize) -> Sizes {
        let (hp, regs) = (&program.hparams, &program.registers);
        let value_stride = hp.head_dim.next_multiple_of(LANES);
        let mut registers = [0; N_REGISTERS];
        for reg in [Reg::H, Reg::Q, Reg::K, Reg::V, Reg::A, Reg::F] {
            registers[slot(reg)] = n * regs.width(reg);
        }
        let widest = regs.n_embd.max(regs.n_q).max(regs.n_ff).next_multiple_of(GROUP);
        Sizes {
            registers,
            groups: n * widest / GROUP,
            angles: program.ropes.iter().map(|rope| n * rope.freqs.len()).collect(),
            partial: hp.n_head.saturating_mul(end.div_ceil(CHUNK)).saturating_mul(value_stride + 2),
            work,
            tile: n.min(MAX_COLS) * LANES,
            mix: MAX_ROWS * value_stride,
            value_stride,
            n_members,
            n,
            end,
        }
    }

    /// Bytes of all of it.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        let shared = self.registers.iter().sum::<usize>() + 2 * self.angles.iter().sum::<usize>();
        let member = self.work + 2 * self.tile + self.mix + AttentionWork::len(self.value_stride);
        let floats = (shared + self.n_members * member).saturating_add(self.partial);
        floats.saturating_mul(4).saturating_add(self.groups * size_of::<ActGroup>())
    }
}

/// Registers and work memory, made for the usual batch and grown for a larger one.
pub(in crate::cpu) struct Scratch {
    sizes: Sizes,
    /// All registers but X, by [`slot`].
    pub(super) registers: [Vec<f32>; N_REGISTERS],
    /// The quantized input of the product at hand.
    pub(super) groups: Vec<ActGroup>,
    /// Cosines and sines, `[n_ropes][n_tokens][n_rot / 2]`.
    pub(super) angles: Vec<(Vec<f32>, Vec<f32>)>,
    /// Running results of queries: weighted values, then maximum and sum.
    pub(super) partial: Vec<f32>,
    pub(super) members: Vec<MemberScratch>,
}

/// Work memory of one thread.
pub(in crate::cpu) struct MemberScratch {
    pub(super) work: Vec<f32>,
    pub(super) tile: Vec<f32>,
    pub(super) tile2: Vec<f32>,
    pub(super) attention: AttentionWork,
    pub(super) mix: Vec<f32>,
}

impl Scratch {
    /// All of it, zeroed. The system gives pages as they are touched.
    pub(in crate::cpu) fn new(sizes: Sizes) -> Scratch {
        let zeros = |len: usize| vec![0.0f32; len];
        let member = || MemberScratch {
            work: zeros(sizes.work),
            tile: zeros(sizes.tile),
            tile2: zeros(sizes.tile),
            attention: AttentionWork::new(sizes.value_stride),
            mix: zeros(sizes.mix),
        };
        Scratch {
            registers: sizes.registers.map(zeros),
            groups: vec![ActGroup::default(); sizes.groups],
            angles: sizes.angles.iter().map(|len| (zeros(*len), zeros(*len))).collect(),
            partial: zeros(sizes.partial),
            members: (0..sizes.n_members).map(|_| member()).collect(),
            sizes,
        }
    }

    /// Bytes held.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        self.sizes.bytes()
    }

    /// Makes room for a batch of `n` tokens, and computes its rotation angles.
    pub(super) fn prepare(&mut self, program: &Program, start: usize, n: usize) {
        if n > self.sizes.n {
            let Sizes { end, n_members, work, .. } = self.sizes;
            *self = Scratch::new(Sizes::new(program, n, end, n_members, work));
        }
        for (rope, (cos, sin)) in program.ropes.iter().zip(&mut self.angles) {
            let half = rope.freqs.len();
            for t in 0..n {
                let at = t * half..(t + 1) * half;
                ops::rope_angles(rope, start + t, &mut cos[at.clone()], &mut sin[at]);
            }
        }
    }
}
