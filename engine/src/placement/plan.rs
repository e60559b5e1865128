//! From what a user wants to a placement, its bytes and its speed, before anything is loaded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tandem_loader::Gguf;
use tandem_models::Program;

use super::adapter::{self, Adapter, GpuOptions, NO_ADAPTER, Refusal};
use super::bytes::Bytes;
use super::ledger::Ledger;
use super::measure;
use super::probe::Probe;
use super::rules::{Rule, Rules};
use super::speed::{DeviceSpeed, Prediction, rates_needed};
use super::{Device, GpuLayers, Placement};
use crate::backend::Backend;
use crate::cpu::{CpuBackend, CpuInfo, CpuOptions, IsaLevel};
use crate::error::{Error, Result};
use crate::model::{DEFAULT_CTX, KvType, LoadOptions, Precision};

/// What a user wants to run where.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Layers on the GPU.
    pub layers: GpuLayers,
    /// Rules for single parts, over what `layers` says.
    pub rules: Rules,
    /// The experts of all layers on the CPU, over what `layers` says and before the rules.
    pub cpu_moe: bool,
    /// Which adapter: its index, or a part of its name.
    pub device: Option<String>,
    /// Most bytes of GPU memory; what the adapter reports, less a margin, by default.
    pub vram_budget: Option<u64>,
    /// What cannot be had as asked is an error.
    pub strict: bool,
}

impl Wanted {
    /// Whether nothing but `auto` asks for a GPU: then a software one is as good as none.
    pub fn is_auto(&self) -> bool {
        self.layers == GpuLayers::Auto && !self.rules.ask_for(Device::Gpu) && self.device.is_none()
    }

    fn rules(&self) -> Rules {
        let cpu_moe = self.cpu_moe.then(Rule::cpu_moe);
        Rules(cpu_moe.into_iter().chain(self.rules.0.iter().cloned()).collect())
    }
}

/// When devices may measure themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Measure {
    /// Where a choice depends on it.
    #[default]
    ToChoose,
    /// Also to predict the speed of what was chosen.
    Always,
}

/// Measured figures of devices, to be kept from one run to the next. They hold for the device, driver, number of
/// threads and version of this crate that their key names.
#[derive(Default)]
pub struct Speeds<'a> {
    /// By key.
    pub table: BTreeMap<String, DeviceSpeed>,
    /// When to measure what is missing.
    pub measure: Measure,
    /// Hears that a device is about to be measured, which takes a second or some.
    pub on_measure: Option<&'a dyn Fn(Device)>,
}

/// What will run where, and what that takes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model as data.
    pub program: Arc<Program>,
    /// What runs where.
    pub placement: Placement,
    /// Bytes by device.
    pub ledger: Ledger,
    /// The adapter, where the placement uses one.
    pub adapter: Option<Adapter>,
    /// GPU memory allowed.
    pub budget: Option<u64>,
    /// Speed to expect, where the devices were measured.
    pub prediction: Option<Prediction>,
    /// What is not as asked, in sentences.
    pub notes: Vec<String>,
    /// Positions of the KV cache.
    pub n_ctx: usize,
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// How the CPU backend will be set up.
    pub cpu: CpuOptions,
    /// How the GPU backend will be set up.
    pub gpu: GpuOptions,
}

impl Plan {
    /// Plans a model.
    ///
    /// # Errors
    /// An unsupported or damaged file; no such device; what does not fit the budget, or cannot be had as asked where
    /// that is strict.
    pub fn new(gguf: &Gguf, options: &LoadOptions, speeds: &mut Speeds<'_>) -> Result<Plan> {
        let wanted = &options.wanted;
        // Asking for adapters starts drivers, which takes time.
        let asks = wanted.layers != GpuLayers::Count(0) || wanted.rules.ask_for(Device::Gpu) || wanted.device.is_some();
        let adapters = if asks { adapter::adapters() } else { Vec::new() };
        Plan::with_adapters(gguf, options, &adapters, speeds)
    }

