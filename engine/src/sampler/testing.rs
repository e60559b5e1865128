//! What the samplers' tests share.

use super::{Candidate, Candidates, SamplerChain, SamplerKind, SamplerParams, Setup};

/// Parameters with every sampler off but the draw.
pub(super) fn params() -> SamplerParams {
    SamplerParams { temp: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerParams::default() }
}

pub(super) fn chain(params: &SamplerParams, n_vocab: usize) -> SamplerChain {
    SamplerChain::new(params, n_vocab).unwrap()
}

/// What one sampler makes of `logits`.
pub(super) fn applied(kind: &SamplerKind, params: &SamplerParams, logits: &[f32]) -> Vec<Candidate> {
    let mut sampler = (kind.build)(params, &Setup { n_vocab: logits.len(), seed: 0 }).unwrap().expect("is on");
    let mut candidates = Candidates::default();
    candidates.load(logits);
    sampler.apply(&mut candidates);
    candidates.list().clone()
}

/// Ids of what one sampler keeps of `logits`.
pub(super) fn kept(kind: &SamplerKind, params: &SamplerParams, logits: &[f32]) -> Vec<u32> {
    applied(kind, params, logits).iter().map(|c| c.id).collect()
}
