//! A small random model: llama architecture, byte-level BPE, a chat template, weights of several types.

use std::path::PathBuf;
use std::sync::OnceLock;

const N_EMBD: usize = 64;
const N_LAYER: usize = 2;
const N_HEAD: usize = 4;
const N_HEAD_KV: usize = 2;
const N_FF: usize = 128;
/// Special tokens, which come before the 256 byte tokens.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Merges of two byte tokens.
const MERGES: [&str; 4] = ["h e", "l l", "o Ġ", "i n"];
/// Number of tokens.
pub(crate) const N_VOCAB: usize = SPECIAL.len() + 256 + MERGES.len();
/// Context length in the metadata.
pub(crate) const N_CTX: usize = 256;

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Tensor types of the format.
const F32: u32 = 0;
const F16: u32 = 1;
const Q4_0: u32 = 2;
const Q8_0: u32 = 8;

/// The model's file, written once for all tests.
pub(crate) fn model() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| write("tiny.gguf", &file(&Variant::default()))).to_str().unwrap()
}

/// The same model without a chat template.
pub(crate) fn base_model() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let variant = Variant { template: false, ..Variant::default() };
    PATH.get_or_init(|| write("tiny-base.gguf", &file(&variant))).to_str().unwrap()
}

/// A model of the same shape and vocabulary with other weights.
pub(crate) fn other_model() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let variant = Variant { seed: 20261122, ..Variant::default() };
    PATH.get_or_init(|| write("tiny-other.gguf", &file(&variant))).to_str().unwrap()
}

/// A model whose first token has another text.
pub(crate) fn foreign_model() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let variant = Variant { first_token: "<|start|>", ..Variant::default() };
    PATH.get_or_init(|| write("tiny-foreign.gguf", &file(&variant))).to_str().unwrap()
}

/// What the models differ in.
struct Variant {
    template: bool,
    seed: u64,
    first_token: &'static str,
}

impl Default for Variant {
    fn default() -> Variant {
        Variant { template: true, seed: 88172645463325252, first_token: SPECIAL[0] }
    }
}

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(std::process::id().to_string());
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The letter that stands for a byte in a byte-level vocabulary.
fn letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match byte {
        b if printable(b) => char::from(b),
        b => char::from_u32(256 + (0..b).filter(|b| !printable(*b)).count() as u32).unwrap(),
    }
}

/// Builds the file.
struct Builder {
    metadata: Vec<u8>,
    n_metadata: u64,
    directory: Vec<u8>,
    data: Vec<u8>,
    n_tensors: u64,
    random: u64,
}