    /// Another plan, for when the GPU refused this one: with less of it, where that was left to us, or without it.
    ///
    /// # Errors
    /// The refusal itself, where placement is strict, or where it says nothing against the device.
    pub(crate) fn retreat(
        &self,
        gguf: &Gguf,
        options: &LoadOptions,
        speeds: &mut Speeds<'_>,
        error: Error,
    ) -> Result<Plan> {
        let mut options = options.clone();
        let wanted = &mut options.wanted;
        let note = match adapter::refusal(&error) {
            Refusal::None => return Err(error),
            _ if wanted.strict => return Err(Error::Placement(error.to_string())),
            Refusal::Memory if wanted.layers == GpuLayers::Auto => {
                let taken = self.ledger.on(Device::Gpu).total();
                wanted.vram_budget = Some(taken / 4 * 3);
                format!("{error}: trying with {}", Bytes(taken / 4 * 3))
            }
            Refusal::Failure if wanted.layers != GpuLayers::Auto => return Err(error),
            Refusal::Memory => return Err(error),
            Refusal::Device | Refusal::Failure => {
                wanted.layers = GpuLayers::Count(0);
                wanted.rules = Rules::default();
                let what = adapter::failure(&error).unwrap_or_else(|| error.to_string());
                format!("{what}: everything runs on the CPU")
            }
        };
        let mut plan = Plan::new(gguf, &options, speeds)?;
        plan.notes = [&self.notes[..], &[note], &plan.notes].concat();
        Ok(plan)
    }

    /// The same model with everything on the CPU, for when the GPU failed while it ran; `None` where this machine's memory
    /// does not hold it.
    pub(crate) fn on_cpu(&self, gguf: &Gguf) -> Result<Option<Plan>> {
        let placement = Placement::cpu(&self.program);
        let ledger = Ledger::new(gguf, &self.program, &placement, &self.cpu, &self.gpu)?;
        let fits = beyond_memory(&ledger).is_none();
        Ok(fits.then(|| Plan { placement, ledger, adapter: None, prediction: None, ..self.clone() }))
    }

    /// Plans a model for a machine with these adapters.
    pub(super) fn with_adapters(
        gguf: &Gguf,
        options: &LoadOptions,
        adapters: &[Adapter],
        speeds: &mut Speeds<'_>,
    ) -> Result<Plan> {
        let program = Arc::new(Program::from_gguf(gguf)?);
        let adapter = adapter::select(adapters, options.wanted.device.as_deref())?;
        let planner = Planner::new(gguf, &program, options, adapter);
        let mut notes = Vec::new();
        let (placement, ledger) = planner.choose(speeds, &mut notes)?;
        if speeds.measure == Measure::Always {
            let mut devices = placement.devices_in_use().into_iter();
            if let Err(error) = devices.try_for_each(|device| planner.measure(device, speeds)) {
                planner.surprise(
                    &mut notes,
                    format!("no speed is predicted, for the devices could not be measured: {error}"),
                )?;
            }
        }
        notes.extend(beyond_memory(&ledger));
        let prediction = planner.predict(&placement, speeds);
        let uses_gpu = placement.devices_in_use().contains(&Device::Gpu);
        let Planner { n_ctx, cpu, gpu, budget, .. } = planner;
        Ok(Plan {
            placement,
            ledger,
            adapter: adapter.filter(|_| uses_gpu).cloned(),
            budget,
            prediction,
            notes,
            n_ctx,
            kv_type: cpu.kv_type,
            cpu,
            gpu,
            program,
        })
    }
}

/// Both devices set up for a comparison of what the GPU would run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The model as data.
    pub program: Arc<Program>,
    /// What would run where; everything on the GPU unless the options say less.
    pub placement: Placement,
    /// The GPU.
    pub adapter: Adapter,
    /// GPU memory allowed.
    pub budget: Option<u64>,
    /// How the CPU backend is to be set up.
    pub cpu: CpuOptions,
    /// How the GPU backend is to be set up.
    pub gpu: GpuOptions,
}

impl Setup {
    /// Finds the GPU that the options name, or the best one.
    ///
    /// # Errors
    /// An unsupported or damaged file; no such device.
    pub fn new(gguf: &Gguf, options: &LoadOptions) -> Result<Setup> {
        let program = Arc::new(Program::from_gguf(gguf)?);
        let adapters = adapter::adapters();
        let adapter = adapter::select(&adapters, options.wanted.device.as_deref())?;
        let adapter = adapter.ok_or_else(|| Error::Placement(format!("there is no GPU ({NO_ADAPTER})")))?;
        let planner = Planner::new(gguf, &program, options, Some(adapter));
        let placement = match options.wanted.layers {
            GpuLayers::Auto => planner.placement(&Placement::from_devices(&vec![Device::Gpu; program.blocks.len()]))?,
            GpuLayers::All => planner.last_layers(usize::MAX)?,
            GpuLayers::Count(n) => planner.last_layers(n)?,
        };
        let Planner { budget, cpu, gpu, .. } = planner;
        Ok(Setup { adapter: adapter.clone(), placement, budget, cpu, gpu, program })
    }

