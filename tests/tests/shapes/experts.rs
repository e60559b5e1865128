//! Mixtures of experts: odd shapes, one expert against none, and metadata that cannot be.

use tandem_engine::KvType;
use tandem_loader::Gguf;
use tandem_models::Program;

use super::file::{Random, Shape};
use super::{Way, all_logits, assert_same_bits, check, check_blocks, open, session, ways};

#[test]
fn random_shapes_with_experts() {
    for seed in 0..16 {
        let mut random = Random::new(2000 + seed);
        let shape = Shape::random_experts(&mut random);
        let n_tokens = 1 + random.below(50);
        check(&shape, n_tokens, seed);
        check_blocks(&shape, n_tokens, seed);
    }
}

/// More tokens than an expert's products are computed for at a time (512), all of them with the same expert.
#[test]
fn one_expert_is_a_dense_model() {
    for seed in 0..3 {
        let mut random = Random::new(3000 + seed);
        let dense = Shape { arch: "llama", biases: false, ..Shape::random(&mut random) };
        let routed = Shape { experts: Some((1, 1)), ..dense.clone() };
        let (dense, routed) = (open(&dense, &mut Random::new(seed)), open(&routed, &mut Random::new(seed)));
        let n_vocab = Program::from_gguf(&dense).unwrap().hparams.n_vocab;
        let tokens: Vec<u32> = (0..600).map(|_| random.below(n_vocab) as u32).collect();
        for way in ways(KvType::F16) {
            let way = Way { batch: 600, ..way };
            let logits = [&dense, &routed].map(|gguf| all_logits(&mut session(gguf, way, 600), &tokens));
            assert_same_bits(&logits[0], &logits[1], &format!("seed {seed}, {way:?}"));
        }
    }
}

/// The file with the value of a `u32` key replaced.
fn with_value(bytes: &[u8], key: &str, value: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn impossible_experts_are_refused() {
    let mut random = Random::new(7);
    for arch in ["llama", "qwen2moe", "qwen3moe"] {
        let shape = Shape { arch, experts: Some((4, 2)), ..Shape::random(&mut random) };
        let whole = shape.file(&mut random);
        let error = |bytes: Vec<u8>| {
            let gguf = Gguf::from_bytes("random.gguf".as_ref(), bytes).unwrap();
            Program::from_gguf(&gguf).unwrap_err().to_string()
        };
        let (count, used) = (format!("{arch}.expert_count"), format!("{arch}.expert_used_count"));
        for (key, value, says) in [
            (&used, 5, format!("`{used}`: 5 experts used of 4 (`{count}`)")),
            (&used, 0, format!("`{used}`")),
            (&count, 0, format!("`{count}`")),
            (&count, u32::MAX, format!("`{count}`")),
            (&count, 3, "`blk.0.ffn_gate_inp.weight`".to_owned()),
            (&count, 1 << 24, "`blk.0.ffn_gate_inp.weight`".to_owned()),
        ] {
            let message = error(with_value(&whole, key, value));
            assert!(message.contains(&says), "{arch}, {key} = {value}: {message}");
        }
        // Both 0: a dense model, whose tensors are not there.
        let message = error(with_value(&with_value(&whole, &used, 0), &count, 0));
        assert!(message.contains("`blk.0.ffn_gate.weight`"), "{arch}: {message}");
        // The experts' tensor with its last size halved, and another one renamed.
        let name = b"blk.1.ffn_up_exps.weight";
        let at = whole.windows(name.len()).position(|window| window == name).unwrap();
        let mut cut = whole.clone();
        cut[at + name.len() + 4 + 16] = 2;
        let message = error(cut);
        assert!(message.contains("`blk.1.ffn_up_exps.weight`") && message.contains(", 4]"), "{arch}: {message}");
        let mut renamed = whole.clone();
        renamed[at] = b'B';
        let message = error(renamed);
        assert!(message.contains("`blk.1.ffn_up_exps.weight` is missing"), "{arch}: {message}");
    }
}

/// What a router may be asked beyond softmax is refused by name, and not ignored.
#[test]
fn other_routers_are_refused() {
    let mut random = Random::new(8);
    let shape = Shape { arch: "qwen3moe", experts: Some((4, 2)), ..Shape::random(&mut random) };
    // Keys with their type's number in the format: u32, u32, f32.
    for (key, ty, known, unknown) in [
        ("expert_gating_func", 4, 1, 2),
        ("expert_group_count", 4, 1, 2),
        ("expert_weights_scale", 6, 1f32.to_bits(), 2.5f32.to_bits()),
    ] {
        let with = |bits: u32| Shape { also: Some((key, ty, bits)), ..shape.clone() };
        Program::from_gguf(&open(&with(known), &mut random)).unwrap();
        let error = Program::from_gguf(&open(&with(unknown), &mut random)).unwrap_err();
        assert!(!error.is_malformed() && error.to_string().contains(&format!("`qwen3moe.{key}`")), "{error}");
    }
}
