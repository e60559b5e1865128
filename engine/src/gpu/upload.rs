//! Weights on their way to the device: through two staging buffers, one being filled while the other is copied from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::device::Gpu;
use super::error::GpuError;
use super::layout::STAGING;

/// A staging buffer, and the submission that reads it.
struct Slot {
    buffer: wgpu::Buffer,
    pending: Option<(wgpu::SubmissionIndex, Arc<AtomicBool>)>,
}

/// A ring of two staging buffers.
pub(super) struct Staging<'a> {
    gpu: &'a Gpu,
    slots: [Slot; 2],
    next: usize,
    /// What is being packed: mapped memory can only be written, and not in parts by several threads.
    scratch: Vec<u8>,
}

impl<'a> Staging<'a> {
    pub(super) fn new(gpu: &'a Gpu) -> Staging<'a> {
        let slot = || Slot {
            buffer: gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("staging"),
                size: STAGING as u64,
                usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            }),
            pending: None,
        };
        Staging { gpu, slots: [slot(), slot()], next: 0, scratch: vec![0; STAGING] }
    }

    /// Lets `fill` write `bytes` (at most [`STAGING`], a multiple of 4) and copies them to `to` at `offset`.
    pub(super) fn upload(
        &mut self,
        to: &wgpu::Buffer,
        offset: usize,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), GpuError> {
        fill(&mut self.scratch[..bytes]);
        let slot = &mut self.slots[self.next];
        self.next = 1 - self.next;
        slot.wait(self.gpu)?;
        slot.buffer
            .get_mapped_range_mut(..bytes as u64)
            .map_err(|e| self.gpu.failed(format!("mapping a staging buffer: {e}")))?
            .copy_from_slice(&self.scratch[..bytes]);
        slot.buffer.unmap();
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&slot.buffer, 0, to, offset as u64, bytes as u64);
        let submission = self.gpu.queue.submit([encoder.finish()]);
        let mapped = Arc::new(AtomicBool::new(false));
        let done = mapped.clone();
        slot.buffer.map_async(wgpu::MapMode::Write, .., move |result| done.store(result.is_ok(), Ordering::Release));
        slot.pending = Some((submission, mapped));
        self.gpu.check()
    }

    /// Waits for all copies.
    pub(super) fn finish(mut self) -> Result<(), GpuError> {
        let gpu = self.gpu;
        self.slots.iter_mut().try_for_each(|slot| slot.wait(gpu))
    }
}

impl Slot {
    /// Waits until the buffer can be written again.
    fn wait(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let Some((submission, mapped)) = self.pending.take() else { return Ok(()) };
        gpu.wait(submission)?;
        if mapped.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(gpu.failed("a staging buffer could not be mapped".into()))
        }
    }
}
