//! Placement on the command line: its options, the figures kept of devices, and the lines that say what runs where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tandem_engine::Model;
use tandem_engine::placement::{Bytes, DeviceSpeed, GpuLayers, Measure, Plan, Rules, Speeds, Wanted};

use crate::fetch::FetchOptions;
use crate::ui::{self, Ui};

/// What runs where, beside the number of layers.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlacementArgs {
    /// Where single parts go, over what --gpu-layers says: attn, ffn, experts, layers (with .N or .N-M), embed, output;
    /// as in 'attn=gpu, ffn.0-11=cpu'. Later rules override earlier ones
    #[arg(long, value_name = "RULES")]
    pub(crate) place: Option<Rules>,
    /// The experts of all layers on the CPU: short for --place experts=cpu
    #[arg(long)]
    pub(crate) cpu_moe: bool,
    /// Which GPU: its index or a part of its name, from `tandem devices` [default: the best one]
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// GPU memory that may be used, as in 4GiB or 500MiB [default: what the device has, less a tenth]
    #[arg(long, value_name = "BYTES")]
    pub(crate) vram_budget: Option<Bytes>,
    /// An error where something cannot be placed as asked
    #[arg(long)]
    pub(crate) strict_placement: bool,
}

impl PlacementArgs {
    /// What the engine is asked for.
    pub(crate) fn wanted(&self, layers: GpuLayers) -> Wanted {
        Wanted {
            layers,
            rules: self.place.clone().unwrap_or_default(),
            cpu_moe: self.cpu_moe,
            device: self.device.clone(),
            vram_budget: self.vram_budget.map(|bytes| bytes.0),
            strict: self.strict_placement,
        }
    }
}

/// The folder of what can be made again: figures of devices, compiled GPU kernels.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    FetchOptions::from_env().models_dir.parent().map(Path::to_owned)
}

/// The figures of a device, as they are kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    visit_seconds: f64,
    step_seconds: f64,
    product_seconds: f64,
    transfer_seconds_per_byte: f64,
    bytes_per_second: BTreeMap<String, f64>,
}

/// Runs `work` with the figures kept of devices, and keeps what it adds to them.
pub(crate) fn with_speeds<T>(measure: Measure, ui: &Ui, work: impl FnOnce(&mut Speeds<'_>) -> T) -> T {
    let path = cache_folder().map(|folder| folder.join("speeds.json"));
    let text = path.as_ref().and_then(|path| std::fs::read(path).ok());
    // A file that cannot be read is made again.
    let kept: BTreeMap<String, Value> = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let entry = |(key, kept)| Some((key, DeviceSpeed::from(serde_json::from_value::<Kept>(kept).ok()?)));
    let kept = kept.into_iter().filter_map(entry);
    let table: BTreeMap<String, DeviceSpeed> = kept.filter(|(_, speed)| speed.is_plausible()).collect();
    let say = |device| ui.note(format_args!("measuring the {device} (once)"));
    let mut speeds = Speeds { table: table.clone(), measure, on_measure: Some(&say) };
    let result = work(&mut speeds);
    if let Some(path) = path.filter(|_| speeds.table != table) {
        let kept: BTreeMap<String, Kept> = speeds.table.into_iter().map(|(key, speed)| (key, speed.into())).collect();
        // Without the file they are measured again the next time.
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ =
            serde_json::to_vec_pretty(&kept).map(|text| crate::output::write(&path, |out| Ok(out.write_all(&text)?)));
    }
    result
}

impl From<Kept> for DeviceSpeed {
    fn from(kept: Kept) -> DeviceSpeed {
        DeviceSpeed {
            visit: kept.visit_seconds,
            step: kept.step_seconds,
            product: kept.product_seconds,
            transfer: kept.transfer_seconds_per_byte,
            rates: kept.bytes_per_second,
        }
    }
}

impl From<DeviceSpeed> for Kept {
    fn from(speed: DeviceSpeed) -> Kept {
        Kept {
            visit_seconds: speed.visit,
            step_seconds: speed.step,
            product_seconds: speed.product,
            transfer_seconds_per_byte: speed.transfer,
            bytes_per_second: speed.rates,
        }
    }
}

/// Says what of a plan is not as asked.
pub(crate) fn warn(plan: &Plan, ui: &Ui) {
    plan.notes.iter().for_each(|note| ui.warn(note));
}

/// Says what runs where, how fast it should be, and (with `-v`) in how much memory.
pub(crate) fn describe(model: &Model, ui: &Ui) {
    let plan = model.plan();
    let speed = plan
        .prediction
        .as_ref()
        .map(|prediction| prediction.tokens_per_second(0))
        .map(|speed| format!("; about {speed:.*} t/s expected", usize::from(speed < 10.0)));
    ui.note(format_args!(
        "{}; {}; context {}{}",
        plan.placement.describe(&plan.program),
        model.backend_names().join(", "),
        plan.n_ctx,
        speed.unwrap_or_default()
    ));
    for (device, memory) in model.memory_by_device() {
        ui.detail(format_args!(
            "{device} memory: weights {}, KV cache {}, scratch {}",
            ui::bytes(memory.weights as u64),
            ui::bytes(memory.kv_cache as u64),
            ui::bytes(memory.scratch as u64)
        ));
    }
}
