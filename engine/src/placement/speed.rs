//! How fast devices are, and the speed of a placement that follows from it.
//!
//! A token costs a device a fixed time per visit, a fixed time per step, and the time to read weights and cache. The
//! figures are measured on the spot ([`super::measure`]) with small programs of the same steps.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use tandem_loader::{Gguf, TensorInfo};
use tandem_models::{BlockKind, Program, Step, Weight, WeightRole};

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
    /// Bytes read per second: of weights by type name (`Q4_K`), of the cache by its type (`cache f16`). Weights count
    /// with their bytes in the file.
    pub rates: BTreeMap<String, f64>,
}

/// The name of a cache type's rate.
pub(super) fn cache_rate(kv_type: KvType) -> String {
    format!("cache {}", kv_type.name())
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

/// Names of the rates that predicting a program needs.
pub(super) fn rates_needed(gguf: &Gguf, program: &Program, kv_type: KvType) -> BTreeSet<String> {
    let matrices = program.weights.iter().filter_map(|w| Some((w, gguf.tensor(&w.tensor)?)));
    let matrices = matrices.filter(|(w, tensor)| matrix_bytes(program, w, tensor) > 0);
    let types = matrices.map(|(_, tensor)| tensor.ty.name().to_owned());
    types.chain([cache_rate(kv_type)]).collect()
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
            prediction.add(gguf, program, blocks.clone(), kv_type, speed(*device)?)?;
        }
        Some(prediction)
    }

    fn add(
        &mut self,
        gguf: &Gguf,
        program: &Program,
        blocks: Range<usize>,
        kv_type: KvType,
        speed: &DeviceSpeed,
    ) -> Option<()> {
        let parts = &program.blocks[blocks];
        let ends_in_logits = parts.iter().any(|b| b.kind == BlockKind::Head);
        let floats_out = if ends_in_logits { program.hparams.n_vocab } else { program.registers.n_embd };
        self.base += speed.visit + 4.0 * (program.registers.n_embd + floats_out) as f64 * speed.transfer;
        for weight in parts.iter().flat_map(|b| &b.weights).map(|id| program.weight(*id)) {
            let Some(tensor) = gguf.tensor(&weight.tensor) else { continue };
            let bytes = matrix_bytes(program, weight, tensor);
            if bytes > 0 {
                self.base += bytes as f64 / speed.rates.get(tensor.ty.name())?;
            }
        }
        let position = kv_type.bytes(program.kv_elements_per_position()) as f64;
        let cache = position / speed.rates.get(&cache_rate(kv_type))?;
        for step in parts.iter().flat_map(|b| &b.steps) {
            self.base += speed.step + if is_product(step) { speed.product } else { 0.0 };
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
