//! Adapters: finding them without a display, describing them, opening one.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tandem_shaders::Kernel;

use super::error::GpuError;

/// The APIs tried. OpenGL is left out: its software fallback would look like a GPU.
const BACKENDS: wgpu::Backends = wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);
/// What kernels use where it is offered.
const WANTED: wgpu::Features = wgpu::Features::IMMEDIATES
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::PIPELINE_CACHE);
/// Bytes of values passed with each dispatch; what any adapter with the feature offers.
pub(super) const IMMEDIATE_BYTES: u32 = 128;

/// What kind of device an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterKind {
    /// A GPU with its own memory.
    Discrete,
    /// A GPU that shares the system's memory.
    Integrated,
    /// A GPU seen from inside a virtual machine.
    Virtual,
    /// Not known.
    Other,
    /// The CPU, through a software renderer. It counts as no GPU unless it is asked for.
    Software,
}

impl AdapterKind {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            AdapterKind::Discrete => "discrete GPU",
            AdapterKind::Integrated => "integrated GPU",
            AdapterKind::Virtual => "virtual GPU",
            AdapterKind::Other => "other",
            AdapterKind::Software => "software",
        }
    }

    fn of(ty: wgpu::DeviceType) -> AdapterKind {
        match ty {
            wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
            wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
            wgpu::DeviceType::Other => AdapterKind::Other,
            wgpu::DeviceType::Cpu => AdapterKind::Software,
        }
    }
}

/// What matters about an adapter.
#[derive(Debug, Clone)]
pub struct AdapterInfo {
    /// Name, as the driver gives it.
    pub name: String,
    /// API it is reached through: `Vulkan`, `Metal`, `Dx12`.
    pub api: String,
    /// Driver name and version.
    pub driver: String,
    /// What it is.
    pub kind: AdapterKind,
    /// Smallest and largest number of threads that run in step.
    pub subgroup_sizes: (u32, u32),
    /// Subgroup arithmetic in kernels.
    pub subgroups: bool,
    /// 16-bit floats in kernels.
    pub shader_f16: bool,
    /// Cooperative matrices (tensor cores) of the kind that the kernels use: 16 x 16 of f16, summed in f32.
    pub cooperative_matrices: bool,
    /// Compiled kernels can be kept on disk.
    pub pipeline_cache: bool,
    /// Whether it has what the kernels cannot do without; the reason where not.
    pub unusable: Option<String>,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Most bytes of a buffer that a kernel can see at a time; larger tensors are split.
    pub max_binding: u64,
    /// Shared memory of a workgroup, in bytes.
    pub workgroup_memory: u32,
    /// Bytes of its own memory (or of the part of the system's that it may use), where the API tells.
    pub memory: Option<u64>,
}

impl AdapterInfo {
    /// Whether it is the CPU in disguise.
    pub fn is_software(&self) -> bool {
        self.kind == AdapterKind::Software
    }
}

/// Which adapter to use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Selector {
    /// The first of [`adapters`] that is usable.
    #[default]
    Best,
    /// By its place in [`adapters`].
    Index(usize),
    /// By a part of its name, whatever the case.
    Name(String),
}

/// All adapters, GPUs with their own memory first, software last. Where there is no driver, or no loader for drivers,
/// the list is empty.
pub fn adapters() -> Vec<AdapterInfo> {
    enumerate().iter().map(describe).collect()
}

fn enumerate() -> Vec<wgpu::Adapter> {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = BACKENDS;
    // No validation layers, and no checks of indirect dispatches: there are none.
    desc.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(desc);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(BACKENDS));
    adapters.sort_by_key(|adapter| AdapterKind::of(adapter.get_info().device_type) as u8);
    adapters
}

fn describe(adapter: &wgpu::Adapter) -> AdapterInfo {
    let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
    AdapterInfo {
        kind: AdapterKind::of(info.device_type),
        api: info.backend.to_string(),
        driver: [info.driver.as_str(), &info.driver_info].join(" ").trim().to_owned(),
        name: info.name,
        subgroup_sizes: (info.subgroup_min_size, info.subgroup_max_size),
        subgroups: features.contains(wgpu::Features::SUBGROUP),
        shader_f16: features.contains(wgpu::Features::SHADER_F16),
        cooperative_matrices: offers_cooperative_matrices(adapter),
        pipeline_cache: features.contains(wgpu::Features::PIPELINE_CACHE),
        unusable: unusable(adapter),
        max_buffer: limits.max_buffer_size,
        max_binding: limits.max_storage_buffer_binding_size,
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        memory: memory(adapter),
    }
}

