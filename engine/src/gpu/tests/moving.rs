//! A GPU that fails in the middle of a sequence: the CPU goes on, and what it computes is what it would have computed alone.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_loader::{GgmlType, Gguf};
use tandem_models::{Activation, BlockKind, Program, Reg, Rope, RopePairing, Step, WeightId};

use super::super::{GpuBackend, GpuError};
use super::bench::{Plan as Steps, has_device, nmse, options};
use crate::backend::{Backend, Batch, Hidden, MemoryReport};
use crate::cpu::{CpuBackend, CpuOptions};
use crate::error::{Error, Result};
use crate::model::{KvType, Model, Precision};
use crate::placement::{Device, Ledger, Placement, Plan};
use crate::session::{Outputs, Session};

const N_EMBD: usize = 64;
const N_VOCAB: usize = 50;
/// What is evaluated: a prompt in batches of 2, and single tokens after it.
const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];
const ANSWER: [u32; 4] = [9, 2, 6, 5];
/// Passes that this takes.
const N_PASSES: usize = 3 + ANSWER.len();

/// A model of one layer.
fn model() -> (Arc<Gguf>, Arc<Program>) {
    let mut steps = Steps::new(N_EMBD, 128, (2, 1, 32));
    steps.hparams.n_vocab = N_VOCAB;
    steps.ropes.push(Rope { pairing: RopePairing::NeoX, freqs: vec![0.1; 16], magnitude: 1.0 });
    let table = steps.table(N_EMBD, N_VOCAB);
    steps.blocks.push(vec![Step::Embed { table, scale: 1.0 }]);
    let [q, k, v] = [64, 32, 32].map(|n| steps.linear(GgmlType::F16, N_EMBD, n, false));
    let linear = steps.linear(GgmlType::F16, 64, N_EMBD, false);
    let norm = Step::Norm { norm: steps.norm(N_EMBD), input: Reg::X, output: Reg::H, add: false };
    steps.blocks.push(vec![
        norm,
        Step::Qkv { q, k, v },
        Step::Rope { rope: 0 },
        Step::StoreKv { layer: 0 },
        Step::Attend { layer: 0, scale: 0.2, window: None },
        Step::Linear { linear, input: Reg::A, output: Reg::X, add: true },
    ]);
    let [gate, up] = [0; 2].map(|_| steps.linear(GgmlType::F16, N_EMBD, 128, false));
    let linear = steps.linear(GgmlType::F16, 128, N_EMBD, false);
    let norm = Step::Norm { norm: steps.norm(N_EMBD), input: Reg::X, output: Reg::H, add: false };
    let glu = Step::Glu { gate, up, act: Activation::Silu };
    steps.blocks.push(vec![norm, glu, Step::Linear { linear, input: Reg::F, output: Reg::X, add: true }]);
    let norm = Step::Norm { norm: steps.norm(N_EMBD), input: Reg::X, output: Reg::H, add: false };
    let linear = steps.linear(GgmlType::F16, N_EMBD, N_VOCAB, false);
    steps.blocks.push(vec![norm, Step::Logits { linear, soft_cap: None }]);

    let (gguf, program) = steps.model();
    let mut program = Arc::unwrap_or_clone(program);
    let kinds = [BlockKind::Embed, BlockKind::Attention(0), BlockKind::FeedForward(0), BlockKind::Head];
    for (block, kind) in program.blocks.iter_mut().zip(kinds) {
        block.kind = kind;
        block.weights = (0..program.weights.len()).map(WeightId).collect();
    }
    (gguf, Arc::new(program))
}

/// A sequence over a model whose blocks are where `devices` says, with what `gpu` gives for the GPU. A test's only threads
/// are its own.
fn session(
    devices: [Device; 4],
    mut gpu: impl FnMut(&Arc<Gguf>, &Plan, &[Range<usize>]) -> Box<dyn Backend>,
) -> Session {
    let (gguf, program) = model();
    let placement = Placement::from_devices(&devices);
    let gpu_options = options(Precision::Exact);
    let (n_ctx, kv_type) = (gpu_options.n_ctx, KvType::F32);
    let cpu = CpuOptions { threads: 1, precision: Precision::Exact, kv_type, n_ctx, isa: None, inputs: None };
    let plan = Plan {
        ledger: Ledger::new(&gguf, &program, &placement, &cpu, &gpu_options).unwrap(),
        placement,
        adapter: None,
        budget: None,
        prediction: None,
        notes: vec![],
        n_ctx,
        kv_type,
        cpu,
        gpu: super::super::GpuOptions { kv_type, ..gpu_options },
        program,
    };
    let mut backends: Vec<(Device, Box<dyn Backend>)> = Vec::new();
    for device in plan.placement.devices_in_use() {
        let blocks = plan.placement.blocks_on(device);
        backends.push(match device {
            Device::Cpu => (device, on_cpu(&gguf, &plan, &blocks)),
            Device::Gpu => (device, gpu(&gguf, &plan, &blocks)),
        });
    }
    let mut session = Session::new(Model::of(gguf, plan, backends));
    session.set_batch(2);
    session
}

fn on_cpu(gguf: &Arc<Gguf>, plan: &Plan, blocks: &[Range<usize>]) -> Box<dyn Backend> {
    Box::new(CpuBackend::load(gguf, &plan.program, blocks, plan.cpu.clone(), &mut |_| ()).unwrap())
}

/// Lets a session go on, and collects what it says.
fn moving(session: &mut Session) -> Arc<Mutex<Vec<String>>> {
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let list = said.clone();
    session.move_when_a_gpu_fails(Box::new(move |line| list.lock().unwrap().push(line.to_owned())));
    said
}

