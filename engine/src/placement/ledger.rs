//! The bytes that each device will hold, worked out before anything is loaded.

use tandem_loader::Gguf;
use tandem_models::Program;

use super::adapter::{self, GpuOptions};
use super::{Device, Placement};
use crate::backend::MemoryReport;
use crate::cpu::{self, CpuOptions};
use crate::error::Result;

/// What a set of blocks takes on a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Bytes held while the model is loaded.
    pub memory: MemoryReport,
    /// Bytes more while it is being loaded.
    pub staging: usize,
}

impl Needs {
    /// All of it.
    pub fn total(&self) -> u64 {
        let MemoryReport { weights, kv_cache, scratch } = self.memory;
        [weights, kv_cache, scratch, self.staging].iter().fold(0, |sum, n| sum.saturating_add(*n as u64))
    }
}

/// What each device in use will hold. The sums come from the functions that allocate when a model is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// By device.
    pub devices: Vec<(Device, Needs)>,
}

impl Ledger {
    /// Of a placement.
    ///
    /// # Errors
    /// A block that its device cannot run.
    pub fn new(
        gguf: &Gguf,
        program: &Program,
        placement: &Placement,
        cpu: &CpuOptions,
        gpu: &GpuOptions,
    ) -> Result<Ledger> {
        let needs = |device: Device| {
            let blocks = placement.blocks_on(device);
            let needs = match device {
                Device::Cpu => Needs { memory: cpu::required_bytes(gguf, program, &blocks, cpu)?, staging: 0 },
                Device::Gpu => adapter::required(gguf, program, &blocks, gpu)?,
            };
            Ok((device, needs))
        };
        Ok(Ledger { devices: placement.devices_in_use().into_iter().map(needs).collect::<Result<_>>()? })
    }

    /// What one device will hold.
    pub fn on(&self, device: Device) -> Needs {
        self.devices.iter().find(|(d, _)| *d == device).map(|(_, needs)| *needs).unwrap_or_default()
    }
}
