//! The ledger against what the allocator of GPU memory says it holds, kind by kind.

use std::ops::Range;
use std::sync::Arc;

use tandem_loader::{GgmlType, Gguf};
use tandem_models::{Activation, Program, Reg, Rope, RopePairing, Step};

use super::super::layout::STAGING;
use super::super::upload::Staging;
use super::super::{GpuBackend, GpuOptions};
use super::bench::{Plan, has_device, options};
use crate::backend::{Backend, Batch, Hidden, MemoryReport};
use crate::cpu::CpuOptions;
use crate::model::{KvType, Precision};
use crate::placement::{Device, Ledger, Placement};

/// How far the ledger may be from what is held: what allocations are rounded up to.
const TOLERANCE: f64 = 0.03;

const N_LAYER: usize = 4;
const N_EMBD: usize = 256;

/// What the allocator holds, and how much of it is nobody's: wgpu's own.
fn held(gpu: &GpuBackend) -> (MemoryReport, usize, usize) {
    let (mut memory, mut staging, mut own) = (MemoryReport::default(), 0, 0);
    let report = gpu.gpu.device.generate_allocator_report().expect("Vulkan has one");
    for allocation in &report.allocations {
        *match allocation.name.as_str() {
            "weights" | "norms and biases" => &mut memory.weights,
            "the KV cache" => &mut memory.kv_cache,
            "activations and logits" | "int8 activations" | "angles" | "shares of attention" => &mut memory.scratch,
            "routing" | "sampling" | "reading back" => &mut memory.scratch,
            "staging" => &mut staging,
            _ => &mut own,
        } += allocation.size as usize;
    }
    (memory, staging, own)
}

fn check(what: &str, planned: usize, held: usize) {
    let off = held.abs_diff(planned) as f64;
    assert!(off <= TOLERANCE * planned as f64, "{what}: {planned} bytes planned, {held} held");
}

/// Attention and a mixture of experts in each layer, a gated unit in the last, and an output head: every kind of buffer.
fn model() -> (Arc<Gguf>, Arc<Program>) {
    let mut plan = Plan::new(N_EMBD, 512, (4, 2, 64));
    plan.ropes = vec![Rope { pairing: RopePairing::NeoX, freqs: vec![0.01; 32], magnitude: 1.0 }];
    plan.hparams.n_layer = N_LAYER;
    plan.hparams.n_ff = vec![512; N_LAYER];
    plan.hparams.n_vocab = 3000;
    (plan.hparams.n_expert, plan.hparams.n_expert_used) = (8, 2);
    for layer in 0..N_LAYER {
        let norm = Step::Norm { norm: plan.norm(N_EMBD), input: Reg::X, output: Reg::H, add: false };
        let q = plan.linear(GgmlType::Q4_K, N_EMBD, 256, true);
        let [k, v] = [0; 2].map(|_| plan.linear(GgmlType::Q4_K, N_EMBD, 128, false));
        let linear = plan.linear(GgmlType::Q8_0, 256, N_EMBD, false);
        plan.blocks.push(vec![
            norm,
            Step::Qkv { q, k, v },
            Step::Rope { rope: 0 },
            Step::StoreKv { layer },
            Step::Attend { layer, scale: 0.125, window: None },
            Step::Linear { linear, input: Reg::A, output: Reg::X, add: true },
        ]);
        let norm = Step::Norm { norm: plan.norm(N_EMBD), input: Reg::X, output: Reg::H, add: false };
        let router = plan.linear(GgmlType::F32, N_EMBD, 8, false);
        let [gate, up] = [0; 2].map(|_| plan.experts(GgmlType::Q4_0, N_EMBD, 256));
        let down = plan.experts(GgmlType::Q6_K, 256, N_EMBD);
        let mut steps = vec![
            norm,
            Step::Route { router, normalize: true },
            Step::ExpertGlu { gate, up, act: Activation::Silu },
            Step::ExpertDown { down, output: Reg::X, add: true },
        ];
        if layer + 1 == N_LAYER {
            let [gate, up] = [0; 2].map(|_| plan.linear(GgmlType::F16, N_EMBD, 512, false));
            let linear = plan.linear(GgmlType::F16, 512, N_EMBD, false);
            steps.push(Step::Glu { gate, up, act: Activation::Silu });
            steps.push(Step::Linear { linear, input: Reg::F, output: Reg::X, add: true });
        }
        plan.blocks.push(steps);
    }
    let norm = Step::Norm { norm: plan.norm(N_EMBD), input: Reg::X, output: Reg::H, add: false };
    let linear = plan.linear(GgmlType::Q6_K, N_EMBD, 3000, false);
    plan.blocks.push(vec![norm, Step::Logits { linear, soft_cap: None }]);
    plan.model()
}

