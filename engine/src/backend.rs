//! The seam between a program and the device it runs on.

use std::ops::Range;
use std::time::Duration;

use tandem_models::Reg;

use crate::error::Result;
use crate::sampler::Candidate;

/// Consecutive tokens of one sequence, evaluated together.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// Position of the first token in the sequence: as many are in the cache before it.
    pub start: usize,
    /// Rows of the batch whose logits are wanted.
    pub outputs: (usize, usize),
}

impl Batch<'_> {
    /// Rows of the batch whose logits are wanted.
    pub fn output_rows(&self) -> Range<usize> {
        self.outputs.0..self.outputs.1
    }
}

/// What crosses between devices: the residual stream, and at the end the logits.
#[derive(Debug, Clone, Default)]
pub struct Hidden {
    /// The residual stream X, `[n_tokens, n_embd]`, row-major.
    pub x: Vec<f32>,
    /// Logits of the output rows, `[n_outputs, n_vocab]`, row-major; filled by the head block.
    pub logits: Vec<f32>,
    /// How many of the most likely tokens are enough, where there is one output row; `None`: all logits are wanted.
    pub enough: Option<usize>,
    /// The most likely tokens, most likely first, of equal ones the lowest id. A backend that can find them fills this
    /// and leaves `logits` empty, where they are enough; otherwise this is empty.
    pub best: Vec<Candidate>,
}

/// Bytes a backend holds, by use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Weights, as stored on the device.
    pub weights: usize,
    /// KV cache of the whole context.
    pub kv_cache: usize,
    /// Registers and work buffers.
    pub scratch: usize,
}

/// Time the host spends on handing work to a device and taking results from it, without the wait in between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostTime {
    /// In which the device has nothing to do.
    pub alone: Duration,
    /// In which the device computes: what comes next is recorded meanwhile.
    pub meanwhile: Duration,
}

impl HostTime {
    /// Both times of both.
    pub fn plus(self, other: HostTime) -> HostTime {
        HostTime { alone: self.alone + other.alone, meanwhile: self.meanwhile + other.meanwhile }
    }

    /// What was added after `before`.
    pub fn since(self, before: HostTime) -> HostTime {
        HostTime {
            alone: self.alone.saturating_sub(before.alone),
            meanwhile: self.meanwhile.saturating_sub(before.meanwhile),
        }
    }
}

/// Where blocks run. A backend loads the weights of the blocks placed on it when it is made, and keeps their KV cache.
///
/// There is nothing per-operation here on purpose: with whole blocks a backend can keep one parallel region (or one
/// command encoder) open, and only X crosses between devices.
pub trait Backend: Send {
    /// Name for people.
    fn name(&self) -> &str;

    /// What people should know of how it was set up, a line each.
    fn warnings(&self) -> &[String] {
        &[]
    }

    /// Runs `blocks` (indices into the program's blocks, all of them loaded here) over the batch.
    fn run(&mut self, blocks: Range<usize>, batch: &Batch<'_>, hidden: &mut Hidden) -> Result<()>;

    /// Bytes held.
    fn memory(&self) -> MemoryReport;

    /// Time the host has spent so far on a device's work.
    fn host_time(&self) -> HostTime {
        HostTime::default()
    }

    /// What the last run left in a register: the first `rows` rows of `width` floats, which are those of tokens or, as
    /// experts leave them in F, of (token, expert) pairs. Runs say nothing of registers but X: this is for finding the step
    /// where two backends part.
    ///
    /// # Errors
    /// A device that fails.
    fn register(&mut self, reg: Reg, rows: usize, width: usize, of_pairs: bool) -> Result<Vec<f32>>;
}
