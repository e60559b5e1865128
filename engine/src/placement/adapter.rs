//! The GPU backend as the planner sees it. Without the feature `gpu` there are no adapters, and nothing else changes.

use std::ops::Range;
use std::sync::Arc;

use tandem_loader::Gguf;
use tandem_models::Program;

#[cfg(feature = "gpu")]
use super::bytes::Bytes;
use super::ledger::Needs;
use super::probe::Probe;
use crate::backend::Backend;
use crate::error::{Error, Result};
#[cfg(feature = "gpu")]
use crate::gpu;
#[cfg(feature = "gpu")]
pub use crate::gpu::GpuOptions;

/// A GPU, or what presents itself as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Its place in [`adapters`].
    pub index: usize,
    /// Name, as the driver gives it.
    pub name: String,
    /// API it is reached through.
    pub api: String,
    /// Driver name and version.
    pub driver: String,
    /// What it is: `discrete GPU`, `software`, ...
    pub kind: &'static str,
    /// It is the CPU in disguise.
    pub software: bool,
    /// Why the kernels cannot run on it, if they cannot.
    pub unusable: Option<String>,
    /// Bytes of memory, where the API tells.
    pub memory: Option<u64>,
    /// What the kernels use where it is offered.
    pub features: Vec<(&'static str, bool)>,
    /// Limits that matter to the kernels.
    pub limits: Vec<(&'static str, u64)>,
    /// Most bytes that a kernel sees at a time.
    pub max_binding: u64,
}

impl Adapter {
    /// Tells this adapter and its driver from others: figures measured on one hold for no other.
    pub fn key(&self) -> String {
        format!("{} / {} / {}", self.name, self.api, self.driver)
    }
}

/// All adapters, GPUs with their own memory first, software last.
#[cfg(feature = "gpu")]
pub fn adapters() -> Vec<Adapter> {
    let adapter = |(index, info): (usize, gpu::AdapterInfo)| Adapter {
        index,
        software: info.is_software(),
        kind: info.kind.name(),
        features: vec![
            ("subgroups", info.subgroups),
            ("f16", info.shader_f16),
            ("cooperative_matrices", info.cooperative_matrices),
            ("pipeline_cache", info.pipeline_cache),
        ],
        limits: vec![
            ("max_buffer", info.max_buffer),
            ("max_binding", info.max_binding),
            ("workgroup_memory", u64::from(info.workgroup_memory)),
            ("min_subgroup_size", u64::from(info.subgroup_sizes.0)),
            ("max_subgroup_size", u64::from(info.subgroup_sizes.1)),
        ],
        max_binding: info.max_binding,
        name: info.name,
        api: info.api,
        driver: info.driver,
        unusable: info.unusable,
        memory: info.memory,
    };
    gpu::adapters().into_iter().enumerate().map(adapter).collect()
}

/// None: this build has no GPU backend.
#[cfg(not(feature = "gpu"))]
pub fn adapters() -> Vec<Adapter> {
    Vec::new()
}

/// Why [`adapters`] may be empty.
pub const NO_ADAPTER: &str = if cfg!(feature = "gpu") {
    "no driver for Vulkan, Metal or Direct3D 12 answers"
} else {
    "this build has no GPU backend"
};

/// How the GPU backend is set up: nothing, in a build without it.
#[cfg(not(feature = "gpu"))]
#[derive(Debug, Clone, Default)]
pub struct GpuOptions;

/// What blocks take on the GPU.
#[cfg(feature = "gpu")]
pub(super) fn required(gguf: &Gguf, program: &Program, blocks: &[Range<usize>], options: &GpuOptions) -> Result<Needs> {
    let needs = gpu::required_bytes(gguf, program, blocks, options)?;
    Ok(Needs { memory: needs.memory, staging: needs.staging })
}

#[cfg(not(feature = "gpu"))]
pub(super) fn required(_: &Gguf, _: &Program, _: &[Range<usize>], _: &GpuOptions) -> Result<Needs> {
    Err(Error::Placement(NO_ADAPTER.to_owned()))
}

/// Loads blocks on the GPU.
#[cfg(feature = "gpu")]
pub(crate) fn load(
    gguf: &Arc<Gguf>,
    program: &Arc<Program>,
    blocks: &[Range<usize>],
    options: &GpuOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Box<dyn Backend>> {
    Ok(Box::new(gpu::GpuBackend::load(gguf, program, blocks, options, progress)?))
}

#[cfg(not(feature = "gpu"))]
pub(crate) fn load(
    _: &Arc<Gguf>,
    _: &Arc<Program>,
    _: &[Range<usize>],
    _: &GpuOptions,
    _: &mut dyn FnMut(u64),
) -> Result<Box<dyn Backend>> {
    Err(Error::Placement(NO_ADAPTER.to_owned()))
}

/// What an error says about using the GPU at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "without a GPU none refuses"))]
pub(super) enum Refusal {
    /// The device cannot be used.
    Device,
    /// It has too little memory left.
    Memory,
    /// It failed at what this model needs of it.
    Failure,
    /// Nothing: it is about something else.
    None,
}

/// What an error says about using the GPU at all.
#[cfg(feature = "gpu")]
pub(super) fn refusal(error: &Error) -> Refusal {
    use gpu::GpuError;
    let Error::Gpu(error) = error else { return Refusal::None };
    match error {
        GpuError::NoAdapter | GpuError::Unusable { .. } | GpuError::Open { .. } => Refusal::Device,
        GpuError::OutOfMemory { .. } => Refusal::Memory,
        GpuError::Lost { .. } | GpuError::Failed { .. } | GpuError::Unsupported { .. } => Refusal::Failure,
        GpuError::NoSuchAdapter { .. } => Refusal::None,
    }
}

#[cfg(not(feature = "gpu"))]
pub(super) fn refusal(_: &Error) -> Refusal {
    Refusal::None
}

/// What happened to a GPU that was in use, where that is what an error is about.
#[cfg(feature = "gpu")]
pub(crate) fn failure(error: &Error) -> Option<String> {
    if let Error::Gpu(error) = error { error.failure() } else { None }
}

#[cfg(not(feature = "gpu"))]
pub(crate) fn failure(_: &Error) -> Option<String> {
    None
}

/// Loads a program for timing, with another context than the model's.
///
/// # Errors
/// More than `budget` bytes; those of the backend.
#[cfg(feature = "gpu")]
pub(super) fn load_probe(
    probe: &Probe,
    options: &GpuOptions,
    n_ctx: usize,
    budget: Option<u64>,
) -> Result<Box<dyn Backend>> {
    let options = GpuOptions { n_ctx, max_batch: crate::session::DEFAULT_BATCH, ..options.clone() };
    let whole = 0..probe.program.blocks.len();
    let taken = required(&probe.gguf, &probe.program, std::slice::from_ref(&whole), &options)?.total();
    if let Some(budget) = budget.filter(|budget| taken > *budget) {
        let (taken, budget) = (Bytes(taken), Bytes(budget));
        return Err(Error::Placement(format!(
            "measuring it takes {taken} of its memory, more than the {budget} allowed (--vram-budget)"
        )));
    }
    load(&probe.gguf, &probe.program, &[whole], &options, &mut |_| ())
}

#[cfg(not(feature = "gpu"))]
pub(super) fn load_probe(_: &Probe, _: &GpuOptions, _: usize, _: Option<u64>) -> Result<Box<dyn Backend>> {
    Err(Error::Placement(NO_ADAPTER.to_owned()))
}

/// Finds the adapter that the user means: by index, by a part of its name, or the first that can be used.
///
/// # Errors
/// A name that fits none or several, and an adapter that cannot be used, if it was named.
pub fn select<'a>(adapters: &'a [Adapter], wanted: Option<&str>) -> Result<Option<&'a Adapter>> {
    let Some(wanted) = wanted else { return Ok(adapters.iter().find(|a| a.unusable.is_none())) };
    let list = || match adapters {
        [] => format!("there is none: {NO_ADAPTER}"),
        adapters => {
            let names = adapters.iter().map(|a| format!("{} {} ({})", a.index, a.name, a.api));
            format!("there are: {}", names.collect::<Vec<_>>().join(", "))
        }
    };
    let fits = |a: &&Adapter| match wanted.parse::<usize>() {
        Ok(index) => a.index == index,
        Err(_) => a.name.to_lowercase().contains(&wanted.to_lowercase()),
    };
    let fitting: Vec<&Adapter> = adapters.iter().filter(fits).collect();
    match fitting.as_slice() {
        [] => Err(Error::Placement(format!("no GPU is `{wanted}` (--device); {}", list()))),
        [one] => match &one.unusable {
            None => Ok(Some(one)),
            Some(why) => Err(Error::Placement(format!("{} cannot run the kernels: {why}", one.name))),
        },
        _ => Err(Error::Placement(format!("`{wanted}` (--device) fits several GPUs; give an index: {}", list()))),
    }
}
