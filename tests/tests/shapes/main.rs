//! Tiny random models of odd shapes, every instruction set against the reference executor: sizes that are no multiple of a
//! vector, a tile or a block, mixed weight types, windows, batches, and going back.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

mod bitnet;
mod experts;
mod file;
mod gptq;
mod inputs;

use std::sync::Arc;

use file::{Random, Shape};
use tandem_engine::backend::Hidden;
use tandem_engine::cpu::{CpuBackend, CpuOptions, IsaLevel};
use tandem_engine::reference::Reference;
use tandem_engine::{Backend, Batch, Error, KvType, LoadOptions, Model, Outputs, Precision, Session};
use tandem_loader::{GgmlType, Gguf, quant};
use tandem_models::{BlockKind, Program, Step};

/// One way to run a model.
#[derive(Debug, Clone, Copy)]
struct Way {
    isa: IsaLevel,
    precision: Precision,
    kv_type: KvType,
    threads: usize,
    batch: usize,
}

fn open(shape: &Shape, random: &mut Random) -> Arc<Gguf> {
    Arc::new(Gguf::from_bytes("random.gguf".as_ref(), shape.file(random)).unwrap())
}

fn session(gguf: &Arc<Gguf>, way: Way, n_ctx: usize) -> Session {
    let options = LoadOptions {
        threads: Some(way.threads),
        n_ctx: Some(n_ctx),
        precision: way.precision,
        kv_type: way.kv_type,
        isa: Some(way.isa),
        ..LoadOptions::default()
    };
    let mut session = Session::new(Model::load(gguf.clone(), &options, &mut |_, _| ()).unwrap());
    session.set_batch(way.batch);
    session
}

/// Logits of every token, `[n_tokens, n_vocab]`.
fn all_logits(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    let mut out = Vec::new();
    session.eval_all(tokens, |row| out.extend_from_slice(row)).unwrap();
    out
}

/// Error of `got` relative to the power of `want`; NaN where anything is.
fn nmse(want: &[f32], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len());
    let square = |x: f64| x * x;
    let error: f64 = want.iter().zip(got).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    error / want.iter().map(|a| square(f64::from(*a))).sum::<f64>()
}

#[track_caller]
fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differ, None, "{what}");
}

/// Largest error accepted of a way to compute: some times the largest of these tests.
///
/// f32 sums of some hundred terms, through two layers, came to 6e-13. Activations of 8 bits are off by up to half a step,
/// 1/254 of the largest of their group, which came to 5e-4. The cache's formats, by themselves, came to 2e-7 (f16), 6e-5
/// (q8_0) and 7e-2 (q4_0). A wrong row, column or position is an error of about 1.
fn limit(way: Way, only_floats: bool) -> f64 {
    if way.precision == Precision::Exact {
        return 1e-11;
    }
    let activations = if only_floats { 1e-11 } else { 2e-3 };
    let cache = match way.kv_type {
        KvType::F32 => 0.0,
        KvType::F16 => 1e-6,
        KvType::Q8_0 => 3e-4,
        KvType::Q4_0 => 0.2,
    };
    activations + cache
}

/// All instruction sets, exact and fast, and fast with another cache.
fn ways(cache: KvType) -> Vec<Way> {
    let mut ways = Vec::new();
    for isa in IsaLevel::ALL.into_iter().filter(|isa| isa.is_available()) {
        let way = Way { isa, precision: Precision::Exact, kv_type: KvType::F32, threads: 2, batch: 512 };
        let fast = Way { precision: Precision::Fast, ..way };
        ways.extend([way, fast, Way { kv_type: cache, ..fast }]);
    }
    ways
}