/// Whether an adapter offers all that [`Kernel::CoopMat`] needs.
fn offers_cooperative_matrices(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        .union(wgpu::Features::SHADER_F16)
        .union(wgpu::Features::SUBGROUP);
    let threads = Kernel::coop_threads(adapter.get_info().subgroup_max_size);
    let is_used = |p: &wgpu::CooperativeMatrixProperties| {
        (p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type) == (16, 16, 16, F16, F32)
    };
    adapter.features().contains(needed)
        && adapter.cooperative_matrix_properties().iter().any(is_used)
        && threads <= adapter.limits().max_compute_invocations_per_workgroup
}

/// Why the kernels cannot run on an adapter.
fn unusable(adapter: &wgpu::Adapter) -> Option<String> {
    let (features, limits) = (adapter.features(), adapter.limits());
    if !adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::SHADER_F16_IN_F32) {
        return Some("it cannot read 16-bit floats".into());
    }
    if !features.contains(wgpu::Features::IMMEDIATES) || limits.max_immediate_size < IMMEDIATE_BYTES {
        return Some(format!("it takes fewer than {IMMEDIATE_BYTES} bytes of immediate values per dispatch"));
    }
    let needed = [
        ("threads per workgroup", limits.max_compute_invocations_per_workgroup, 256),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, 16384),
        ("storage buffers per kernel", limits.max_storage_buffers_per_shader_stage, 8),
        ("workgroups per dimension", limits.max_compute_workgroups_per_dimension, 65535),
    ];
    let short = needed.into_iter().find(|(_, has, wants)| has < wants);
    short.map(|(what, has, wants)| format!("it offers {has} {what}, and the kernels need {wants}"))
}

/// Bytes of an adapter's device-local memory.
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
    {
        // SAFETY: the handle is only asked for properties, and dropped at once.
        let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
        let instance = vulkan.shared_instance().raw_instance();
        // SAFETY: the physical device belongs to this instance, and both outlive the call.
        let memory = unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
        let heaps = &memory.memory_heaps[..memory.memory_heap_count as usize];
        // Bit 0 is VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
        heaps.iter().filter(|heap| heap.flags.as_raw() & 1 != 0).map(|heap| heap.size).max()
    }
    #[cfg(not(any(target_os = "linux", target_os = "windows", target_os = "android")))]
    {
        let _ = adapter;
        None
    }
}

/// What went wrong on the device, in a call or outside of any: a driver's error, or the loss of the device.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<GpuError>>>);

impl Trouble {
    /// Keeps the first one, and gives it back: what follows is its consequence.
    pub(super) fn note(&self, error: GpuError) -> GpuError {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error).clone()
    }

    fn first(&self) -> Option<GpuError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

thread_local! {
    /// Whether this thread is in a call whose panic will be caught.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Calls what may panic; `None` where it did. wgpu panics where a device is lost while work is waited for.
pub(super) fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    let before = CATCHING.replace(true);
    // What wgpu holds is not used again after this: the device is lost.
    let result = catch_unwind(AssertUnwindSafe(call));
    CATCHING.set(before);
    result.ok()
}

/// Keeps messages of panics off stderr that this crate catches, and turns into errors of a lost device. It wraps the
/// process's panic hook; a program calls it once.
pub fn hide_caught_panics() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !CATCHING.get() {
            hook(info);
        }
    }));
}

/// Asks an adapter for a device, with cooperative matrices or without.
fn request(
    adapter: &wgpu::Adapter,
    cooperative_matrices: bool,
) -> Result<(wgpu::Device, wgpu::Queue), wgpu::RequestDeviceError> {
    let mut features = adapter.features() & WANTED;
    let mut experimental = wgpu::ExperimentalFeatures::disabled();
    if cooperative_matrices {
        features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        // SAFETY: what is experimental may go wrong in ways that wgpu does not rule out. One kernel uses it, keeps to the
        // rules of Vulkan for it (uniform control flow, aligned rows, memory of its own workgroup), and is only used where
        // its results on this device are right.
        experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
    }
    let desc = wgpu::DeviceDescriptor {
        label: None,
        required_features: features,
        required_limits: adapter.limits(),
        experimental_features: experimental,
        // Small blocks: what is taken is what the ledger says.
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        trace: wgpu::Trace::Off,
    };
    pollster::block_on(adapter.request_device(&desc))
}

