//! Pipelines: each variant of a kernel compiled once, for the device at hand.

use std::collections::HashMap;
use std::path::Path;

use tandem_shaders::{Binding, Kernel};

use super::device::{Gpu, IMMEDIATE_BYTES};
use super::disk_cache::DiskCache;
use super::error::GpuError;

/// A compiled kernel.
#[derive(Clone)]
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// A range of a buffer, bound to a number.
#[derive(Clone, Copy)]
pub(super) struct Bound<'a> {
    pub(super) number: u32,
    pub(super) buffer: &'a wgpu::Buffer,
    pub(super) offset: usize,
    /// Bytes; the rest of the buffer where it is `None`.
    pub(super) size: Option<usize>,
}

impl<'a> Bound<'a> {
    fn entry(&self) -> wgpu::BindGroupEntry<'a> {
        wgpu::BindGroupEntry {
            binding: self.number,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: self.buffer,
                offset: self.offset as u64,
                size: self.size.and_then(|size| wgpu::BufferSize::new(size as u64)),
            }),
        }
    }

    /// A whole buffer.
    pub(super) fn whole(number: u32, buffer: &'a wgpu::Buffer) -> Bound<'a> {
        Bound { number, buffer, offset: 0, size: None }
    }
}

/// All pipelines of a model, compiled as they are first asked for.
pub(super) struct Pipelines<'a> {
    gpu: &'a Gpu,
    /// See [`super::GpuOptions::edit_kernel`].
    edit: Option<fn(&str, String) -> String>,
    compiled: HashMap<Kernel, Pipeline>,
    /// Kernels that bind the same share a layout, and so their bind groups.
    layouts: HashMap<Vec<(u32, bool)>, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
    disk: Option<DiskCache>,
}

impl<'a> Pipelines<'a> {
    /// None yet; `disk` is the file that they are kept in between loads. `edit` may change a kernel's source, for tests.
    pub(super) fn new(gpu: &'a Gpu, disk: Option<&Path>, edit: Option<fn(&str, String) -> String>) -> Pipelines<'a> {
        let disk = disk.and_then(|path| DiskCache::open(gpu, path));
        Pipelines { gpu, edit, compiled: HashMap::new(), layouts: HashMap::new(), disk }
    }

    /// Keeps the compiled kernels for the next load.
    pub(super) fn save(&self) {
        if let Some(disk) = &self.disk {
            disk.save();
        }
    }

    /// The pipeline of a kernel.
    pub(super) fn get(&mut self, kernel: Kernel) -> Result<Pipeline, GpuError> {
        if let Some(known) = self.compiled.get(&kernel) {
            return Ok(known.clone());
        }
        let failed = |message: String| GpuError::Failed { message: format!("{}: {message}", kernel.file()) };
        let source = kernel.source().map_err(|e| failed(e.to_string()))?;
        let source = match self.edit {
            Some(edit) => edit(kernel.file(), source),
            None => source,
        };
        let (layout, pipeline_layout) = self.layout(&kernel.bindings());
        let desc = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.file()),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        // SAFETY: every loop of the kernels ends (they count up to sizes, or halve), and no divisor is 0. Bounds stay
        // checked.
        let module = unsafe {
            let mut checks = wgpu::ShaderRuntimeChecks::checked();
            checks.force_loop_bounding = false;
            checks.int_div_checks = false;
            self.gpu.device.create_shader_module_trusted(desc, checks)
        };
        let pipeline = self.gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.file()),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            // Kernels write workgroup memory before they read it.
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: self.disk.as_ref().map(|disk| &disk.cache),
        });
        self.gpu.check()?;
        let pipeline = Pipeline { pipeline, layout };
        self.compiled.insert(kernel, pipeline.clone());
        Ok(pipeline)
    }

    fn layout(&mut self, bindings: &[Binding]) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
        let key = bindings.iter().map(|b| (b.number, b.read_only)).collect();
        let device = &self.gpu.device;
        let make = || {
            let entry = |b: &Binding| wgpu::BindGroupLayoutEntry {
                binding: b.number,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: b.read_only },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            };
            let entries: Vec<_> = bindings.iter().map(entry).collect();
            let layout =
                device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: IMMEDIATE_BYTES,
            });
            (layout, pipeline)
        };
        self.layouts.entry(key).or_insert_with(make).clone()
    }

    /// Binds buffers to a kernel.
    pub(super) fn bind(&self, pipeline: &Pipeline, bound: &[Bound<'_>]) -> wgpu::BindGroup {
        let entries: Vec<_> = bound.iter().map(Bound::entry).collect();
        self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        })
    }
}