fn check(shape: &Shape, n_tokens: usize, seed: u64) {
    let mut random = Random::new(seed);
    let gguf = open(shape, &mut random);
    let program = Program::from_gguf(&gguf).unwrap();
    let tokens: Vec<u32> = (0..n_tokens).map(|_| random.below(shape.n_vocab) as u32).collect();
    let expected = Reference::new(&program, &gguf).unwrap().eval(&tokens);
    let cache = [KvType::F16, KvType::Q8_0, KvType::Q4_0][seed as usize % 3];
    for way in ways(cache) {
        let what = format!("seed {seed}, {n_tokens} tokens, {way:?}, {shape:?}");
        let whole = all_logits(&mut session(&gguf, way, n_tokens), &tokens);
        if !rounding_may_choose(shape, way) {
            let error = nmse(&expected, &whole);
            assert!(error <= limit(way, shape.only_floats()), "NMSE {error:.1e}: {what}");
        }

        let batch = n_tokens.div_ceil(2 + random.below(5));
        for (threads, batch) in [(1, 1), (3, batch)] {
            let way = Way { threads, batch, ..way };
            let again = all_logits(&mut session(&gguf, way, n_tokens), &tokens);
            assert_same_bits(&whole, &again, &format!("{threads} threads, batches of {batch}: {what}"));
        }

        // Other tokens where the last ones were, and the last ones again: what was there must not show.
        let kept = random.below(n_tokens);
        let mut session = session(&gguf, Way { batch, ..way }, n_tokens);
        session.eval(&tokens[..kept], Outputs::None).unwrap();
        let others: Vec<u32> = tokens[kept..].iter().map(|t| (t + 1) % shape.n_vocab as u32).collect();
        session.eval(&others, Outputs::None).unwrap();
        session.truncate(kept);
        let last = session.eval(&tokens[kept..], Outputs::Last).unwrap();
        assert_same_bits(&whole[whole.len() - shape.n_vocab..], last, &format!("back to {kept}: {what}"));
    }
}

/// Whether rounding, by as much as [`limit`] allows, may give a token another expert, and so another result.
fn rounding_may_choose(shape: &Shape, way: Way) -> bool {
    shape.experts.is_some_and(|(n, used)| used < n) && limit(way, shape.only_floats()) > 1e-9
}

/// Each block by itself, from the reference's input: routers then see what the reference's see.
fn check_blocks(shape: &Shape, n_tokens: usize, seed: u64) {
    let mut random = Random::new(seed);
    let gguf = open(shape, &mut random);
    let program = Arc::new(Program::from_gguf(&gguf).unwrap());
    let tokens: Vec<u32> = (0..n_tokens).map(|_| random.below(shape.n_vocab) as u32).collect();
    let batch = Batch { tokens: &tokens, start: 0, outputs: (0, n_tokens) };
    for way in ways(KvType::F16) {
        let Way { isa, precision, kv_type, threads, .. } = way;
        let options = CpuOptions { threads, precision, kv_type, n_ctx: n_tokens, isa: Some(isa), inputs: None };
        let blocks = 0..program.blocks.len();
        let mut cpu = CpuBackend::load(&gguf, &program, std::slice::from_ref(&blocks), options, &mut |_| ()).unwrap();
        let mut reference = Reference::new(&program, &gguf).unwrap();
        let mut hidden = Hidden::default();
        for block in blocks {
            let mut got = hidden.clone();
            cpu.run(block..block + 1, &batch, &mut got).unwrap();
            reference.block(block, &tokens, &mut hidden);
            let kind = program.blocks[block].kind;
            let error = match kind {
                BlockKind::Head => nmse(&hidden.logits, &got.logits),
                BlockKind::Embed | BlockKind::Attention(_) | BlockKind::FeedForward(_) => nmse(&hidden.x, &got.x),
            };
            let what = format!("seed {seed}, {n_tokens} tokens, {way:?}, {shape:?}");
            assert!(error <= limit(way, shape.only_floats()), "NMSE {error:.1e} in {kind}: {what}");
        }
    }
}

#[test]
fn random_shapes() {
    for seed in 0..16 {
        let mut random = Random::new(1000 + seed);
        let shape = Shape::random(&mut random);
        check(&shape, 1 + random.below(50), seed);
    }
}

/// As embedding table, as head, and as every matrix between.
#[test]
fn every_type_in_every_role() {
    let storable = GgmlType::ALL.iter().filter(|ty| quant::decode_fn(**ty).is_some());
    for (i, ty) in storable.enumerate() {
        let mut random = Random::new(90 + i as u64);
        let shape = Shape {
            arch: "llama",
            n_embd: 256,
            n_head_kv: 2,
            group: 4,
            head_dim: 32,
            n_rot: 32,
            n_ff: vec![256],
            types: vec![*ty],
            ..Shape::random(&mut random)
        };
        check(&shape, 9, i as u64);
    }
}

/// The cache is attended in chunks of 256 positions, cut in tiles of 16.
#[test]
fn windows_across_chunks() {
    for (i, window) in [1, 2, 15, 16, 17, 255, 256, 257, 270, 600].into_iter().enumerate() {
        let shape = Shape {
            arch: "gemma3",
            n_embd: 20,
            n_head_kv: 1,
            group: 1 + i % 5,
            head_dim: 10,
            n_rot: 10,
            n_ff: vec![17, 31],
            experts: None,
            expert_width: None,
            also: None,
            n_vocab: 23,
            window,
            period: 2,
            biases: false,
            tied: true,
            soft_cap: None,
            alignment: 32,
            types: vec![GgmlType::F32],
        };
        check(&shape, 258 + 6 * i, window as u64);
    }
}

