//! How and where a model runs: backends, placement, KV cache, sampler, sessions.

pub mod sampler;
