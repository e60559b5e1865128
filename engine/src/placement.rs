//! Which device runs which blocks.

use std::ops::Range;

use tandem_models::{BlockKind, Program};

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The CPU backend.
    Cpu,
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("CPU"),
        }
    }
}

/// Consecutive blocks on one device, in execution order. Every block of the program is in exactly one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Device and block range of each run.
    pub runs: Vec<(Device, Range<usize>)>,
}

impl Placement {
    /// Everything on the CPU.
    pub fn cpu(program: &Program) -> Placement {
        Placement { runs: vec![(Device::Cpu, 0..program.blocks.len())] }
    }

    /// One line for people: `30 layers and output on CPU`.
    pub fn describe(&self, program: &Program) -> String {
        let runs = self.runs.iter().map(|(device, blocks)| {
            let blocks = &program.blocks[blocks.clone()];
            let layers = blocks.iter().filter(|b| matches!(b.kind, BlockKind::Attention(_))).count();
            let output = if blocks.iter().any(|b| b.kind == BlockKind::Head) { " and output" } else { "" };
            format!("{layers} layers{output} on {device}")
        });
        runs.collect::<Vec<_>>().join(", ")
    }
}
