//! The ledger against the memory that the system counts for this process. By itself, so that no other test's is counted.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use std::sync::Arc;

use tandem_engine::placement::{Device, GpuLayers, Plan, Speeds, Wanted};
use tandem_engine::{LoadOptions, Model, Outputs, Session};
use tandem_loader::Gguf;

/// Bytes of this process that are in memory and in no file.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

#[test]
fn what_is_planned_for_the_cpu_is_what_it_takes() {
    let Some(path) = tandem_tests::model("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let gguf = Arc::new(Gguf::open(&path).unwrap());
    let wanted = Wanted { layers: GpuLayers::Count(0), ..Wanted::default() };
    let options = LoadOptions { n_ctx: Some(1024), threads: Some(2), wanted, ..LoadOptions::default() };
    let plan = Plan::new(&gguf, &options, &mut Speeds::default()).unwrap();
    let planned = plan.ledger.on(Device::Cpu).total();
    let before = resident();
    let mut session = Session::new(Model::from_plan(gguf, plan, &mut |_, _| ()).unwrap());
    // Memory counts once it is written: the whole cache, and a full batch.
    session.eval(&[1; 1024], Outputs::None).unwrap();
    let held = resident() - before;
    println!("planned {planned}, held {held}");
    assert!(planned.abs_diff(held) as f64 <= 0.03 * held as f64, "planned {planned}, held {held}");
}
