//! Two devices side by side: do they compute the same, and where do they part if not?
//!
//! Every block runs on both devices from the same input, the CPU's, so that an error shows where it arises. In the first
//! block that diverges, growing parts of it are run (`prefixes`) and the registers compared, which names the step.

use std::ops::Range;
use std::sync::Arc;

use tandem_loader::Gguf;
use tandem_models::{Block, BlockKind, Program, Reg, Step};

use crate::backend::{Backend, Batch, Hidden};
use crate::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::model::{LoadOptions, Precision};
use crate::placement::{Setup, adapter};

/// Most tokens that are compared: the logits of all of them are held at once, for both devices.
pub const MAX_TOKENS: usize = 257;

/// How far a block's two results are apart: the normalized mean square error, with the CPU's as the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockError {
    /// The block.
    pub kind: BlockKind,
    /// Of all tokens but the last, as one batch.
    pub batch: f64,
    /// Of the last token after them, by itself: single tokens take other kernels.
    pub single: f64,
}

impl BlockError {
    /// The larger one.
    pub fn worst(&self) -> f64 {
        self.batch.max(self.single)
    }
}

/// The first place where the devices part.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// The block.
    pub block: BlockKind,
    /// The step in it, from 0, and its name; `None` where only the block as a whole is above the limit.
    pub step: Option<(usize, &'static str)>,
    /// Error of what the step (or block) computes.
    pub error: f64,
}

/// The error that rounding explains.
///
/// Exact: sums of f32 in another order; a wrong kernel is far above. Fast: activations are rounded to int8 on both
/// devices, and values that are equal up to f32 rounding may still fall to different sides. Were all roundings of a
/// product independent, the error would be twice that of rounding to int8: 2 * (1/127)^2 / 12 of the square of the
/// group's largest value, which is about 3 standard deviations, so 1e-4; a block has up to three products in a row.
pub fn limit(precision: Precision) -> f64 {
    match precision {
        Precision::Fast => 3e-4,
        Precision::Exact => 1e-8,
    }
}

/// Tokens to compare with where nothing else is given: 24 and one, spread over the vocabulary.
pub fn spread_tokens(n_vocab: usize) -> Vec<u32> {
    (0..25).map(|i| ((i * 7919 + 11) % n_vocab.max(1)) as u32).collect()
}

/// Compares the two devices block by block, and finds where they part. `tokens` are at least 2, and at most
/// [`MAX_TOKENS`] of them are used. `report` hears of every block, and may stop the comparison by an error.
///
/// # Errors
/// No GPU, or nothing placed on it; a model that cannot be loaded; a block that the GPU does not support; a token outside the vocabulary; a device
/// that fails; what `report` says.
pub fn verify(
    gguf: &Arc<Gguf>,
    options: &LoadOptions,
    tokens: &[u32],
    limit: f64,
    report: &mut dyn FnMut(&BlockError) -> Result<()>,
) -> Result<Option<Divergence>> {
    let n_ctx = options.n_ctx.unwrap_or(0).max(tokens.len().min(MAX_TOKENS));
    let setup = Setup::new(gguf, &LoadOptions { n_ctx: Some(n_ctx), ..options.clone() })?;
    verify_with(gguf, &setup, tokens, limit, report)
}

/// As [`verify`], with the devices set up.
///
/// # Errors
/// As for [`verify`].
pub fn verify_with(
    gguf: &Arc<Gguf>,
    setup: &Setup,
    tokens: &[u32],
    limit: f64,
    report: &mut dyn FnMut(&BlockError) -> Result<()>,
) -> Result<Option<Divergence>> {
    if setup.on_gpu(0..setup.program.blocks.len()).is_empty() {
        return Err(Error::Placement("nothing is placed on the GPU, so there is nothing to compare".to_owned()));
    }
    let mut passes = Pass::both(&setup.program, &tokens[..tokens.len().min(MAX_TOKENS)])?;
    let mut found = None;
    let mut start = 0;
    while start < setup.program.blocks.len() {
        let part = setup.fitting(gguf, start)?;
        let mut devices = Devices::load(gguf, &setup.program, part.clone(), &setup.on_gpu(part.clone()), setup)?;
        for block in part.clone() {
            if !setup.is_on_gpu(block) {
                passes.iter_mut().try_for_each(|pass| devices.run_on_cpu(block, pass))?;
                continue;
            }
            let before = passes.clone();
            let [batch, single] = passes.each_mut().map(|pass| devices.run(block, pass));
            let error = BlockError { kind: setup.program.blocks[block].kind, batch: batch?, single: single? };
            report(&error)?;
            if found.is_none() && is_above(error.worst(), limit) {
                found = Some((block, before, error.worst()));
            }
        }
        start = part.end;
    }
    let Some((block, before, error)) = found else { return Ok(None) };
    let kind = setup.program.blocks[block].kind;
    let step = first_step(gguf, setup, block, before, limit)?;
    Ok(Some(match step {
        Some((step, name, error)) => Divergence { block: kind, step: Some((step, name)), error },
        None => Divergence { block: kind, step: None, error },
    }))
}

