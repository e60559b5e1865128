//! Registers and work memory of the CPU backend.

use tandem_models::{Program, Reg};

use super::super::attention::{AttentionWork, CHUNK, MAX_QUERIES};
use super::super::isa::LANES;
use super::super::matmul::ActGroup;
use super::super::ops;
use super::super::pack::GROUP;
use super::MAX_COLS;
use super::experts::Routing;

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

/// Registers and work memory, grown to the largest batch seen.
pub(in crate::cpu) struct Scratch {
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
    pub(super) work: Vec<f32>,
    pub(super) tile: Vec<f32>,
    pub(super) tile2: Vec<f32>,
    pub(super) attention: AttentionWork,
    pub(super) mix: Vec<f32>,
}

impl Scratch {
    pub(in crate::cpu) fn new(n_members: usize, work_len: usize, attention: impl Fn() -> AttentionWork) -> Scratch {
        let member = || MemberScratch {
            work: vec![0.0; work_len],
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
            routing: Routing::default(),
            members: (0..n_members).map(|_| member()).collect(),
        }
    }

    /// Bytes held.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        let floats: usize = self.registers.iter().map(Vec::len).sum::<usize>()
            + self.partial.len()
            + self.angles.iter().map(|(c, s)| c.len() + s.len()).sum::<usize>();
        let members = self
            .members
            .iter()
            .map(|m| 4 * (m.work.len() + m.tile.len() + m.tile2.len() + m.mix.len()) + m.attention.bytes());
        4 * floats + std::mem::size_of_val(&*self.groups) + self.routing.bytes() + members.sum::<usize>()
    }

    /// Makes room for a batch of `n` tokens, and computes its rotation angles.
    pub(super) fn prepare(&mut self, program: &Program, start: usize, n: usize) {
        let grow = |v: &mut Vec<f32>, len: usize| v.resize(len.max(v.len()), 0.0);
        let regs = &program.registers;
        for reg in [Reg::H, Reg::Q, Reg::K, Reg::V, Reg::A, Reg::F, Reg::R] {
            grow(&mut self.registers[slot(reg)], n * regs.width(reg));
        }
        // The head quantizes its input to twice as many columns.
        let widest = (2 * regs.n_embd).max(regs.n_q).max(regs.n_ff).next_multiple_of(GROUP);
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
        self.routing.prepare(n, hp.n_expert_used, regs.n_expert);
        let stride = hp.head_dim.next_multiple_of(LANES);
        let n_chunks = (start + n).div_ceil(CHUNK);
        if n == 1 {
            grow(&mut self.partial, hp.n_head * n_chunks * (stride + 2));
        }
        for member in &mut self.members {
            grow(&mut member.tile, (2 * n).min(MAX_COLS) * LANES);
            grow(&mut member.tile2, n.min(MAX_COLS) * LANES);
            grow(&mut member.mix, MAX_QUERIES * stride);
        }
    }
}
