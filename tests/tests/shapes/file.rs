//! Tiny random models of any shape, as files in memory.

use tandem_loader::{GgmlType, quant};

/// A small generator: the tests must be repeatable from one number.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Uniform in [-1, 1).
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Width of the expert that all tokens share.
const SHARED_WIDTH: usize = 37;

/// What a model looks like.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) arch: &'static str,
    pub(crate) n_embd: usize,
    pub(crate) n_head_kv: usize,
    /// Query heads per KV head.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    pub(crate) n_rot: usize,
    /// By layer.
    pub(crate) n_ff: Vec<usize>,
    /// Number of experts, and of those a token uses.
    pub(crate) experts: Option<(usize, usize)>,
    /// Width of an expert, where the file gives one (not llama).
    pub(crate) expert_width: Option<usize>,
    /// Further metadata of 32 bits: name, type, bits.
    pub(crate) also: Option<(&'static str, u32, u32)>,
    pub(crate) n_vocab: usize,
    /// Sliding window of all layers but every `period`-th (gemma3 only).
    pub(crate) window: usize,
    pub(crate) period: usize,
    pub(crate) biases: bool,
    pub(crate) tied: bool,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) alignment: usize,
    /// Types that matrices are drawn from, as far as their row length allows.
    pub(crate) types: Vec<GgmlType>,
}

impl Shape {
    /// A shape in which little is a multiple of anything.
    pub(crate) fn random(random: &mut Random) -> Shape {
        use GgmlType::*;
        let head_dim = random.one_of(&[8, 10, 16, 20, 24, 32, 40, 64, 72, 80, 96]);
        let n_ff = |random: &mut Random| random.one_of(&[17, 31, 64, 100, 256, 288]);
        let floats = vec![F32, F16, BF16];
        let all = vec![F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K];
        Shape {
            arch: random.one_of(&["llama", "qwen2", "qwen3", "gemma3"]),
            n_embd: random.one_of(&[20, 33, 64, 96, 256, 288]),
            n_head_kv: 1 + random.below(3),
            group: 1 + random.below(9),
            head_dim,
            n_rot: if random.below(3) == 0 { head_dim / 4 * 2 } else { head_dim },
            n_ff: (0..2).map(|_| n_ff(random)).collect(),
            experts: None,
            expert_width: None,
            also: None,
            n_vocab: random.one_of(&[5, 97, 128, 259]),
            window: 1 + random.below(40),
            period: 1 + random.below(3),
            biases: random.below(2) == 0,
            tied: random.below(2) == 0,
            soft_cap: random.one_of(&[None, Some(3.0)]),
            alignment: random.one_of(&[1, 32]),
            types: if random.below(4) == 0 { floats } else { all },
        }
    }

    /// The same with experts.
    pub(crate) fn random_experts(random: &mut Random) -> Shape {
        let n_expert = 1 + random.below(9);
        let experts = Some((n_expert, 1 + random.below(n_expert)));
        let arch = random.one_of(&["llama", "qwen2moe", "qwen3moe"]);
        let expert_width = random.one_of(&[None, Some(40), Some(256)]);
        Shape { arch, experts, expert_width, ..Shape::random(random) }
    }

    /// Width of an expert of layer `l`.
    fn n_ff_expert(&self, l: usize, n_used: usize) -> usize {
        if self.arch == "llama" { self.n_ff[l] } else { self.expert_width.unwrap_or((self.n_ff[l] / n_used).max(1)) }
    }

    pub(crate) fn only_floats(&self) -> bool {
        self.types.iter().all(|ty| ty.block_size() == 1)
    }

