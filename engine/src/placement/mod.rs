//! Which device runs which blocks, and how that is decided before anything is loaded.
//!
//! A user says what is wanted ([`Wanted`]: a number of layers, rules for single parts, a budget). [`Plan::new`] turns
//! that into a [`Placement`], with the bytes each device will hold ([`Ledger`]) and the speed to expect
//! ([`Prediction`]). Loading follows the plan.

pub mod adapter;
mod bytes;
mod ledger;
mod measure;
mod plan;
mod probe;
mod rules;
mod speed;

use std::fmt::{self, Write};
use std::ops::Range;
use std::str::FromStr;

use tandem_models::{BlockKind, Program};

pub use adapter::Adapter;
pub use bytes::Bytes;
pub use ledger::{Ledger, Needs};
pub use plan::{Measure, Plan, Setup, Speeds, Wanted};
pub use rules::{Part, Rule, Rules, RulesError};
pub use speed::{DeviceSpeed, Prediction};

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The CPU backend.
    Cpu,
    /// The GPU backend.
    Gpu,
}

impl Device {
    /// All kinds.
    pub const ALL: [Device; 2] = [Device::Cpu, Device::Gpu];

    /// Name for people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "CPU",
            Device::Gpu => "GPU",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many layers the GPU takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuLayers {
    /// What fits and is fastest; none where the only adapter is a software one.
    Auto,
    /// All, and the output head.
    All,
    /// The last so many; more than the model has mean the output head too.
    Count(usize),
}

impl Default for GpuLayers {
    /// None: a program that uses this library says so when it wants a GPU.
    fn default() -> GpuLayers {
        GpuLayers::Count(0)
    }
}

impl FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<GpuLayers, String> {
        match text {
            "auto" => Ok(GpuLayers::Auto),
            "all" => Ok(GpuLayers::All),
            _ => text.parse().map(GpuLayers::Count).map_err(|_| "give a number, `auto` or `all`".to_owned()),
        }
    }
}

impl fmt::Display for GpuLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuLayers::Auto => f.write_str("auto"),
            GpuLayers::All => f.write_str("all"),
            GpuLayers::Count(n) => write!(f, "{n}"),
        }
    }
}

/// Consecutive blocks on one device, in execution order. Every block of the program is in exactly one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Device and block range of each run. Neighbours are on different devices.
    pub runs: Vec<(Device, Range<usize>)>,
}

impl Placement {
    /// Everything on the CPU.
    pub fn cpu(program: &Program) -> Placement {
        Placement { runs: vec![(Device::Cpu, 0..program.blocks.len())] }
    }

    /// From the device of every block, in order.
    pub fn from_devices(devices: &[Device]) -> Placement {
        let mut runs: Vec<(Device, Range<usize>)> = Vec::new();
        for (block, &device) in devices.iter().enumerate() {
            match runs.last_mut() {
                Some((last, blocks)) if *last == device => blocks.end = block + 1,
                _ => runs.push((device, block..block + 1)),
            }
        }
        Placement { runs }
    }

    /// The last `n` layers on the GPU, the output head too where there are fewer; the embedding stays on the CPU,
    /// which reads only the rows it needs.
    pub fn last_layers(program: &Program, n: usize) -> Placement {
        let n_layer = program.hparams.n_layer;
        let first = n_layer.saturating_sub(n);
        let device = |kind: BlockKind| match kind {
            BlockKind::Attention(l) | BlockKind::FeedForward(l) if l >= first => Device::Gpu,
            BlockKind::Head if n > n_layer => Device::Gpu,
            BlockKind::Attention(_) | BlockKind::FeedForward(_) | BlockKind::Head | BlockKind::Embed => Device::Cpu,
        };
        Placement::from_devices(&program.blocks.iter().map(|b| device(b.kind)).collect::<Vec<_>>())
    }

    /// The device of every block, in order.
    pub fn devices(&self) -> Vec<Device> {
        self.runs.iter().flat_map(|(device, blocks)| blocks.clone().map(|_| *device)).collect()
    }

    /// The runs on one device, in execution order.
    pub fn blocks_on(&self, device: Device) -> Vec<Range<usize>> {
        self.runs.iter().filter(|(d, _)| *d == device).map(|(_, blocks)| blocks.clone()).collect()
    }

    /// The devices in use.
    pub fn devices_in_use(&self) -> Vec<Device> {
        Device::ALL.into_iter().filter(|device| self.runs.iter().any(|(d, _)| d == device)).collect()
    }

    /// What a device runs, in the words of [`Rules`]: `embed, layers.0-14`.
    pub fn parts_on(&self, program: &Program, device: Device) -> String {
        let mut layers = vec![(false, false); program.hparams.n_layer];
        let (mut embed, mut output) = (false, false);
        for block in self.blocks_on(device).into_iter().flatten() {
            match program.blocks[block].kind {
                BlockKind::Embed => embed = true,
                BlockKind::Attention(l) => layers[l].0 = true,
                BlockKind::FeedForward(l) => layers[l].1 = true,
                BlockKind::Head => output = true,
            }
        }
        let mut parts = Vec::new();
        if embed {
            parts.push("embed".to_owned());
        }
        for (name, is_here) in [("layers", (true, true)), ("attn", (true, false)), ("ffn", (false, true))] {
            let ranges = ranges(layers.iter().map(|halves| *halves == is_here));
            parts.extend(ranges.iter().map(|(first, last)| match last - first {
                0 => format!("{name}.{first}"),
                _ => format!("{name}.{first}-{last}"),
            }));
        }
        if output {
            parts.push("output".to_owned());
        }
        parts.join(", ")
    }

    /// One line for people: `30 layers and output on CPU`, or `embed, layers.0-14 on CPU; layers.15-29, output on GPU`.
    pub fn describe(&self, program: &Program) -> String {
        let mut line = String::new();
        if let [(device, _)] = self.runs.as_slice() {
            let _ = write!(line, "{} layers and output on {device}", program.hparams.n_layer);
            return line;
        }
        for device in self.devices_in_use() {
            let separator = if line.is_empty() { "" } else { "; " };
            let _ = write!(line, "{separator}{} on {device}", self.parts_on(program, device));
        }
        line
    }
}

/// First and last index of each unbroken row of `true`.
fn ranges(flags: impl Iterator<Item = bool>) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (i, _) in flags.enumerate().filter(|(_, flag)| *flag) {
        match out.last_mut() {
            Some((_, last)) if *last + 1 == i => *last = i,
            _ => out.push((i, i)),
        }
    }
    out
}

#[cfg(test)]
#[cfg(feature = "gpu")]
mod plan_tests;
#[cfg(test)]
mod tests;
