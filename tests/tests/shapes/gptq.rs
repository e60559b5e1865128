//! GPTQ on random models: what layers give changes less than with weights rounded one by one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tandem_engine::cpu::IsaLevel;
use tandem_engine::gptq::{self, How, Listener, Options, Quantized};
use tandem_engine::score::Windows;
use tandem_engine::{Error, KvType, Precision};
use tandem_loader::quantize::{Method, Recode};
use tandem_loader::{GgmlType, Gguf};
use tandem_models::Program;

use super::file::{Random, Shape};
use super::{Way, all_logits, nmse, open, session};

/// Tokens of a window.
const WINDOW: usize = 48;

/// Keeps tensors as they come.
#[derive(Default)]
struct Keep {
    tensors: HashMap<String, (Vec<u8>, How)>,
    passes: (usize, usize),
    stop_at: Option<usize>,
}

impl Listener for Keep {
    fn progress(&mut self, done: usize, total: usize, _: &str) -> tandem_engine::Result<()> {
        assert!(done <= total && done > self.passes.0, "{done} of {total} after {:?}", self.passes);
        self.passes = (done, total);
        if self.stop_at.is_some_and(|at| done >= at) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn tensor(&mut self, tensor: Quantized<'_>) -> tandem_engine::Result<()> {
        let old = self.tensors.insert(tensor.tensor.name.clone(), (tensor.data.to_vec(), tensor.how));
        assert!(old.is_none(), "{} twice", tensor.tensor.name);
        Ok(())
    }
}

fn options(threads: usize) -> Options {
    let stop = Arc::new(AtomicBool::new(false));
    Options { threads, damping: 0.01, act_order: true, importance: HashMap::new(), stop }
}

/// Types by tensor: one for all matrices, none for tables.
fn types(gguf: &Gguf, ty: GgmlType) -> HashMap<String, GgmlType> {
    let is_matrix = |name: &str| name.ends_with(".weight") && !name.contains("norm") && !name.contains("_inp");
    let matrices = gguf.tensors().iter().filter(|t| t.dims().len() > 1 && is_matrix(&t.name));
    matrices.map(|t| (t.name.clone(), ty)).collect()
}

fn windows(shape: &Shape, random: &mut Random, n: usize) -> Windows {
    let tokens = (0..n * WINDOW).map(|_| random.below(shape.n_vocab) as u32).collect();
    Windows::new(tokens, WINDOW, None, None, shape.n_vocab).unwrap()
}

/// The error of logits on windows, of the model with some tensors replaced.
fn error(gguf: &Arc<Gguf>, tensors: &HashMap<String, Vec<u8>>, ty: GgmlType, windows: &Windows) -> f64 {
    let mut quantized = Gguf::clone(gguf);
    tensors.iter().for_each(|(name, data)| quantized.replace(name, ty, data.clone()).unwrap());
    let quantized = Arc::new(quantized);
    let isa = IsaLevel::best(None);
    let way = Way { isa, precision: Precision::Exact, kv_type: KvType::F32, threads: 2, batch: WINDOW };
    let logits = |gguf: &Arc<Gguf>| {
        let windows = (0..windows.len()).map(|i| windows.tokens(i));
        windows.flat_map(|tokens| all_logits(&mut session(gguf, way, WINDOW), &tokens)).collect::<Vec<f32>>()
    };
    nmse(&logits(gguf), &logits(&quantized))
}

fn searched(gguf: &Gguf, types: &HashMap<String, GgmlType>) -> HashMap<String, Vec<u8>> {
    let encode = |(name, ty): (&String, &GgmlType)| {
        let tensor = gguf.tensor(name).unwrap();
        let recode = Recode::new(tensor, *ty, Method::Search).unwrap();
        let mut out = vec![0; recode.row_bytes().1 * tensor.n_rows()];
        recode.rows(0, gguf.data(tensor), None, &mut out, &AtomicBool::new(false)).unwrap();
        (name.clone(), out)
    };
    types.iter().map(encode).collect()
}

/// A shape whose rows divide into blocks of 32 (of 256 where asked for).
fn shape(arch: &'static str, block: usize, experts: Option<(usize, usize)>, random: &mut Random) -> Shape {
    Shape {
        arch,
        n_embd: block.max(96),
        n_head_kv: 2,
        group: 2,
        head_dim: block.max(32) / 4,
        n_rot: 8,
        n_ff: vec![block.max(160); 2],
        expert_width: Some(block.max(64)),
        experts,
        n_vocab: 97,
        tied: false,
        window: 40,
        types: vec![GgmlType::F16],
        ..Shape::random(random)
    }
}

#[test]
fn outputs_change_less_than_with_single_weights_rounded() {
    for (seed, (arch, ty, experts)) in [
        ("llama", GgmlType::Q4_0, None),
        ("gemma3", GgmlType::IQ4_NL, None),
        ("qwen2", GgmlType::Q4_K, None),
        ("qwen3", GgmlType::Q3_K, None),
        ("bitnet", GgmlType::Q5_1, None),
        ("qwen3moe", GgmlType::Q4_0, Some((4, 2))),
        ("llama", GgmlType::Q2_K, Some((3, 1))),
    ]
    .into_iter()
    .enumerate()
    {
        let mut random = Random::new(9100 + seed as u64);
        let shape = shape(arch, ty.block_size(), experts, &mut random);
        let gguf = open(&shape, &mut random);
        let program = Program::from_gguf(&gguf).unwrap();
        let windows = windows(&shape, &mut random, 12);
        let types = types(&gguf, ty);
        let mut keep = Keep::default();
        gptq::run(&gguf, &program, &types, &windows, &options(2), &mut keep).unwrap();
        assert_eq!(keep.passes.0, keep.passes.1, "{arch}");
        assert_eq!(keep.tensors.len(), types.len(), "{arch}");
        for (name, (_, how)) in &keep.tensors {
            assert_eq!(*how == How::Search, name == "token_embd.weight", "{arch}: {name}");
        }
        let bytes = keep.tensors.iter().map(|(name, (data, _))| (name.clone(), data.clone())).collect();
        let (gptq, search) = (error(&gguf, &bytes, ty, &windows), error(&gguf, &searched(&gguf, &types), ty, &windows));
        assert!(gptq < search, "{arch} {ty}: {gptq} {search}");
        // Threads do not show.
        let mut again = Keep::default();
        gptq::run(&gguf, &program, &types, &windows, &options(1), &mut again).unwrap();
        assert!(again.tensors == keep.tensors, "{arch}");
    }
}

#[test]
fn types_without_single_quants_are_searched_and_others_left_alone() {
    let mut random = Random::new(9200);
    let shape = shape("llama", 256, None, &mut random);
    let gguf = open(&shape, &mut random);
    let program = Program::from_gguf(&gguf).unwrap();
    let windows = windows(&shape, &mut random, 2);
    let types: HashMap<String, GgmlType> =
        [("blk.0.attn_q.weight", GgmlType::IQ2_XS), ("blk.1.ffn_down.weight", GgmlType::Q8_0)]
            .map(|(name, ty)| (name.to_owned(), ty))
            .into();
    let mut keep = Keep::default();
    gptq::run(&gguf, &program, &types, &windows, &options(2), &mut keep).unwrap();
    let how: Vec<(&str, How)> = {
        let mut rows: Vec<_> = keep.tensors.iter().map(|(name, (_, how))| (name.as_str(), *how)).collect();
        rows.sort_by_key(|row| row.0);
        rows
    };
    assert_eq!(how, [("blk.0.attn_q.weight", How::Search), ("blk.1.ffn_down.weight", How::Gptq)]);
}

#[test]
fn the_embedding_is_searched_with_the_importance_given() {
    let mut random = Random::new(9250);
    let shape = Shape { tied: true, ..shape("llama", 32, None, &mut random) };
    let gguf = open(&shape, &mut random);
    let program = Program::from_gguf(&gguf).unwrap();
    let windows = windows(&shape, &mut random, 1);
    let name = "token_embd.weight".to_owned();
    let tensor = gguf.tensor(&name).unwrap();
    let importance: Vec<f32> = (0..tensor.row_len()).map(|i| if i % 3 == 0 { 50.0 } else { 0.1 }).collect();
    let run = |options: Options| {
        let mut keep = Keep::default();
        let types = HashMap::from([(name.clone(), GgmlType::Q4_0)]);
        gptq::run(&gguf, &program, &types, &windows, &options, &mut keep).unwrap();
        keep.tensors[&name].0.clone()
    };
    let with = run(Options { importance: HashMap::from([(name.clone(), importance.clone())]), ..options(2) });
    let recode = Recode::new(tensor, GgmlType::Q4_0, Method::Search).unwrap();
    let mut expected = vec![0; recode.row_bytes().1 * tensor.n_rows()];
    let stop = AtomicBool::new(false);
    recode.rows(0, gguf.data(tensor), Some(&importance), &mut expected, &stop).unwrap();
    assert!(with == expected && run(options(2)) != expected);
}

#[test]
fn it_stops_when_told() {
    let mut random = Random::new(9300);
    let shape = shape("llama", 32, None, &mut random);
    let gguf = open(&shape, &mut random);
    let program = Program::from_gguf(&gguf).unwrap();
    let windows = windows(&shape, &mut random, 2);
    let types = types(&gguf, GgmlType::Q4_0);
    let stopped = |options: Options, stop_at| {
        let mut keep = Keep { stop_at, ..Keep::default() };
        let result = gptq::run(&gguf, &program, &types, &windows, &options, &mut keep);
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert!(keep.tensors.len() < types.len());
    };
    stopped(options(2), Some(3));
    stopped(Options { stop: Arc::new(AtomicBool::new(true)), ..options(2) }, None);
}

#[test]
fn inputs_that_are_no_numbers_are_named() {
    let mut random = Random::new(9400);
    let shape = shape("llama", 32, None, &mut random);
    let gguf = open(&shape, &mut random);
    let program = Program::from_gguf(&gguf).unwrap();
    let norm = gguf.tensor("blk.1.ffn_norm.weight").unwrap();
    let mut damaged = Gguf::clone(&gguf);
    damaged.replace(&norm.name, GgmlType::F32, f32::NAN.to_le_bytes().repeat(norm.row_len())).unwrap();
    let windows = windows(&shape, &mut random, 2);
    let types = types(&gguf, GgmlType::Q4_0);
    let error = gptq::run(&Arc::new(damaged), &program, &types, &windows, &options(2), &mut Keep::default());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("blk.1.ffn_gate.weight") && message.contains("not finite"), "{message}");
}