    /// The model's file.
    pub(crate) fn file(&self, random: &mut Random) -> Vec<u8> {
        let mut file = File { alignment: self.alignment, ..File::default() };
        self.metadata(&mut file);
        let (n_embd, n_kv) = (self.n_embd, self.n_head_kv * self.head_dim);
        let n_q = n_kv * self.group;
        self.matrix(&mut file, random, "token_embd", n_embd, self.n_vocab, 1);
        for (l, n_ff) in self.n_ff.iter().enumerate() {
            let name = |part: &str| format!("blk.{l}.{part}");
            let mut norms = vec![("attn_norm", n_embd), ("ffn_norm", n_embd)];
            if ["qwen3", "qwen3moe", "gemma3"].contains(&self.arch) {
                norms.extend([("attn_q_norm", self.head_dim), ("attn_k_norm", self.head_dim)]);
            }
            if self.arch == "gemma3" {
                norms.extend([("post_attention_norm", n_embd), ("post_ffw_norm", n_embd)]);
            }
            for (part, n) in norms {
                file.vector(random, &format!("{}.weight", name(part)), n, 1.0);
            }
            let mut parts = vec![
                ("attn_q", n_embd, n_q),
                ("attn_k", n_embd, n_kv),
                ("attn_v", n_embd, n_kv),
                ("attn_output", n_q, n_embd),
            ];
            if self.experts.is_none() {
                parts.extend([("ffn_gate", n_embd, *n_ff), ("ffn_up", n_embd, *n_ff), ("ffn_down", *n_ff, n_embd)]);
            } else if self.arch == "qwen2moe" {
                let n_ff = SHARED_WIDTH;
                parts.extend([("ffn_gate_shexp", n_embd, n_ff), ("ffn_up_shexp", n_embd, n_ff)]);
                parts.push(("ffn_down_shexp", n_ff, n_embd));
                file.vector(random, &name("ffn_gate_inp_shexp.weight"), n_embd, 0.0);
            }
            for (part, n_in, n_out) in parts {
                self.matrix(&mut file, random, &name(part), n_in, n_out, 1);
                if self.biases {
                    file.vector(random, &format!("{}.bias", name(part)), n_out, 0.0);
                }
            }
            if let Some((n_expert, n_used)) = self.experts {
                let n_ff = self.n_ff_expert(l, n_used);
                self.matrix(&mut file, random, &name("ffn_gate_exps"), n_embd, n_ff, n_expert);
                self.matrix(&mut file, random, &name("ffn_up_exps"), n_embd, n_ff, n_expert);
                self.matrix(&mut file, random, &name("ffn_down_exps"), n_ff, n_embd, n_expert);
            }
        }
        file.vector(random, "output_norm.weight", n_embd, 1.0);
        if !self.tied {
            self.matrix(&mut file, random, "output", n_embd, self.n_vocab, 1);
            if self.biases {
                file.vector(random, "output.bias", self.n_vocab, 0.0);
            }
        }
        // Last, so that one expert and a dense model have the same random weights. Routers are f32 in all files.
        for (l, (n_expert, _)) in self.experts.into_iter().cycle().take(self.n_ff.len()).enumerate() {
            let router = Shape { types: vec![GgmlType::F32], ..self.clone() };
            router.matrix(&mut file, random, &format!("blk.{l}.ffn_gate_inp"), n_embd, n_expert, 1);
            if self.biases {
                file.vector(random, &format!("blk.{l}.ffn_gate_inp.bias"), n_expert, 0.0);
            }
        }
        file.finish()
    }

    fn metadata(&self, file: &mut File) {
        let n_ff: Vec<u8> = self.n_ff.iter().flat_map(|n| (*n as i32).to_le_bytes()).collect();
        let n_ff = [&5u32.to_le_bytes()[..], &(self.n_ff.len() as u64).to_le_bytes(), &n_ff].concat();
        let key = |name: &str| format!("{}.{name}", self.arch);
        file.value("general.architecture", 8, &string(self.arch));
        file.value("general.alignment", 4, &(self.alignment as u32).to_le_bytes());
        file.value(&key("feed_forward_length"), 9, &n_ff);
        for (name, value) in [
            ("block_count", self.n_ff.len()),
            ("context_length", 1024),
            ("embedding_length", self.n_embd),
            ("attention.head_count", self.n_head_kv * self.group),
            ("attention.head_count_kv", self.n_head_kv),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.n_rot),
            ("attention.sliding_window", self.window),
            ("attention.sliding_window_pattern", self.period),
        ] {
            file.value(&key(name), 4, &(value as u32).to_le_bytes());
        }
        file.value(&key("attention.layer_norm_rms_epsilon"), 6, &1e-5f32.to_le_bytes());
        if let Some((name, ty, bits)) = self.also {
            file.value(&key(name), ty, &bits.to_le_bytes());
        }
        if let Some((n_expert, n_used)) = self.experts {
            for (name, value) in [
                ("expert_count", n_expert),
                ("expert_used_count", n_used),
                ("expert_feed_forward_length", self.expert_width.unwrap_or(0)),
                ("expert_shared_feed_forward_length", SHARED_WIDTH),
            ] {
                file.value(&key(name), 4, &(value as u32).to_le_bytes());
            }
        }
        if let Some(cap) = self.soft_cap {
            file.value(&key("final_logit_softcapping"), 6, &cap.to_le_bytes());
        }
    }

    /// A matrix whose products have about the size of its input, or several in one tensor.
    fn matrix(&self, file: &mut File, random: &mut Random, name: &str, n_in: usize, n_out: usize, count: usize) {
        let fitting: Vec<GgmlType> =
            self.types.iter().copied().filter(|ty| n_in.is_multiple_of(ty.block_size())).collect();
        let ty = random.one_of(&fitting);
        let size = (n_in as f32).sqrt().recip();
        let bytes: Vec<u8> =
            (0..n_in * n_out * count / ty.block_size()).flat_map(|_| block(ty, size, random)).collect();
        file.tensor(&format!("{name}.weight"), ty.id(), &[n_in, n_out, count][..if count > 1 { 3 } else { 2 }], &bytes);
    }
}

