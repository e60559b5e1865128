//! What can go wrong on a GPU.

use std::fmt::Write;

/// Why a GPU cannot be used, or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is none.
    #[error(
        "no GPU was found: no driver for Vulkan, Metal or Direct3D 12 answers; install the GPU's driver, or run on the \
         CPU with -ngl 0"
    )]
    NoAdapter,
    /// None fits what was asked for.
    #[error("no GPU is {wanted}; {}", list(names))]
    NoSuchAdapter {
        /// What was asked for.
        wanted: String,
        /// Names of those there are.
        names: Vec<String>,
    },
    /// It lacks something.
    #[error("{adapter} cannot run the kernels: {why}")]
    Unusable {
        /// Its name.
        adapter: String,
        /// What it lacks.
        why: String,
    },
    /// The driver refused to open it.
    #[error("{adapter} cannot be opened: {message}")]
    Open {
        /// Its name.
        adapter: String,
        /// What the driver said.
        message: String,
    },
    /// Its memory is full.
    #[error("{}; place fewer layers on the GPU, or use a smaller context", full(message))]
    OutOfMemory {
        /// What was being allocated, or what the driver said.
        message: String,
    },
    /// The device is gone: reset, unplugged, or its driver stopped.
    #[error("{}; start again, with -ngl 0 to leave it out", lost(message))]
    Lost {
        /// What the driver said.
        message: String,
    },
    /// The driver reported an error.
    #[error("{}; start again, with -ngl 0 to leave it out", failed(message))]
    Failed {
        /// What it said.
        message: String,
    },
    /// The model has something that the GPU cannot do.
    #[error("{what} is not supported on the GPU; place this layer on the CPU")]
    Unsupported {
        /// What it is.
        what: String,
    },
}

fn full(message: &str) -> String {
    format!("GPU memory is full: {message}")
}

fn lost(message: &str) -> String {
    format!("the GPU was lost: {message}")
}

fn failed(message: &str) -> String {
    format!("the GPU failed: {message}")
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "there is none".into();
    }
    let mut text = String::from("there are: ");
    for (i, name) in names.iter().enumerate() {
        let _ = write!(text, "{}{i} {name}", if i == 0 { "" } else { ", " });
    }
    text
}

impl GpuError {
    /// What happened to a device that was in use, without advice; `None` where it is about something else.
    pub(crate) fn failure(&self) -> Option<String> {
        match self {
            GpuError::OutOfMemory { message } => Some(full(message)),
            GpuError::Lost { message } => Some(lost(message)),
            GpuError::Failed { message } => Some(failed(message)),
            GpuError::NoAdapter | GpuError::NoSuchAdapter { .. } | GpuError::Unusable { .. } => None,
            GpuError::Open { .. } | GpuError::Unsupported { .. } => None,
        }
    }

    /// Of a device's last message. A device whose memory runs out in the middle of work is given up by wgpu, too.
    pub(super) fn of_loss(message: String) -> GpuError {
        if message == wgpu::hal::DeviceError::OutOfMemory.to_string() {
            return GpuError::none_left();
        }
        let message = if message.is_empty() { "it takes no more work".into() } else { message };
        GpuError::Lost { message }
    }

    fn none_left() -> GpuError {
        GpuError::OutOfMemory { message: "the driver has none left".into() }
    }
}

impl From<wgpu::Error> for GpuError {
    fn from(error: wgpu::Error) -> GpuError {
        match error {
            wgpu::Error::OutOfMemory { .. } => GpuError::none_left(),
            wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
                GpuError::Failed { message: description }
            }
        }
    }
}