/// An open device.
#[derive(Debug)]
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// What it is.
    pub info: AdapterInfo,
    pub(super) trouble: Trouble,
}

impl Gpu {
    /// Opens an adapter with all that it offers.
    ///
    /// # Errors
    /// No adapter, or none that fits the selector; one that lacks what the kernels need; a driver that refuses.
    pub fn open(selector: &Selector) -> Result<Gpu, GpuError> {
        let adapter = select(enumerate(), selector)?;
        let mut info = describe(&adapter);
        if let Some(why) = &info.unusable {
            return Err(GpuError::Unusable { adapter: info.name, why: why.clone() });
        }
        let mut opened = request(&adapter, info.cooperative_matrices);
        if opened.is_err() && info.cooperative_matrices {
            // What is experimental may be refused; all else does without it.
            info.cooperative_matrices = false;
            opened = request(&adapter, false);
        }
        let (device, queue) =
            opened.map_err(|e| GpuError::Open { adapter: info.name.clone(), message: e.to_string() })?;
        let trouble = Trouble::default();
        let (errors, lost) = (trouble.clone(), trouble.clone());
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            errors.note(e.into());
        }));
        device.set_device_lost_callback(move |_, message| {
            lost.note(GpuError::of_loss(message));
        });
        Ok(Gpu { device, queue, info, trouble })
    }

    /// Waits until a submission is done.
    ///
    /// # Errors
    /// As for [`Gpu::check`].
    pub(super) fn wait(&self, submission: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
        let polled = caught(|| self.device.poll(wait));
        self.check()?;
        match polled {
            Some(Ok(_)) => Ok(()),
            Some(Err(e)) => Err(self.failed(format!("waiting for the device: {e}"))),
            None => Err(self.trouble.note(GpuError::of_loss(String::new()))),
        }
    }

    /// Notes a failure; returns what went wrong first.
    pub(super) fn failed(&self, message: String) -> GpuError {
        // A lost device refuses work without a word, and says that it is lost when it is asked again.
        caught(|| self.device.poll(wgpu::PollType::Poll));
        self.trouble.note(GpuError::Failed { message })
    }

    /// The first `bytes` of a buffer.
    ///
    /// # Errors
    /// As for [`Gpu::check`].
    pub(super) fn read(&self, buffer: &wgpu::Buffer, bytes: usize) -> Result<Vec<u8>, GpuError> {
        let size = bytes as u64;
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let desc = wgpu::BufferDescriptor { label: Some("a copy"), size, usage, mapped_at_creation: false };
        let copy = self.device.create_buffer(&desc);
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, size);
        let submission = self.queue.submit([encoder.finish()]);
        copy.map_async(wgpu::MapMode::Read, .., |_| ());
        self.wait(submission)?;
        let failed = |e: wgpu::MapRangeError| self.failed(format!("reading a buffer: {e}"));
        Ok(copy.get_mapped_range(..).map_err(failed)?.to_vec())
    }

    /// Does what the driver may refuse: that alone is no failure of the device.
    ///
    /// # Errors
    /// What `work` gives, or what the driver or wgpu says to it.
    pub(super) fn attempt<T>(&self, work: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let result = work();
        let refused = [pollster::block_on(internal.pop()), pollster::block_on(validation.pop())];
        match refused.into_iter().flatten().next() {
            Some(error) => Err(error.into()),
            None => result,
        }
    }

    /// What has gone wrong.
    ///
    /// # Errors
    /// The first error of the device, or its loss. After one it is not used again: what its memory holds is not known.
    pub(super) fn check(&self) -> Result<(), GpuError> {
        self.trouble.first().map_or(Ok(()), Err)
    }
}

fn select(adapters: Vec<wgpu::Adapter>, selector: &Selector) -> Result<wgpu::Adapter, GpuError> {
    let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
    let found = match selector {
        Selector::Best => adapters.into_iter().min_by_key(|a| describe(a).unusable.is_some()),
        Selector::Index(i) => adapters.into_iter().nth(*i),
        Selector::Name(part) => {
            let part = part.to_lowercase();
            adapters.into_iter().find(|a| a.get_info().name.to_lowercase().contains(&part))
        }
    };
    found.ok_or_else(|| match selector {
        Selector::Best => GpuError::NoAdapter,
        Selector::Index(i) => GpuError::NoSuchAdapter { wanted: i.to_string(), names },
        Selector::Name(name) => GpuError::NoSuchAdapter { wanted: format!("`{name}`"), names },
    })
}