/// Whether an error is above the limit. One that is no number is.
fn is_above(error: f64, limit: f64) -> bool {
    error.is_nan() || error > limit
}

/// Tokens evaluated together, and what goes into the next block.
#[derive(Debug, Clone)]
struct Pass {
    tokens: Vec<u32>,
    start: usize,
    hidden: Hidden,
}

impl Pass {
    /// All tokens but the last, and the last.
    fn both(program: &Program, tokens: &[u32]) -> Result<[Pass; 2]> {
        let n_vocab = program.hparams.n_vocab;
        if let Some(token) = tokens.iter().copied().find(|token| *token as usize >= n_vocab) {
            return Err(Error::BadToken { token, n_vocab });
        }
        let last = tokens.len().saturating_sub(1);
        let pass = |at: Range<usize>| Pass { start: at.start, tokens: tokens[at].to_vec(), hidden: Hidden::default() };
        Ok([pass(0..last), pass(last..tokens.len())])
    }
}

/// The same blocks on both devices.
struct Devices {
    program: Arc<Program>,
    cpu: CpuBackend,
    gpu: Box<dyn Backend>,
}

impl Devices {
    /// Loads blocks on the CPU, and those of `on_gpu` on the GPU.
    fn load(
        gguf: &Arc<Gguf>,
        program: &Arc<Program>,
        blocks: Range<usize>,
        on_gpu: &[Range<usize>],
        setup: &Setup,
    ) -> Result<Devices> {
        let gpu = adapter::load(gguf, program, on_gpu, &setup.gpu, &mut |_| ())?;
        let cpu = CpuBackend::load(gguf, program, &[blocks], setup.cpu.clone(), &mut |_| ())?;
        Ok(Devices { program: program.clone(), cpu, gpu })
    }

    /// Runs a block on both devices, and says how far they are apart. The CPU's result is what goes into the next block.
    fn run(&mut self, block: usize, pass: &mut Pass) -> Result<f64> {
        let other = self.run_both(block, pass)?;
        Ok(match self.program.blocks[block].kind {
            BlockKind::Head => nmse(&pass.hidden.logits, &other.logits),
            BlockKind::Embed | BlockKind::Attention(_) | BlockKind::FeedForward(_) => nmse(&pass.hidden.x, &other.x),
        })
    }

    /// Runs a block on the CPU, and on the GPU, whose result is returned.
    fn run_both(&mut self, block: usize, pass: &mut Pass) -> Result<Hidden> {
        let mut other = pass.hidden.clone();
        let batch = Batch { tokens: &pass.tokens, start: pass.start, outputs: (0, pass.tokens.len()) };
        self.gpu.run(block..block + 1, &batch, &mut other)?;
        self.run_on_cpu(block, pass)?;
        Ok(other)
    }

    fn run_on_cpu(&mut self, block: usize, pass: &mut Pass) -> Result<()> {
        let batch = Batch { tokens: &pass.tokens, start: pass.start, outputs: (0, pass.tokens.len()) };
        self.cpu.run(block..block + 1, &batch, &mut pass.hidden)
    }

    /// How far the two are apart in what was written to one place by the run that left these results.
    fn error(&mut self, place: Place, pass: &Pass, other: &Hidden) -> Result<f64> {
        Ok(match place {
            Place::Logits => nmse(&pass.hidden.logits, &other.logits),
            Place::Register { reg: Reg::X, .. } => nmse(&pass.hidden.x, &other.x),
            Place::Register { reg, of_pairs, width } => {
                let per_token = if of_pairs { self.program.hparams.n_expert_used } else { 1 };
                let n = pass.tokens.len() * per_token;
                nmse(&self.cpu.register(reg, n, width, of_pairs)?, &self.gpu.register(reg, n, width, of_pairs)?)
            }
        })
    }
}