    /// Whether a block is to be compared.
    pub fn is_on_gpu(&self, block: usize) -> bool {
        self.placement.runs.iter().any(|(device, blocks)| *device == Device::Gpu && blocks.contains(&block))
    }

    /// Those of some blocks that are to be compared.
    pub fn on_gpu(&self, blocks: Range<usize>) -> Vec<Range<usize>> {
        let runs = self.placement.blocks_on(Device::Gpu).into_iter();
        let inside = runs.map(|run| run.start.max(blocks.start)..run.end.min(blocks.end));
        inside.filter(|run| !run.is_empty()).collect()
    }

    /// As many blocks from `start` on as the GPU has memory for.
    ///
    /// # Errors
    /// A block that the GPU cannot run, or that is larger by itself than the GPU memory allowed.
    pub fn fitting(&self, gguf: &Gguf, start: usize) -> Result<Range<usize>> {
        let budget = self.budget.unwrap_or(u64::MAX);
        for end in start + 1..=self.program.blocks.len() {
            let taken = adapter::required(gguf, &self.program, &self.on_gpu(start..end), &self.gpu)?.total();
            if taken <= budget {
                continue;
            }
            if end == start + 1 {
                let (kind, taken, budget) = (self.program.blocks[start].kind, Bytes(taken), Bytes(budget));
                return Err(Error::Placement(format!(
                    "{kind} alone takes {taken} on the GPU, more than the {budget} allowed (--vram-budget)"
                )));
            }
            return Ok(start..end - 1);
        }
        Ok(start..self.program.blocks.len())
    }
}

/// Says so where the CPU's part is larger than this machine's memory.
fn beyond_memory(ledger: &Ledger) -> Option<String> {
    let needs = ledger.on(Device::Cpu);
    let memory = CpuInfo::new().memory.filter(|memory| needs.total() > *memory)?;
    let smaller = if needs.memory.kv_cache > needs.memory.weights { "a smaller -c" } else { "a smaller quantization" };
    let (needs, memory) = (Bytes(needs.total()), Bytes(memory));
    Some(format!("the CPU's part takes {needs}, and this machine has {memory} of memory: {smaller} needs less"))
}

