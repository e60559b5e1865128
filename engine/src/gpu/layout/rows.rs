//! Where registers and intermediate results lie: buffers of rows.

use tandem_models::{Linear, Program, Reg, Step, WeightId};
use tandem_shaders::GROUP;

/// Buffers of activations. Q, K and V lie side by side in the rows of one, gate and up projection in those of another,
/// so that one product can write them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::gpu) enum Buf {
    X,
    H,
    Qkv,
    A,
    GateUp,
    F,
    /// Routing: logits, then weights of the experts.
    R,
    /// What experts made of their hidden, before it is summed.
    Made,
    Logits,
}

/// Where rows of activations lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gpu) struct Rows {
    pub(in crate::gpu) buf: Buf,
    /// First column.
    pub(in crate::gpu) column: usize,
    /// Floats from one row to the next.
    pub(in crate::gpu) stride: usize,
    /// Rows of a token: as many as it uses experts, where each of them has its own.
    pub(in crate::gpu) per_token: usize,
}

/// The part of a buffer where a register's rows are.
pub(in crate::gpu) fn rows_of(program: &Program, reg: Reg) -> Rows {
    let regs = &program.registers;
    let (buf, column) = match reg {
        Reg::X => (Buf::X, 0),
        Reg::H => (Buf::H, 0),
        Reg::Q => (Buf::Qkv, 0),
        Reg::K => (Buf::Qkv, regs.n_q),
        Reg::V => (Buf::Qkv, regs.n_q + regs.n_kv),
        Reg::A => (Buf::A, 0),
        Reg::F => (Buf::F, 0),
        Reg::R => (Buf::R, 0),
    };
    Rows { buf, column, stride: stride(program, buf), per_token: 1 }
}

/// Rows of `width` elements, one for each (token, expert) pair.
pub(in crate::gpu) fn pair_rows(program: &Program, buf: Buf, width: usize) -> Rows {
    let stride = width.next_multiple_of(GROUP);
    Rows { buf, column: 0, stride, per_token: program.hparams.n_expert_used }
}

/// Floats from one row of a buffer to the next: a multiple of 32, so that rows are whole groups of `vec4`s. Where rows
/// are those of (token, expert) pairs, [`pair_rows`] tells.
pub(in crate::gpu) fn stride(program: &Program, buf: Buf) -> usize {
    let regs = &program.registers;
    let width = match buf {
        Buf::X | Buf::H | Buf::Made => regs.n_embd,
        Buf::Qkv => regs.n_q + 2 * regs.n_kv,
        Buf::A => regs.n_q,
        Buf::GateUp => 2 * regs.n_ff,
        Buf::F => regs.n_ff,
        // Only read one by one.
        Buf::R => return regs.n_expert,
        Buf::Logits => return program.hparams.n_vocab,
    };
    width.next_multiple_of(GROUP)
}

/// The matrices of a step, in the order of the columns they write.
pub(super) fn linears(step: &Step) -> Vec<Linear> {
    let plain = |weight: &WeightId| Linear { weight: *weight, bias: None, scale: 1.0 };
    match step {
        Step::Qkv { q, k, v } => vec![*q, *k, *v],
        Step::Glu { gate, up, .. } => vec![*gate, *up],
        Step::Linear { linear, .. } | Step::Logits { linear, .. } => vec![*linear],
        Step::Route { router, .. } => vec![*router],
        Step::ExpertGlu { gate, up, .. } => vec![plain(gate), plain(up)],
        Step::ExpertDown { down, .. } => vec![plain(down)],
        Step::Embed { .. }
        | Step::Norm { .. }
        | Step::HeadNorm { .. }
        | Step::Rope { .. }
        | Step::StoreKv { .. }
        | Step::SigmoidGate { .. }
        | Step::Attend { .. } => vec![],
    }
}

/// The vectors of a step, but for biases.
pub(super) fn vectors(step: &Step) -> Vec<WeightId> {
    match step {
        Step::Norm { norm, .. } => vec![norm.weight],
        Step::HeadNorm { q, k } => vec![q.weight, k.weight],
        Step::SigmoidGate { weight, .. } => vec![*weight],
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
        | Step::Logits { .. } => vec![],
    }
}

/// The buffers a step reads or writes, with the floats of each per token.
pub(super) fn buffers(step: &Step, program: &Program) -> Vec<(Buf, usize)> {
    let of = |buf: Buf| (buf, stride(program, buf));
    let reg = |reg: &Reg| of(rows_of(program, *reg).buf);
    let pairs = |buf: Buf, width: usize| {
        let rows = pair_rows(program, buf, width);
        (buf, rows.per_token * rows.stride)
    };
    match step {
        Step::Embed { .. } => vec![of(Buf::X)],
        Step::Norm { input, output, .. } | Step::Linear { input, output, .. } => vec![reg(input), reg(output)],
        Step::Qkv { .. } => vec![of(Buf::H), of(Buf::Qkv)],
        Step::HeadNorm { .. } | Step::Rope { .. } | Step::StoreKv { .. } => vec![of(Buf::Qkv)],
        Step::Attend { .. } => vec![of(Buf::Qkv), of(Buf::A)],
        Step::Glu { .. } => vec![of(Buf::H), of(Buf::GateUp), of(Buf::F)],
        Step::Logits { .. } => vec![of(Buf::H)],
        Step::Route { .. } => vec![of(Buf::H), of(Buf::R)],
        Step::ExpertGlu { gate, .. } => {
            let n_ff = program.weight(*gate).n_out;
            vec![of(Buf::H), pairs(Buf::GateUp, 2 * n_ff), pairs(Buf::F, n_ff)]
        }
        Step::ExpertDown { down, output, .. } => {
            let n_ff = program.weight(*down).n_in;
            vec![pairs(Buf::F, n_ff), pairs(Buf::Made, program.registers.n_embd), reg(output)]
        }
        Step::SigmoidGate { .. } => vec![of(Buf::H), of(Buf::F)],
    }
}
