//! `tandem plan`: what would run where, worked out from the file's header.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value, json};
use tandem_engine::cpu::CpuInfo;
use tandem_engine::placement::{Device, Measure, Needs, Plan};

use crate::args::{LoadArgs, ModelArgs};
use crate::interrupt::Interrupt;
use crate::open;
use crate::placement;
use crate::ui::{self, Ui};

/// Options of `tandem plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// Plans and shows.
pub(crate) fn run(args: &PlanArgs, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
    let gguf = open::open(&args.model, ui, interrupt)?;
    let options = args.load.options();
    let plan =
        interrupt.leaving(|| placement::with_speeds(Measure::Always, ui, |speeds| Plan::new(&gguf, &options, speeds)));
    let plan = open::of_file(plan, &gguf)?;
    placement::warn(&plan, ui);
    let text = if args.json { format!("{:#}\n", as_json(&plan)) } else { as_text(&plan) };
    Ok(ui::print(text)?)
}

/// The kinds of bytes, in the order shown.
fn kinds(needs: &Needs) -> [(&'static str, u64); 5] {
    [
        ("weights", needs.memory.weights as u64),
        ("KV cache", needs.memory.kv_cache as u64),
        ("scratch", needs.memory.scratch as u64),
        ("staging", needs.staging as u64),
        ("total", needs.total()),
    ]
}

fn device_name(plan: &Plan, device: Device) -> String {
    match device {
        Device::Cpu => format!("{}, {} threads", CpuInfo::name(), plan.cpu.threads),
        Device::Gpu => plan.adapter.as_ref().map(|a| format!("{}, {}, {}", a.name, a.api, a.kind)).unwrap_or_default(),
    }
}

fn as_text(plan: &Plan) -> String {
    let mut out = String::new();
    for device in plan.placement.devices_in_use() {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{device}  {}", device_name(plan, device));
        let _ = writeln!(out, "     {}", plan.placement.parts_on(&plan.program, device));
    }
    let _ = write!(out, "\n{:<10}", "memory");
    plan.ledger.devices.iter().for_each(|(device, _)| {
        let _ = write!(out, "{:>14}", device.name());
    });
    for (i, (name, _)) in kinds(&Needs::default()).iter().enumerate() {
        let _ = write!(out, "\n  {name:<8}");
        plan.ledger.devices.iter().for_each(|(_, needs)| {
            let _ = write!(out, "{:>14}", ui::bytes(kinds(needs)[i].1));
        });
    }
    let _ = writeln!(out, "\n  for a context of {} tokens, cache of type {}", plan.n_ctx, plan.kv_type.name());
    if let Some(budget) = plan.budget.filter(|_| plan.adapter.is_some()) {
        let _ = writeln!(out, "  GPU memory allowed: {}", ui::bytes(budget));
    }
    if let Some(prediction) = &plan.prediction {
        let (first, last) = (prediction.tokens_per_second(0), prediction.tokens_per_second(plan.n_ctx - 1));
        let _ = writeln!(out, "\npredicted generation: {first:.1} tokens/s at the start, {last:.1} in a full context");
    }
    out
}

fn as_json(plan: &Plan) -> Value {
    let devices = plan.ledger.devices.iter().map(|(device, needs)| {
        json!({
            "device": device.name(),
            "name": device_name(plan, *device),
            "parts": plan.placement.parts_on(&plan.program, *device),
            "weights": needs.memory.weights,
            "kv_cache": needs.memory.kv_cache,
            "scratch": needs.memory.scratch,
            "staging": needs.staging,
            "total": needs.total(),
        })
    });
    let blocks = plan.program.blocks.iter().zip(plan.placement.devices());
    let runs = plan.placement.runs.iter().map(|(device, blocks)| {
        let kind = |i: usize| plan.program.blocks[i].kind.to_string();
        json!({ "device": device.name(), "first": kind(blocks.start), "last": kind(blocks.end - 1) })
    });
    let speed = |depth: usize| plan.prediction.as_ref().map(|prediction| prediction.tokens_per_second(depth));
    json!({
        "n_ctx": plan.n_ctx,
        "kv_type": plan.kv_type.name(),
        "devices": devices.collect::<Vec<_>>(),
        "runs": runs.collect::<Vec<_>>(),
        "blocks": blocks
            .map(|(block, device)| json!({ "block": block.kind.to_string(), "device": device.name() }))
            .collect::<Vec<_>>(),
        "gpu": plan.adapter.as_ref().map(|adapter| json!({ "index": adapter.index, "name": adapter.name })),
        "vram_budget": plan.budget,
        "predicted_tokens_per_second": speed(0),
        "predicted_tokens_per_second_full_context": speed(plan.n_ctx - 1),
        "notes": plan.notes,
    })
}
