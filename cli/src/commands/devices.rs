//! `tandem devices`: what there is to run models on.

use std::fmt::Write;

use clap::Args;
use serde_json::{Map, Value, json};
use tandem_engine::cpu::CpuInfo;
use tandem_engine::placement::Adapter;
use tandem_engine::placement::adapter::{NO_ADAPTER, adapters};

use crate::threads::physical_cores;
use crate::ui;

/// Options of `tandem devices`.
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Shows.
pub(crate) fn run(args: &DevicesArgs) -> anyhow::Result<()> {
    let (cpu, adapters) = (CpuInfo::new(), adapters());
    let text = if args.json { format!("{:#}\n", as_json(&cpu, &adapters)) } else { as_text(&cpu, &adapters) };
    Ok(ui::print(text)?)
}

fn as_text(cpu: &CpuInfo, adapters: &[Adapter]) -> String {
    let mut out = String::new();
    let cores = physical_cores();
    let memory = cpu.memory.map(|n| format!("; {} of memory", ui::bytes(n))).unwrap_or_default();
    // Writing to a String does not fail.
    let _ = writeln!(out, "CPU    {}", cpu.name);
    let _ = writeln!(out, "       {cores} cores this process may use{memory}");
    let _ = writeln!(out, "       kernels: {}; features: {}", cpu.isa.name(), cpu.features.join(" "));
    for adapter in adapters {
        let _ = writeln!(out, "GPU {}  {}", adapter.index, adapter.name);
        let _ = writeln!(out, "       {}, {}, driver {}", adapter.kind, adapter.api, adapter.driver);
        let memory = adapter.memory.map_or("not told".to_owned(), ui::bytes);
        let _ = writeln!(out, "       memory {memory}; {}", limits(adapter));
        let features: Vec<String> =
            adapter.features.iter().map(|(name, has)| format!("{name} {}", if *has { "yes" } else { "no" })).collect();
        let _ = writeln!(out, "       {}", features.join(", ").replace('_', " "));
        if let Some(why) = &adapter.unusable {
            let _ = writeln!(out, "       cannot be used: {why}");
        } else if adapter.software {
            let _ = writeln!(out, "       runs on the CPU: used when asked for (-ngl N or all), never by -ngl auto");
        }
    }
    if adapters.is_empty() {
        let _ = writeln!(out, "no GPU: {NO_ADAPTER}");
    }
    out
}

fn limits(adapter: &Adapter) -> String {
    let shown = adapter.limits.iter().map(|(name, value)| {
        let value = if name.contains("subgroup") { value.to_string() } else { ui::bytes(*value) };
        format!("{} {value}", name.replace('_', " "))
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn as_json(cpu: &CpuInfo, list: &[Adapter]) -> Value {
    let gpu = |adapter: &Adapter| {
        let features: Map<String, Value> =
            adapter.features.iter().map(|(name, has)| ((*name).to_owned(), json!(has))).collect();
        let limits: Map<String, Value> =
            adapter.limits.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({
            "index": adapter.index,
            "name": adapter.name,
            "backend": adapter.api,
            "driver": adapter.driver,
            "kind": adapter.kind,
            "software": adapter.software,
            "usable": adapter.unusable.is_none(),
            "unusable_because": adapter.unusable,
            "memory_bytes": adapter.memory,
            "features": features,
            "limits": limits,
        })
    };
    json!({
        "cpu": {
            "name": cpu.name,
            "cores": physical_cores(),
            "kernels": cpu.isa.name(),
            "features": cpu.features,
            "memory_bytes": cpu.memory,
        },
        "gpus": list.iter().map(gpu).collect::<Vec<_>>(),
        "no_gpu_because": list.is_empty().then_some(NO_ADAPTER),
    })
}
