//! How fast devices are, and the speed of a placement that follows from it.
//!
//! A token costs a device a fixed time per visit, a fixed time per step, and the time to read weights and cache. The
//! figures are measured on the spot ([`super::measure`]) with small programs of the same steps.

use std::collections::BTreeMap;
use std::ops::Range;

use tandem_loader::{GgmlType, Gguf, TensorInfo};
use tandem_models::{Block, BlockKind, Program, Step, Weight, WeightRole};

use super::{Device, Placement};
use crate::model::KvType;

/// Measured figures of one device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeviceSpeed {
    /// Seconds of a visit: starting a parallel region, or a submission and its read-back.
    pub visit: f64,
    /// Seconds of a step, beside reading weights.
    pub step: f64,
    /// Seconds more of a step that reads matrices: until memory delivers at full speed, and until the last part is done.
    pub product: f64,
    /// Seconds per byte of activations that goes in or comes out.
    pub transfer: f64,
    /// Bytes read per second, by name of the [`Rate`]. Weights count with their bytes in the file.
    pub rates: BTreeMap<String, f64>,
}

impl DeviceSpeed {
    /// Whether these can be figures of a device at all: what was kept in a file may be anything.
    pub fn is_plausible(&self) -> bool {
        // Bytes per second that no device of the time reads.
        const TOO_FAST: f64 = 1e15;
        let times = [self.visit, self.step, self.product, self.transfer];
        times.iter().all(|time| time.is_finite() && *time >= 0.0)
            && self.rates.values().all(|rate| *rate > 0.0 && *rate < TOO_FAST)
    }
}

/// A speed of reading that depends on what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rate {
    /// Keys and values.
    Cache(KvType),
    /// Matrices of a type, of feed-forward parts with these widths: short rows keep some devices less busy than long ones.
    Weights(GgmlType, Shape, WorkingSet),
    /// An output head of a type: it is multiplied with what int8 leaves of its input too, and its best rows are found.
    Head(GgmlType, HeadShape, WorkingSet),
}

/// MiB that are read before the same byte is read again: a CPU's caches may hold a small model.
pub(super) type WorkingSet = usize;

/// That of a model on a device, in steps. Those of CPUs have limits: less is too little to measure, and more than the
/// larger one few caches hold. GPUs' caches hold less than what is always read there.
pub(super) fn working_set(gguf: &Gguf, program: &Program, device: Device) -> WorkingSet {
    const STEP: usize = 32;
    match device {
        Device::Gpu => 4 * STEP,
        Device::Cpu => {
            let is_matrix = |weight: &&Weight| match weight.role {
                WeightRole::Matrix | WeightRole::Experts { .. } => true,
                WeightRole::Table | WeightRole::Vector => false,
            };
            let tensors = program.weights.iter().filter(is_matrix).filter_map(|weight| gguf.tensor(&weight.tensor));
            let bytes: usize = tensors.map(|tensor| tensor.n_bytes()).sum();
            (bytes >> 20).next_multiple_of(STEP).clamp(STEP, 16 * STEP)
        }
    }
}

/// Widths of the residual stream and of the feed-forward hidden.
pub(super) type Shape = (usize, usize);
/// Width of the residual stream, and number of tokens.
pub(super) type HeadShape = (usize, usize);

/// Widths above these cost what they cost, byte for byte.
const LONG: Shape = (2048, 8192);

impl Rate {
    /// As it is called where figures are kept, as in `cache f16`, `Q4_K 2048x8192 of 512 MiB`, `head Q6_K 2048x128256 of 512
    /// MiB`.
    pub(super) fn name(self) -> String {
        match self {
            Rate::Cache(kv_type) => format!("cache {}", kv_type.name()),
            Rate::Weights(ty, (n_embd, n_ff), set) => format!("{} {n_embd}x{n_ff} of {set} MiB", ty.name()),
            Rate::Head(ty, (n_embd, n_vocab), set) => format!("head {} {n_embd}x{n_vocab} of {set} MiB", ty.name()),
        }
    }

    /// That of a matrix of a block.
    fn of(program: &Program, block: &Block, ty: GgmlType, set: WorkingSet) -> Rate {
        let regs = &program.registers;
        let whole = |n: usize, most: usize| n.clamp(1, most).next_multiple_of(ty.block_size());
        let n_embd = whole(regs.n_embd, LONG.0);
        match block.kind {
            BlockKind::Head => Rate::Head(ty, (n_embd, program.hparams.n_vocab), set),
            BlockKind::Embed | BlockKind::Attention(_) | BlockKind::FeedForward(_) => {
                Rate::Weights(ty, (n_embd, whole(regs.n_ff, LONG.1)), set)
            }
        }
    }
}