/// The ledger of a placement with `blocks` on the GPU beside what loading them, and then a whole batch, leaves allocated.
fn check_blocks(blocks: Range<usize>, kv_type: KvType) {
    let (gguf, program) = model();
    let device = |b| if blocks.contains(&b) { Device::Gpu } else { Device::Cpu };
    let placement = Placement::from_devices(&(0..program.blocks.len()).map(device).collect::<Vec<_>>());
    let options = GpuOptions { kv_type, n_ctx: 2048, max_batch: 200, ..options(Precision::Fast) };
    let cpu = CpuOptions { threads: 1, precision: options.precision, kv_type, n_ctx: 2048, isa: None, inputs: None };
    let planned = Ledger::new(&gguf, &program, &placement, &cpu, &options).unwrap().on(Device::Gpu);

    let parts = placement.blocks_on(Device::Gpu);
    let mut gpu = GpuBackend::load(&gguf, &program, &parts, &options, &mut |_| ()).unwrap();
    let mut hidden = Hidden { x: vec![0.5; 200 * N_EMBD], ..Hidden::default() };
    let batch = Batch { tokens: &[0; 200], start: 0, outputs: (200, 200) };
    for when in ["loaded", "used"] {
        let (held, staging, own) = held(&gpu);
        let what = |kind: &str| format!("blocks {blocks:?}, {} cache, {when}: {kind}", kv_type.name());
        check(&what("weights"), planned.memory.weights, held.weights);
        check(&what("KV cache"), planned.memory.kv_cache, held.kv_cache);
        check(&what("scratch"), planned.memory.scratch, held.scratch);
        // Freed after loading.
        assert_eq!(staging, 0, "{}", what("staging"));
        // A buffer of zeros (0.5 MiB), and inputs on their way to the queue.
        assert!(own <= 1 << 20, "{}: {own}", what("wgpu's own"));
        gpu.run(blocks.clone(), &batch, &mut hidden).unwrap();
    }
}

#[test]
fn the_ledger_is_what_is_held() {
    if !has_device() {
        return;
    }
    let n_blocks = 2 * N_LAYER + 1;
    for kv_type in [KvType::F16, KvType::Q8_0] {
        check_blocks(0..n_blocks, kv_type);
        check_blocks(N_LAYER..n_blocks, kv_type);
    }
    // Without the output head.
    check_blocks(N_LAYER..n_blocks - 1, KvType::F16);
}

#[test]
fn staging_is_what_is_planned() {
    if !has_device() {
        return;
    }
    let (gguf, program) = model();
    let whole = 0..program.blocks.len();
    let gpu = GpuBackend::load(&gguf, &program, std::slice::from_ref(&whole), &options(Precision::Fast), &mut |_| ())
        .unwrap();
    let planned = super::super::required_bytes(&gguf, &program, &[whole], &options(Precision::Fast)).unwrap();
    let staging = Staging::new(&gpu.gpu);
    check("staging", planned.staging, held(&gpu).1);
    assert_eq!(planned.staging, 2 * STAGING);
    drop(staging);
}