/// A random block whose weights have the root mean square `size`.
fn block(ty: GgmlType, size: f32, random: &mut Random) -> Vec<u8> {
    // Byte offsets of the f16 fields, with values that put the weights about 0.
    let fields: &[(usize, f32)] = match ty {
        GgmlType::F32 => return (size * 1.7 * random.float()).to_le_bytes().to_vec(),
        GgmlType::BF16 => return half::bf16::from_f32(size * 1.7 * random.float()).to_le_bytes().to_vec(),
        GgmlType::F16 => return half::f16::from_f32(size * 1.7 * random.float()).to_le_bytes().to_vec(),
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[(0, 1.0)],
        GgmlType::Q4_1 => &[(0, 1.0), (2, -7.5)],
        GgmlType::Q5_1 => &[(0, 1.0), (2, -15.5)],
        GgmlType::Q2_K => &[(80, 1.0), (82, 1.5)],
        GgmlType::Q3_K => &[(108, 1.0)],
        GgmlType::Q4_K => &[(0, 1.0), (2, 7.5)],
        GgmlType::Q5_K => &[(0, 1.0), (2, 15.5)],
        GgmlType::Q6_K => &[(208, 1.0)],
        other => panic!("say where the f16 fields of {other} are"),
    };
    let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| random.next() as u8).collect();
    let set = |block: &mut Vec<u8>, scale: f32| {
        for (at, value) in fields {
            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(scale * value).to_le_bytes());
        }
    };
    set(&mut block, 1.0);
    let mut weights = vec![0.0f32; ty.block_size()];
    quant::decode_fn(ty).unwrap()(&block, &mut weights);
    let mean = weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32;
    set(&mut block, size / mean.sqrt());
    block
}

/// A file as it grows.
#[derive(Default)]
struct File {
    alignment: usize,
    metadata: Vec<u8>,
    n_metadata: u64,
    directory: Vec<u8>,
    n_tensors: u64,
    data: Vec<u8>,
}

impl File {
    fn value(&mut self, key: &str, ty: u32, bytes: &[u8]) {
        self.metadata.extend([&string(key)[..], &ty.to_le_bytes(), bytes].concat());
        self.n_metadata += 1;
    }

    fn vector(&mut self, random: &mut Random, name: &str, n: usize, middle: f32) {
        let bytes: Vec<u8> = (0..n).flat_map(|_| (middle + 0.3 * random.float()).to_le_bytes()).collect();
        self.tensor(name, GgmlType::F32.id(), &[n], &bytes);
    }

    fn tensor(&mut self, name: &str, ty: u32, dims: &[usize], bytes: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        self.directory.extend(string(name));
        self.directory.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.directory.extend((*dim as u64).to_le_bytes()));
        self.directory.extend(ty.to_le_bytes());
        self.directory.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.n_tensors += 1;
    }

    fn finish(self) -> Vec<u8> {
        let counts = [self.n_tensors.to_le_bytes(), self.n_metadata.to_le_bytes()].concat();
        let mut out = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &self.metadata, &self.directory].concat();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(self.data);
        out
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