/// Whether a step multiplies with matrices.
pub(super) fn is_product(step: &Step) -> bool {
    match step {
        Step::Qkv { .. } | Step::Linear { .. } | Step::Glu { .. } | Step::Logits { .. } => true,
        Step::Route { .. } | Step::ExpertGlu { .. } | Step::ExpertDown { .. } => true,
        Step::Embed { .. } | Step::Norm { .. } | Step::HeadNorm { .. } | Step::SigmoidGate { .. } => false,
        Step::Rope { .. } | Step::StoreKv { .. } | Step::Attend { .. } => false,
    }
}

/// The rates of a device that predicting a program needs.
pub(super) fn rates_needed(gguf: &Gguf, program: &Program, kv_type: KvType, device: Device) -> Vec<Rate> {
    let set = working_set(gguf, program, device);
    let mut rates = vec![Rate::Cache(kv_type)];
    for block in &program.blocks {
        for (ty, _) in matrices(gguf, program, block) {
            let rate = Rate::of(program, block, ty, set);
            if !rates.contains(&rate) {
                rates.push(rate);
            }
        }
    }
    rates
}

/// The matrices of a block: their types, and the bytes that a token reads.
fn matrices<'a>(
    gguf: &'a Gguf,
    program: &'a Program,
    block: &'a Block,
) -> impl Iterator<Item = (GgmlType, usize)> + 'a {
    let weights = block.weights.iter().map(|id| program.weight(*id));
    let tensors = weights.filter_map(|weight| Some((weight, gguf.tensor(&weight.tensor)?)));
    let bytes = tensors.map(|(weight, tensor)| (tensor.ty, matrix_bytes(program, weight, tensor)));
    bytes.filter(|(_, bytes)| *bytes > 0)
}

/// Bytes of a weight in the file that one token reads as a product's matrix: of experts, those that it uses. Vectors and
/// rows of tables are too few to count.
fn matrix_bytes(program: &Program, weight: &Weight, tensor: &TensorInfo) -> usize {
    match weight.role {
        WeightRole::Matrix => tensor.n_bytes(),
        WeightRole::Experts { n_expert } => tensor.n_bytes() / n_expert * program.hparams.n_expert_used,
        WeightRole::Table | WeightRole::Vector => 0,
    }
}

/// The time a token is expected to take.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prediction {
    /// Seconds of a token with nothing before it.
    base: f64,
    /// Per attention: seconds for each position that it sees, and how many it sees at most.
    attention: Vec<(f64, Option<usize>)>,
}

impl Prediction {
    /// Of a placement; `None` where a figure was not measured.
    pub fn new<'a>(
        gguf: &Gguf,
        program: &Program,
        placement: &Placement,
        kv_type: KvType,
        speed: impl Fn(Device) -> Option<&'a DeviceSpeed>,
    ) -> Option<Prediction> {
        let mut prediction = Prediction::default();
        for (device, blocks) in &placement.runs {
            let set = working_set(gguf, program, *device);
            prediction.add(gguf, program, blocks.clone(), kv_type, (speed(*device)?, set))?;
        }
        Some(prediction)
    }

    fn add(
        &mut self,
        gguf: &Gguf,
        program: &Program,
        blocks: Range<usize>,
        kv_type: KvType,
        (speed, set): (&DeviceSpeed, WorkingSet),
    ) -> Option<()> {
        let parts = &program.blocks[blocks];
        // Of the head's results only the best come back, which is in its rate.
        let ways = if parts.iter().any(|b| b.kind == BlockKind::Head) { 1 } else { 2 };
        self.base += speed.visit + (4 * ways * program.registers.n_embd) as f64 * speed.transfer;
        for block in parts {
            for (ty, bytes) in matrices(gguf, program, block) {
                self.base += bytes as f64 / speed.rates.get(&Rate::of(program, block, ty, set).name())?;
            }
        }
        let position = kv_type.bytes(program.kv_elements_per_position()) as f64;
        let cache = position / speed.rates.get(&Rate::Cache(kv_type).name())?;
        for step in parts.iter().flat_map(|b| &b.steps) {
            // What the head's product costs beside its bytes is in its rate.
            let product = is_product(step) && !matches!(step, Step::Logits { .. });
            self.base += speed.step + if product { speed.product } else { 0.0 };
            if let Step::Attend { window, .. } = step {
                self.attention.push((cache, *window));
            }
        }
        Some(())
    }

    /// Seconds of a token with `depth` tokens before it.
    pub fn seconds(&self, depth: usize) -> f64 {
        let seen = |window: Option<usize>| window.map_or(depth, |w| depth.min(w)) as f64;
        self.base + self.attention.iter().map(|(cost, window)| cost * seen(*window)).sum::<f64>()
    }

    /// Tokens generated per second with `depth` tokens before them.
    pub fn tokens_per_second(&self, depth: usize) -> f64 {
        1.0 / self.seconds(depth)
    }
}
