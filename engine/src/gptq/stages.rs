//! Which matrices of a block have the same input.

use tandem_models::{Block, Program, Reg, Step, WeightId, WeightRole};

/// Matrices of a block that have the same input.
pub(super) struct Stage {
    /// The step that multiplies it.
    pub(super) step: usize,
    pub(super) input: Reg,
    pub(super) matrices: Vec<WeightId>,
    pub(super) experts: bool,
}

/// The stages of a block, in order.
pub(super) fn stages(block: &Block, program: &Program) -> Vec<Stage> {
    let tables: Vec<&str> =
        program.weights.iter().filter(|w| w.role == WeightRole::Table).map(|w| w.tensor.as_str()).collect();
    let stage = |(step, s): (usize, &Step)| {
        let (input, matrices, experts) = match s {
            Step::Qkv { q, k, v } => (Reg::H, vec![q.weight, k.weight, v.weight], false),
            Step::Linear { linear, input, .. } => (*input, vec![linear.weight], false),
            Step::Glu { gate, up, .. } => (Reg::H, vec![gate.weight, up.weight], false),
            Step::Route { router, .. } => (Reg::H, vec![router.weight], false),
            Step::Logits { linear, .. } => (Reg::H, vec![linear.weight], false),
            Step::ExpertGlu { gate, up, .. } => (Reg::H, vec![*gate, *up], true),
            Step::ExpertDown { down, .. } => (Reg::F, vec![*down], true),
            Step::Embed { .. }
            | Step::Norm { .. }
            | Step::HeadNorm { .. }
            | Step::Rope { .. }
            | Step::StoreKv { .. }
            | Step::Attend { .. }
            | Step::SigmoidGate { .. } => return None,
        };
        // A tied output is done with the embedding.
        let matrices: Vec<WeightId> =
            matrices.into_iter().filter(|id| !tables.contains(&program.weight(*id).tensor.as_str())).collect();
        (!matrices.is_empty()).then_some(Stage { step, input, matrices, experts })
    };
    block.steps.iter().enumerate().filter_map(stage).collect()
}