/// The first step of a block whose results differ, in the order of the steps, with its error.
fn first_step(
    gguf: &Arc<Gguf>,
    setup: &Setup,
    block: usize,
    before: [Pass; 2],
    limit: f64,
) -> Result<Option<(usize, &'static str, f64)>> {
    let program = Arc::new(prefixes(&setup.program, block));
    let steps = &setup.program.blocks[block].steps;
    let whole = 0..steps.len();
    let mut devices = Devices::load(gguf, &program, whole.clone(), &[whole], setup)?;
    for pass in &before {
        for last in 0..steps.len() {
            let mut pass = pass.clone();
            let other = devices.run_both(last, &mut pass)?;
            // A step may be wrong only together with its successors, with which a device fuses it: all are looked at.
            for (s, step) in steps[..=last].iter().enumerate() {
                let later: Vec<Place> = steps[s + 1..=last].iter().flat_map(|step| places(step, &program)).collect();
                for place in places(step, &program).into_iter().filter(|p| !later.iter().any(|l| l.is_same(p))) {
                    let error = devices.error(place, &pass, &other)?;
                    if is_above(error, limit) {
                        return Ok(Some((s, name(step), error)));
                    }
                }
            }
        }
    }
    Ok(None)
}

/// A program whose blocks are the beginnings of one block: its first step, its first two, and so on.
fn prefixes(program: &Program, block: usize) -> Program {
    let Block { kind, steps, weights } = &program.blocks[block];
    let prefix = |n: usize| Block {
        // Only with its last step does the head give logits.
        kind: if *kind == BlockKind::Head && n < steps.len() { BlockKind::FeedForward(0) } else { *kind },
        steps: steps[..n].to_vec(),
        weights: weights.clone(),
    };
    Program { blocks: (1..=steps.len()).map(prefix).collect(), ..program.clone() }
}

/// Where a step's result is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Logits,
    Register {
        reg: Reg,
        /// Rows are those of (token, expert) pairs, and not of tokens.
        of_pairs: bool,
        /// Floats of a row.
        width: usize,
    },
}

impl Place {
    fn is_same(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::Logits, Place::Logits) => true,
            (Place::Register { reg: a, .. }, Place::Register { reg: b, .. }) => a == b,
            (Place::Logits, Place::Register { .. }) | (Place::Register { .. }, Place::Logits) => false,
        }
    }
}

/// What a step writes. The cache cannot be looked at: a wrong one shows in the attention over it.
fn places(step: &Step, program: &Program) -> Vec<Place> {
    let hidden = |of_pairs: bool, width: usize| Place::Register { reg: Reg::F, of_pairs, width };
    let whole = |reg: Reg| Place::Register { reg, of_pairs: false, width: program.registers.width(reg) };
    match step {
        Step::Embed { .. } => vec![whole(Reg::X)],
        Step::Norm { output, .. } | Step::Linear { output, .. } | Step::ExpertDown { output, .. } => {
            vec![whole(*output)]
        }
        Step::Qkv { .. } => vec![whole(Reg::Q), whole(Reg::K), whole(Reg::V)],
        Step::HeadNorm { .. } | Step::Rope { .. } => vec![whole(Reg::Q), whole(Reg::K)],
        Step::StoreKv { .. } => vec![],
        Step::Attend { .. } => vec![whole(Reg::A)],
        Step::Glu { gate, .. } => vec![hidden(false, program.weight(gate.weight).n_out)],
        Step::Route { .. } => vec![whole(Reg::R)],
        Step::ExpertGlu { gate, .. } => vec![hidden(true, program.weight(*gate).n_out)],
        Step::SigmoidGate { n_ff, .. } => vec![hidden(false, *n_ff)],
        Step::Logits { .. } => vec![Place::Logits],
    }
}

/// A step's name, for people.
fn name(step: &Step) -> &'static str {
    match step {
        Step::Embed { .. } => "embed",
        Step::Norm { .. } => "norm",
        Step::Qkv { .. } => "qkv",
        Step::HeadNorm { .. } => "head norm",
        Step::Rope { .. } => "rope",
        Step::StoreKv { .. } => "store kv",
        Step::Attend { .. } => "attend",
        Step::Linear { .. } => "linear",
        Step::Glu { .. } => "glu",
        Step::Route { .. } => "route",
        Step::ExpertGlu { .. } => "expert glu",
        Step::ExpertDown { .. } => "expert down",
        Step::SigmoidGate { .. } => "sigmoid gate",
        Step::Logits { .. } => "logits",
    }
}

/// Normalized mean square error: `sum((a - b)^2) / sum(a^2)`, in f64.
fn nmse(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = a.iter().map(|a| square(f64::from(*a))).sum();
    if difference == 0.0 { 0.0 } else { difference / size }
}
