//! While one member works alone, or waits for another, the memory would rest: it is asked for the weights that come next.

use tandem_models::{Step, WeightId};

use super::super::team::Member;
use super::Exec;

/// Most bytes that a member asks for ahead: they should still be in its L2 cache when it multiplies them.
const AHEAD: usize = 256 << 10;

impl Exec<'_> {
    /// Tells a member, before the first of some steps, which weights it is likely to multiply first. (The time of many
    /// tokens does not depend on how fast weights are read.)
    pub(super) fn read_ahead<'s>(&self, steps: impl Iterator<Item = &'s Step>, m: &Member<'_>) {
        if self.n() > 1 || !m.waits() {
            return;
        }
        let next = steps.map(weights).find(|weights| *weights != Weights::None);
        let Some(Weights::Known { first, more }) = next else { return };
        let matrix = self.matrices(first);
        let n_panels = |id: &WeightId| self.matrices(*id).n_panels();
        let total = n_panels(&first) + more.iter().flatten().map(n_panels).sum::<usize>();
        let start = m.first_run(total).start.min(matrix.n_panels());
        let bytes = matrix.panel_bytes(self.arena, start..matrix.n_panels());
        m.read_ahead(&bytes[..bytes.len().min(AHEAD)]);
    }
}

/// What a step multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weights {
    /// Nothing of size.
    None,
    /// A matrix, and those whose panels are claimed after its own.
    Known { first: WeightId, more: [Option<WeightId>; 2] },
    /// Experts that are not known before the step.
    Chosen,
}

fn weights(step: &Step) -> Weights {
    match step {
        Step::Qkv { q, k, v } => Weights::Known { first: q.weight, more: [Some(k.weight), Some(v.weight)] },
        Step::Linear { linear, .. }
        | Step::Glu { gate: linear, .. }
        | Step::Route { router: linear, .. }
        | Step::Logits { linear, .. } => Weights::Known { first: linear.weight, more: [None, None] },
        Step::ExpertGlu { .. } | Step::ExpertDown { .. } => Weights::Chosen,
        Step::Embed { .. }
        | Step::Norm { .. }
        | Step::HeadNorm { .. }
        | Step::Rope { .. }
        | Step::StoreKv { .. }
        | Step::Attend { .. }
        | Step::SigmoidGate { .. } => Weights::None,
    }
}
