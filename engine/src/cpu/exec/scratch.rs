//! Registers and work memory of the CPU backend.

use tandem_models::{Program, Reg};

use super::super::attention::{AttentionWork, CHUNK, MAX_QUERIES};
use super::super::isa::LANES;
use super::super::matmul::ActGroup;
use super::super::ops;
use super::super::pack::GROUP;
use super::MAX_COLS;
use super::experts::{Routing, RoutingSizes};

/// Number of registers.
pub(super) const N_REGISTERS: usize = 8;

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
        Reg::R => 7,
    }
}

/// How long each part of the work memory is, in elements: what is allocated, and what the ledger counts.
#[derive(Debug, Clone)]
pub(in crate::cpu) struct Sizes {
    /// Tokens of the largest batch, and where the last one ends.
    n: usize,
    end: usize,
    registers: [usize; N_REGISTERS],
    groups: usize,
    /// Of each member.
    member_groups: usize,
    /// By rope.
    angles: Vec<usize>,
    partial: usize,
    routing: RoutingSizes,
    n_members: usize,
    /// Of each member.
    work: usize,
    tile: usize,
    tile2: usize,
    mix: usize,
    head_dim: usize,
}

impl Sizes {
    /// For batches of up to `n` tokens that end before position `end`. `work` is the longest work memory of a product.
    pub(in crate::cpu) fn new(program: &Program, n: usize, end: usize, n_members: usize, work: usize) -> Sizes {
        let (hp, regs) = (&program.hparams, &program.registers);
        let value_stride = hp.head_dim.next_multiple_of(LANES);
        let mut registers = [0; N_REGISTERS];
        for reg in [Reg::H, Reg::Q, Reg::K, Reg::V, Reg::A, Reg::F, Reg::R] {
            registers[slot(reg)] = n * regs.width(reg);
        }
        // The head quantizes its input to twice as many columns.
        let widest = (2 * regs.n_embd).max(regs.n_q).max(regs.n_ff).next_multiple_of(GROUP);
        Sizes {
            n,
            end,
            registers,
            groups: n * widest / GROUP,
            member_groups: widest / GROUP,
            angles: program.ropes.iter().map(|rope| n * rope.freqs.len()).collect(),
            partial: hp.n_head.saturating_mul(end.div_ceil(CHUNK)).saturating_mul(value_stride + 2),
            routing: RoutingSizes { rows: n * hp.n_expert_used, experts: regs.n_expert },
            n_members,
            work,
            tile: (2 * n).min(MAX_COLS) * LANES,
            tile2: n.min(MAX_COLS) * LANES,
            mix: MAX_QUERIES * value_stride,
            head_dim: hp.head_dim,
        }
    }

    /// Bytes of all of it.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        let shared = self.registers.iter().sum::<usize>() + 2 * self.angles.iter().sum::<usize>();
        let groups = size_of::<ActGroup>();
        let member = 4 * (self.work + self.tile + self.tile2 + self.mix)
            + self.member_groups * groups
            + AttentionWork::new(self.head_dim).bytes();
        let fixed = 4 * shared + self.groups * groups + self.routing.bytes() + self.n_members * member;
        self.partial.saturating_mul(4).saturating_add(fixed)
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
    pub(super) routing: Routing,
    pub(super) members: Vec<MemberScratch>,
}

/// Work memory of one thread.
pub(in crate::cpu) struct MemberScratch {
    /// The quantized input, where it is a single row.
    pub(super) groups: Vec<ActGroup>,
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
            groups: vec![ActGroup::default(); sizes.member_groups],
            work: zeros(sizes.work),
            tile: zeros(sizes.tile),
            tile2: zeros(sizes.tile2),
            attention: AttentionWork::new(sizes.head_dim),
            mix: zeros(sizes.mix),
        };
        Scratch {
            registers: sizes.registers.map(zeros),
            groups: vec![ActGroup::default(); sizes.groups],
            angles: sizes.angles.iter().map(|len| (zeros(*len), zeros(*len))).collect(),
            partial: zeros(sizes.partial),
            routing: Routing::new(sizes.routing),
            members: (0..sizes.n_members).map(|_| member()).collect(),
            sizes,
        }
    }

    /// Bytes held.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        self.sizes.bytes()
    }

    /// A register's rows, as the last batch left them; X is the caller's.
    pub(in crate::cpu) fn register(&self, reg: Reg) -> &[f32] {
        &self.registers[slot(reg)]
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