/// Logits after the prompt, and after each token of the answer.
fn run(session: &mut Session) -> Result<Vec<Vec<f32>>> {
    let mut logits = vec![session.eval(&PROMPT, Outputs::Last)?.to_vec()];
    for token in ANSWER {
        logits.push(session.eval(&[token], Outputs::Last)?.to_vec());
    }
    Ok(logits)
}

fn cpu_alone() -> Vec<Vec<f32>> {
    run(&mut session([Device::Cpu; 4], |_, _, _| unreachable!("nothing is on the GPU"))).unwrap()
}

/// A device that is lost after some passes, with wrong results left behind.
struct Failing {
    inner: Box<dyn Backend>,
    left: usize,
    error: fn() -> Error,
}

impl Backend for Failing {
    fn name(&self) -> &str {
        "a failing GPU"
    }

    fn run(&mut self, blocks: Range<usize>, batch: &Batch<'_>, hidden: &mut Hidden) -> Result<()> {
        if self.left == 0 {
            hidden.x.fill(f32::NAN);
            hidden.logits.resize(N_VOCAB, f32::NAN);
            return Err((self.error)());
        }
        self.left -= 1;
        self.inner.run(blocks, batch, hidden)
    }

    fn memory(&self) -> MemoryReport {
        self.inner.memory()
    }

    fn register(&mut self, _: Reg, _: usize, _: usize, _: bool) -> Result<Vec<f32>> {
        Err((self.error)())
    }
}

fn lost() -> Error {
    GpuError::Lost { message: "in a test".into() }.into()
}

fn failing(devices: [Device; 4], left: usize, error: fn() -> Error) -> Session {
    session(devices, |gguf, plan, blocks| Box::new(Failing { inner: on_cpu(gguf, plan, blocks), left, error }))
}

/// Which blocks are on the GPU: the layer, all but the embedding, or one half.
const SPLITS: [[Device; 4]; 3] = [
    [Device::Cpu, Device::Gpu, Device::Gpu, Device::Cpu],
    [Device::Cpu, Device::Gpu, Device::Gpu, Device::Gpu],
    [Device::Cpu, Device::Cpu, Device::Gpu, Device::Cpu],
];

#[test]
fn the_answer_goes_on_as_if_the_cpu_had_done_it_all() {
    let want = cpu_alone();
    for devices in SPLITS {
        for left in 0..=N_PASSES {
            let mut session = failing(devices, left, lost);
            let said = moving(&mut session);
            // Bit for bit: both "devices" are the CPU here.
            assert_eq!(run(&mut session).unwrap(), want, "{devices:?}, lost after {left} passes");
            let said = said.lock().unwrap();
            let is_lost = left < N_PASSES;
            assert_eq!(said.len(), usize::from(is_lost), "{said:?}");
            assert!(
                said.iter().all(|line| line.contains("lost: in a test") && line.contains("on the CPU")),
                "{said:?}"
            );
            assert_eq!(session.tokens(), [&PROMPT[..], &ANSWER].concat());
            assert_eq!(session.model().placement().devices_in_use().contains(&Device::Gpu), !is_lost);
        }
    }
}

#[test]
fn without_leave_it_is_an_error() {
    let mut session = failing(SPLITS[0], 4, lost);
    assert!(matches!(run(&mut session), Err(Error::Gpu(GpuError::Lost { .. }))));
}

#[test]
fn what_is_not_the_gpus_failure_stays_an_error() {
    let error = || Error::ContextFull { needed: 2, n_ctx: 1 };
    let mut session = failing(SPLITS[0], 4, error);
    let said = moving(&mut session);
    assert!(matches!(run(&mut session), Err(Error::ContextFull { .. })));
    assert!(said.lock().unwrap().is_empty());
}

/// Tokens that are not in the new cache yet are not in the sequence either.
#[test]
fn an_interruption_on_the_way() {
    let mut session = failing(SPLITS[1], 4, lost);
    let interrupt = session.interrupt();
    let flag = interrupt.clone();
    session.move_when_a_gpu_fails(Box::new(move |_| flag.store(true, Ordering::Relaxed)));
    assert!(matches!(run(&mut session), Err(Error::Interrupted)));
    assert!(session.tokens().is_empty());
    // What was evaluated before stays counted, though none of it is left.
    let evaluated = session.n_evaluated();
    assert!(evaluated > 0);
    interrupt.store(false, Ordering::Relaxed);
    assert_eq!(run(&mut session).unwrap(), cpu_alone());
    assert_eq!(session.n_evaluated(), evaluated + session.tokens().len());
}

#[test]
fn a_real_device_lost_at_any_time() {
    if !has_device() {
        return;
    }
    let want = cpu_alone();
    for delay in [0, 1, 2, 4, 8] {
        let mut device = None;
        let mut session = session(SPLITS[1], |gguf, plan, blocks| {
            let gpu = GpuBackend::load(gguf, &plan.program, blocks, &plan.gpu, &mut |_| ()).unwrap();
            device = Some(gpu.gpu.device.clone());
            Box::new(gpu)
        });
        let said = moving(&mut session);
        let device = device.unwrap();
        let loss = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(delay));
            device.destroy();
        });
        // Again and again, until the device is gone and the CPU has done all of it once.
        let mut rounds_alone = 0;
        while rounds_alone < 2 {
            session.truncate(0);
            for (want, got) in want.iter().zip(run(&mut session).unwrap()) {
                // f32 sums in another order, as in `verify`.
                assert!(nmse(want, &got) < 1e-8, "lost after {delay} ms: {:.1e}", nmse(want, &got));
            }
            rounds_alone += said.lock().unwrap().len();
        }
        loss.join().unwrap();
        assert_eq!(said.lock().unwrap().len(), 1);
    }
}
