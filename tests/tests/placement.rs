//! Plans against what is really allocated, without a GPU: the reference files' tiny models and the catalog's.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use std::path::Path;
use std::sync::Arc;

use tandem_engine::placement::{Device, Plan, Speeds};
use tandem_engine::{KvType, LoadOptions, MemoryReport, Model, Outputs, Precision, Session};
use tandem_loader::Gguf;
use tandem_models::Program;

/// How far the ledger may be from what is allocated.
const TOLERANCE: f64 = 0.03;

fn assert_close(name: &str, planned: MemoryReport, held: MemoryReport) {
    let kinds = [
        ("weights", planned.weights, held.weights),
        ("KV cache", planned.kv_cache, held.kv_cache),
        ("scratch", planned.scratch, held.scratch),
    ];
    for (kind, planned, held) in kinds {
        let off = planned.abs_diff(held) as f64 / held.max(1) as f64;
        assert!(off <= TOLERANCE, "{name}: {kind} planned {planned}, held {held}");
    }
}

/// The ledger of the CPU, after loading and after as long a batch and as deep a token as there can be.
fn check(path: &Path, options: &LoadOptions) {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    let name = format!("{} {:?} {:?}", path.display(), options.precision, options.kv_type);
    let plan = Plan::new(&gguf, options, &mut Speeds::default()).unwrap();
    let planned = plan.ledger.on(Device::Cpu);
    assert_eq!(planned.staging, 0);
    let model = Model::from_plan(gguf, plan, &mut |_, _| ()).unwrap();
    assert_close(&name, planned.memory, model.memory());
    let n_ctx = model.n_ctx();
    let mut session = Session::new(model);
    session.eval(&vec![1; n_ctx - 1], Outputs::None).unwrap();
    session.eval(&[1], Outputs::Last).unwrap();
    assert_close(&name, planned.memory, session.model().memory());
}

#[test]
fn ledger_of_small_models() {
    let Some(dir) = tandem_tests::fixtures("archs") else { return };
    let mut checked = 0;
    for file in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let is_model = file.extension().is_some_and(|e| e == "gguf");
        if !is_model || Program::from_gguf(&Gguf::open(&file).unwrap()).is_err() {
            continue;
        }
        for precision in [Precision::Fast, Precision::Exact] {
            for kv_type in KvType::ALL {
                let options = LoadOptions { precision, kv_type, n_ctx: Some(600), ..LoadOptions::default() };
                check(&file, &options);
            }
        }
        checked += 1;
    }
    assert!(checked >= 10, "only {checked} models checked");
}

#[test]
fn ledger_of_real_models() {
    for file in ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        let Some(path) = tandem_tests::model(file) else { continue };
        check(&path, &LoadOptions { n_ctx: Some(700), threads: Some(2), ..LoadOptions::default() });
    }
}