#[test]
fn a_window_of_0_is_none() {
    let mut random = Random::new(5);
    let shape = Shape { arch: "gemma3", window: 0, period: 2, ..Shape::random(&mut random) };
    let program = Program::from_gguf(&open(&shape, &mut random)).unwrap();
    let steps = || program.blocks.iter().flat_map(|b| &b.steps);
    assert_eq!(steps().filter(|step| matches!(step, Step::Attend { window: None, .. })).count(), 2);
    assert_eq!(steps().filter(|step| matches!(step, Step::Rope { rope: 0 })).count(), 2);
}

/// A model with broken weights must say so, and not talk on in numbers that hide it.
#[test]
fn a_nan_weight_reaches_the_logits() {
    let dense = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let routed = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
    let parts = dense.map(|part| (part, None)).into_iter().chain(routed.map(|part| (part, Some((2, 2)))));
    let parts: Vec<_> = parts.chain([("ffn_gate_inp", Some((4, 2)))]).collect();
    for (ty, (part, experts)) in [GgmlType::F32, GgmlType::Q8_0].iter().flat_map(|ty| parts.iter().map(|p| (*ty, *p))) {
        let shape = Shape {
            arch: "llama",
            n_embd: 64,
            n_head_kv: 2,
            group: 3,
            head_dim: 32,
            n_rot: 32,
            n_ff: vec![32],
            experts,
            expert_width: None,
            also: None,
            n_vocab: 20,
            window: 1,
            period: 1,
            biases: false,
            tied: true,
            soft_cap: None,
            alignment: 32,
            types: vec![ty],
        };
        let mut bytes = shape.file(&mut Random::new(2));
        let gguf = Gguf::from_bytes("random.gguf".as_ref(), bytes.clone()).unwrap();
        let tensor = gguf.tensor(&format!("blk.0.{part}.weight")).unwrap();
        // The first weight, or the first block's scale: all bits of either are a NaN.
        let n = if tensor.ty == GgmlType::F32 { 4 } else { 2 };
        bytes[tensor.offset()..tensor.offset() + n].fill(0xff);
        let gguf = Arc::new(Gguf::from_bytes("random.gguf".as_ref(), bytes).unwrap());
        for way in ways(KvType::F16) {
            let logits = all_logits(&mut session(&gguf, way, 300), &[1; 300]);
            assert!(logits.iter().all(|x| x.is_nan()), "{part} in {ty}: {way:?}");
        }
    }
}

#[test]
fn a_context_beyond_all_memory_is_an_error() {
    let mut random = Random::new(3);
    let gguf = open(&Shape::random(&mut random), &mut random);
    for n_ctx in [1 << 44, 1 << 58, 1 << 60, 1 << 62, usize::MAX] {
        let options = LoadOptions { n_ctx: Some(n_ctx), threads: Some(1), ..LoadOptions::default() };
        match Model::load(gguf.clone(), &options, &mut |_, _| ()) {
            Err(Error::OutOfMemory { .. }) => {}
            Err(other) => panic!("{n_ctx}: {other}"),
            Ok(_) => panic!("{n_ctx} positions were accepted"),
        }
    }
}

#[test]
fn a_full_context_and_a_bad_token_leave_the_session_usable() {
    let mut random = Random::new(4);
    let shape = Shape::random(&mut random);
    let gguf = open(&shape, &mut random);
    let way = Way { batch: 3, ..ways(KvType::F16)[0] };
    let mut session = session(&gguf, way, 10);
    let first = session.eval(&[1, 2, 3, 4], Outputs::Last).unwrap().to_vec();
    assert!(matches!(session.eval(&[0; 7], Outputs::Last), Err(Error::ContextFull { needed: 11, n_ctx: 10 })));
    assert!(matches!(session.eval(&[shape.n_vocab as u32], Outputs::Last), Err(Error::BadToken { .. })));
    assert!(session.eval(&[], Outputs::Last).unwrap().is_empty());
    assert_eq!(session.tokens(), [1, 2, 3, 4]);
    session.truncate(2);
    assert_same_bits(&first, session.eval(&[3, 4], Outputs::Last).unwrap(), "after errors");
}