/// Everything that a choice depends on.
pub(super) struct Planner<'a> {
    gguf: &'a Gguf,
    pub(super) program: &'a Program,
    wanted: &'a Wanted,
    rules: Rules,
    adapter: Option<&'a Adapter>,
    budget: Option<u64>,
    n_ctx: usize,
    cpu: CpuOptions,
    gpu: GpuOptions,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        gguf: &'a Gguf,
        program: &'a Program,
        options: &'a LoadOptions,
        adapter: Option<&'a Adapter>,
    ) -> Planner<'a> {
        let n_ctx = options.n_ctx.unwrap_or(program.hparams.n_ctx_train.min(DEFAULT_CTX)).max(1);
        let kv_type = if options.precision == Precision::Exact { KvType::F32 } else { options.kv_type };
        let cpu = CpuOptions {
            threads: options.threads.unwrap_or_else(available_threads).max(1),
            precision: options.precision,
            kv_type,
            n_ctx,
            isa: options.isa,
            inputs: options.inputs.clone(),
        };
        Planner {
            gguf,
            program,
            wanted: &options.wanted,
            rules: options.wanted.rules(),
            adapter,
            budget: options.wanted.vram_budget.or_else(|| adapter?.memory.map(usable)),
            n_ctx,
            gpu: gpu_options(&cpu, adapter, options),
            cpu,
        }
    }

    /// The placement, and its bytes.
    pub(super) fn choose(&self, speeds: &mut Speeds<'_>, notes: &mut Vec<String>) -> Result<(Placement, Ledger)> {
        for rule in self.rules.idle(self.program) {
            self.surprise(notes, format!("`{rule}` changes nothing: the model has no such part"))?;
        }
        match self.wanted.layers {
            GpuLayers::Auto => self.choose_freely(speeds, notes),
            GpuLayers::All => self.choose_as_asked(usize::MAX, notes),
            GpuLayers::Count(n) => self.choose_as_asked(n, notes),
        }
    }

    /// Notes what is not as asked; an error where placement is strict.
    fn surprise(&self, notes: &mut Vec<String>, what: String) -> Result<()> {
        if self.wanted.strict {
            return Err(Error::Placement(format!("{what} (--strict-placement)")));
        }
        notes.push(what);
        Ok(())
    }

    /// The last `n` layers, changed by the rules.
    fn placement(&self, base: &Placement) -> Result<Placement> {
        let mut devices = base.devices();
        self.rules.apply(self.program, &mut devices).map_err(Error::Placement)?;
        Ok(Placement::from_devices(&devices))
    }

    fn last_layers(&self, n: usize) -> Result<Placement> {
        self.placement(&Placement::last_layers(self.program, n))
    }

    fn ledger(&self, placement: &Placement) -> Result<Ledger> {
        Ledger::new(self.gguf, self.program, placement, &self.cpu, &self.gpu)
    }

    /// Bytes above the budget.
    fn excess(&self, ledger: &Ledger) -> u64 {
        self.budget.map_or(0, |budget| ledger.on(Device::Gpu).total().saturating_sub(budget))
    }

    fn choose_as_asked(&self, n: usize, notes: &mut Vec<String>) -> Result<(Placement, Ledger)> {
        let mut placement = self.last_layers(n)?;
        if self.adapter.is_none() && placement.devices_in_use().contains(&Device::Gpu) {
            let what = format!("there is no GPU to place {} on ({NO_ADAPTER})", self.asked());
            if self.wanted.strict {
                return Err(Error::Placement(format!("{what}; use -ngl 0 or -ngl auto")));
            }
            notes.push(format!("{what}: everything runs on the CPU"));
            placement = Placement::cpu(self.program);
        }
        let ledger = self.ledger(&placement)?;
        match self.excess(&ledger) {
            0 => Ok((placement, ledger)),
            excess => Err(self.over_budget(&ledger, excess, n)),
        }
    }

    /// What was asked for, for messages.
    fn asked(&self) -> String {
        let rules = if self.rules.0.is_empty() { String::new() } else { format!(" with `{}`", self.rules) };
        format!("-ngl {}{rules}", self.wanted.layers)
    }

    fn over_budget(&self, ledger: &Ledger, excess: u64, n: usize) -> Error {
        let most = n.min(self.program.hparams.n_layer + 1);
        let fits = |n: &usize| {
            let ledger = self.last_layers(*n).and_then(|placement| self.ledger(&placement));
            ledger.is_ok_and(|ledger| self.excess(&ledger) == 0)
        };
        let advice = match (0..most).rev().find(fits) {
            Some(0) => "not even -ngl 1 fits: use -ngl 0, a smaller context or a larger budget".to_owned(),
            Some(n) => format!("-ngl {n} fits"),
            None => "the rules alone ask for more: move parts to the CPU".to_owned(),
        };
        let total = Bytes(ledger.on(Device::Gpu).total());
        let (excess, budget) = (Bytes(excess), Bytes(self.budget.unwrap_or(u64::MAX)));
        Error::Placement(format!(
            "{} takes {total} on the GPU, {excess} more than the {budget} allowed (--vram-budget); {advice}",
            self.asked()
        ))
    }

    /// The fastest placement that fits.
    fn choose_freely(&self, speeds: &mut Speeds<'_>, notes: &mut Vec<String>) -> Result<(Placement, Ledger)> {
        // The software adapter is the CPU again, with more work.
        if let Some(adapter) = self.adapter.filter(|adapter| adapter.software && self.wanted.device.is_some()) {
            let what = format!("{} runs on the CPU, so -ngl auto leaves it out; -ngl N or all uses it", adapter.name);
            self.surprise(notes, what)?;
        }
        if self.adapter.is_none_or(|adapter| adapter.software) {
            return self.choose_as_asked(0, notes);
        }
        if let Err(error) = self.measure(Device::Gpu, speeds).and_then(|()| self.measure(Device::Cpu, speeds)) {
            let what = format!(
                "the devices could not be measured, so nothing is placed on the GPU: {error}; -ngl N needs no measuring"
            );
            self.surprise(notes, what)?;
            return self.choose_as_asked(0, notes);
        }
        let mut best: Option<(f64, Placement, Ledger)> = None;
        for (placement, ledger) in self.fitting()? {
            let speed = self.predict(&placement, speeds).map_or(0.0, |prediction| prediction.tokens_per_second(0));
            if best.as_ref().is_none_or(|(fastest, ..)| speed > *fastest) {
                best = Some((speed, placement, ledger));
            }
        }
        match best {
            Some((_, placement, ledger)) => Ok((placement, ledger)),
            // Only rules can ask for more than nothing.
            None => self.choose_as_asked(0, notes),
        }
    }

    /// Placements that `auto` chooses from and that fit: the last N layers as a whole; and everything on the GPU but
    /// the feed-forward halves (which are most of a model, and all of its experts) of the first layers.
    fn fitting(&self) -> Result<Vec<(Placement, Ledger)>> {
        let n_layer = self.program.hparams.n_layer;
        let mut bases: Vec<Placement> = (0..=n_layer + 1).map(|n| Placement::last_layers(self.program, n)).collect();
        let all = Placement::last_layers(self.program, n_layer + 1).devices();
        for first in 1..=n_layer {
            let mut devices = all.clone();
            let halves = Rule { part: super::Part::Ffn, layers: Some(0..=first - 1), device: Device::Cpu };
            Rules(vec![halves]).apply(self.program, &mut devices).map_err(Error::Placement)?;
            bases.push(Placement::from_devices(&devices));
        }
        let mut fitting: Vec<(Placement, Ledger)> = Vec::new();
        for base in bases {
            let placement = self.placement(&base)?;
            // What a device cannot run is no candidate.
            let Ok(ledger) = self.ledger(&placement) else { continue };
            if self.excess(&ledger) == 0 && fitting.iter().all(|(known, _)| *known != placement) {
                fitting.push((placement, ledger));
            }
        }
        Ok(fitting)
    }

    /// Has a device measure what is missing among its figures.
    fn measure(&self, device: Device, speeds: &mut Speeds<'_>) -> Result<()> {
        let needed = rates_needed(self.gguf, self.program, self.cpu.kv_type, device);
        let speed = speeds.table.entry(self.key(device)).or_default();
        if let Some(on_measure) =
            speeds.on_measure.filter(|_| needed.iter().any(|rate| !speed.rates.contains_key(&rate.name())))
        {
            on_measure(device);
        }
        measure::complete(speed, &needed, &|probe| self.load_probe(device, probe))
    }

    /// The speed of a placement; `None` where something was not measured.
    pub(super) fn predict(&self, placement: &Placement, speeds: &Speeds<'_>) -> Option<Prediction> {
        let speed = |device| speeds.table.get(&self.key(device));
        Prediction::new(self.gguf, self.program, placement, self.cpu.kv_type, speed)
    }

    /// What the figures of a device depend on.
    pub(super) fn key(&self, device: Device) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let precision = match self.cpu.precision {
            Precision::Fast => "fast",
            Precision::Exact => "exact",
        };
        let device = match device {
            Device::Cpu => {
                let isa = IsaLevel::best(self.cpu.isa).name();
                format!("CPU {} / {} threads / {isa}", CpuInfo::name(), self.cpu.threads)
            }
            Device::Gpu => format!("GPU {}", self.adapter.map(Adapter::key).unwrap_or_default()),
        };
        format!("{device} / {precision} / {version}")
    }

    fn load_probe(&self, device: Device, probe: &Probe) -> Result<Box<dyn Backend>> {
        match device {
            Device::Cpu => {
                let whole = 0..probe.program.blocks.len();
                let options = CpuOptions { n_ctx: measure::N_CTX, inputs: None, ..self.cpu };
                let cpu = CpuBackend::load(&probe.gguf, &probe.program, &[whole], options, &mut |_| ())?;
                Ok(Box::new(cpu))
            }
            Device::Gpu => adapter::load_probe(probe, &self.gpu, measure::N_CTX, self.budget),
        }
    }
}

/// What is left of an adapter's memory for a model: the rest is for the display and the driver.
fn usable(memory: u64) -> u64 {
    memory - memory / 10
}

/// Cores this process may use.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

#[cfg(feature = "gpu")]
fn gpu_options(cpu: &CpuOptions, adapter: Option<&Adapter>, options: &LoadOptions) -> GpuOptions {
    use crate::gpu::Selector;
    GpuOptions {
        device: adapter.map_or(Selector::Best, |adapter| Selector::Index(adapter.index)),
        precision: cpu.precision,
        kv_type: cpu.kv_type,
        n_ctx: cpu.n_ctx,
        max_batch: crate::session::DEFAULT_BATCH.min(cpu.n_ctx),
        pipeline_cache: options.cache_folder.as_ref().zip(adapter).map(|(folder, adapter)| {
            let name = adapter.key().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            folder.join(format!("pipelines-{name}.bin"))
        }),
        binding_limit: adapter.map(|adapter| adapter.max_binding),
        ..GpuOptions::default()
    }
}

#[cfg(not(feature = "gpu"))]
fn gpu_options(_: &CpuOptions, _: Option<&Adapter>, _: &LoadOptions) -> GpuOptions {
    GpuOptions
}