fn file(variant: &Variant) -> Vec<u8> {
    let mut b = Builder {
        metadata: vec![],
        n_metadata: 0,
        directory: vec![],
        data: vec![],
        n_tensors: 0,
        random: variant.seed,
    };
    b.text("general.architecture", "llama");
    b.text("general.name", "tiny");
    for (key, value) in [
        ("block_count", N_LAYER),
        ("context_length", N_CTX),
        ("embedding_length", N_EMBD),
        ("feed_forward_length", N_FF),
        ("attention.head_count", N_HEAD),
        ("attention.head_count_kv", N_HEAD_KV),
    ] {
        b.u32(&format!("llama.{key}"), value as u32);
    }
    b.value("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    b.vocabulary(variant.first_token);
    if variant.template {
        b.text("tokenizer.chat_template", TEMPLATE);
    }
    b.matrix("token_embd.weight", Q8_0, N_EMBD, N_VOCAB);
    b.vector("output_norm.weight", N_EMBD);
    for layer in 0..N_LAYER {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        b.vector(&name("attn_norm"), N_EMBD);
        b.matrix(&name("attn_q"), Q4_0, N_EMBD, N_EMBD);
        b.matrix(&name("attn_k"), F16, N_EMBD, N_EMBD * N_HEAD_KV / N_HEAD);
        b.matrix(&name("attn_v"), Q8_0, N_EMBD, N_EMBD * N_HEAD_KV / N_HEAD);
        b.matrix(&name("attn_output"), Q4_0, N_EMBD, N_EMBD);
        b.vector(&name("ffn_norm"), N_EMBD);
        b.matrix(&name("ffn_gate"), Q4_0, N_EMBD, N_FF);
        b.matrix(&name("ffn_up"), Q8_0, N_EMBD, N_FF);
        b.matrix(&name("ffn_down"), Q4_0, N_FF, N_EMBD);
    }
    b.finish()
}

impl Builder {
    fn vocabulary(&mut self, first_token: &str) {
        let bytes = (0..=255u8).map(|byte| letter(byte).to_string());
        let special = [first_token].into_iter().chain(SPECIAL[1..].iter().copied());
        let merged = MERGES.iter().map(|merge| merge.replace(' ', ""));
        let tokens: Vec<String> = special.map(str::to_owned).chain(bytes).chain(merged).collect();
        let types: Vec<i32> = (0..N_VOCAB).map(|id| if id < SPECIAL.len() { 3 } else { 1 }).collect();
        self.text("tokenizer.ggml.model", "gpt2");
        self.text("tokenizer.ggml.pre", "gpt-2");
        self.texts("tokenizer.ggml.tokens", &tokens);
        self.texts("tokenizer.ggml.merges", &MERGES.map(str::to_owned));
        let array = [5u32.to_le_bytes().as_slice(), &(types.len() as u64).to_le_bytes()].concat();
        let values: Vec<u8> = types.iter().flat_map(|ty| ty.to_le_bytes()).collect();
        self.value("tokenizer.ggml.token_type", 9, &[array, values].concat());
        self.u32("tokenizer.ggml.bos_token_id", 1);
        self.u32("tokenizer.ggml.eos_token_id", 2);
    }

    fn value(&mut self, key: &str, ty: u32, bytes: &[u8]) {
        self.metadata.extend((key.len() as u64).to_le_bytes());
        self.metadata.extend(key.bytes());
        self.metadata.extend(ty.to_le_bytes());
        self.metadata.extend(bytes);
        self.n_metadata += 1;
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.value(key, 4, &value.to_le_bytes());
    }

    fn text(&mut self, key: &str, text: &str) {
        self.value(key, 8, &string(text));
    }

    fn texts(&mut self, key: &str, texts: &[String]) {
        let mut bytes = [8u32.to_le_bytes().as_slice(), &(texts.len() as u64).to_le_bytes()].concat();
        texts.iter().for_each(|text| bytes.extend(string(text)));
        self.value(key, 9, &bytes);
    }

    /// Uniform in [-1, 1].
    fn random(&mut self) -> f32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn vector(&mut self, name: &str, n: usize) {
        let bytes: Vec<u8> = (0..n).flat_map(|_| (1.0 + 0.2 * self.random()).to_le_bytes()).collect();
        self.tensor(name, F32, &[n], &bytes);
    }

    fn matrix(&mut self, name: &str, ty: u32, n_in: usize, n_out: usize) {
        let mut bytes = Vec::new();
        match ty {
            F16 => (0..n_in * n_out).for_each(|_| bytes.extend(f16(0.2 * self.random()))),
            // One scale and 32 weights per block, as nibbles or bytes.
            _ => {
                let (n_bytes, scale) = if ty == Q4_0 { (16, 0.03) } else { (32, 0.002) };
                for _ in 0..n_in * n_out / 32 {
                    bytes.extend(f16(scale));
                    (0..n_bytes).for_each(|_| bytes.push((127.0 * self.random()) as i32 as u8));
                }
            }
        }
        self.tensor(name, ty, &[n_in, n_out], &bytes);
    }

    fn tensor(&mut self, name: &str, ty: u32, dims: &[usize], bytes: &[u8]) {
        self.directory.extend(string(name));
        self.directory.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.directory.extend((*dim as u64).to_le_bytes()));
        self.directory.extend(ty.to_le_bytes());
        self.directory.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.n_tensors += 1;
    }

    fn finish(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_metadata.to_le_bytes());
        out.extend(self.metadata);
        out.extend(self.directory);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(self.data);
        out
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Half precision of a normal number, rounded towards zero.
fn f16(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let exponent = (bits >> 23 & 0xff) as i32 - 127 + 15;
    let half = if exponent <= 0 { 0 } else { (exponent as u32) << 10 | bits >> 13 & 0x3ff };
    (((bits >> 16 & 0x8000) | half) as u16).to_le_bytes()
}
