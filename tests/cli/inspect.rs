//! `info`, `tokenize`, `template`, `logits`, `pull`: looking at models.

use crate::command::{arg, tandem, tandem_with};
use crate::tiny::{self, N_CTX, N_VOCAB};

#[test]
fn info_for_people_and_programs() {
    let text = tandem(&["info", "-m", tiny::model()]).ok();
    for words in ["llama", "general.name = tiny", "Q4_0", "263 tokens", "chat template: default", "KV cache"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let json = tandem(&["info", "-m", tiny::model(), "--json", "--tensors", "-c", "100"]).json();
    assert_eq!(json["architecture"], "llama");
    assert_eq!(json["metadata"]["llama.context_length"], N_CTX);
    assert_eq!(json["tensors"].as_array().unwrap().len(), 20);
    // 2 layers, K and V of 32 numbers, 2 bytes each.
    assert_eq!(json["memory"]["kv_cache"], 100 * 2 * 2 * 32 * 2);
    assert_eq!(json["tokenizer"]["n_vocab"], N_VOCAB);
}

#[test]
fn a_dumped_tensor_is_f32() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tensor");
    let dump = |name| tandem(&["info", "-m", tiny::model(), "--dump-tensor", name, "--out", arg(&out)]);
    dump("blk.0.ffn_down.weight").ok();
    assert_eq!(std::fs::read(&out).unwrap().len(), 4 * 128 * 64);
    dump("output_norm.weight").ok();
    let bytes = std::fs::read(&out).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert!(values.len() == 64 && values.iter().all(|v| (0.8..=1.2).contains(v)), "{values:?}");
    assert!(dump("nothing").fails(2).contains("--tensors"));
}

#[test]
fn info_opens_every_reference_file() {
    for name in ["archs", "tokenizers"] {
        let Some(folder) = tandem_tests::fixtures(name) else { return };
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "gguf") {
                tandem(&["info", "-m", arg(&path)]).ok();
            }
        }
    }
}

#[test]
fn info_tells_experts() {
    let Some(folder) = tandem_tests::fixtures("archs") else { return };
    let info = |name: &str, args: &[&str]| tandem(&[&["info", "-m", arg(&folder.join(name))], args].concat());
    assert!(info("llama-moe.gguf", &[]).ok().contains("4 experts in 2 layers, 2 used for each token"));
    let json = info("qwen3moe.gguf", &["--json"]).json();
    assert_eq!(json["experts"], serde_json::json!({ "count": 4, "used": 2, "layers": 2 }));
    assert_eq!(info("llama.gguf", &["--json"]).json()["experts"], serde_json::Value::Null);
}

#[test]
fn tokenize_and_back() {
    let ids = |args: &[&str]| tandem(&[&["tokenize", "-m", tiny::model()], args].concat()).ok();
    // The merge "h e"; special tokens are text unless asked for.
    assert_eq!(ids(&["he"]), format!("[{}]\n", 3 + 256));
    assert_eq!(ids(&["--parse-special", "<|im_end|>"]), "[2]\n");
    assert_eq!(ids(&["--parse-special", "--add-bos", "<|im_end|>"]), "[2]\n");
    assert!(ids(&["<|im_end|>"]).len() > 20);
    assert_eq!(ids(&[""]), "[]\n");

    let bytes: Vec<u8> = (0..=255).chain(*b" two  spaces\r\n\n").collect();
    let encoded = tandem_with(&["tokenize", "-m", tiny::model()], &bytes).ok();
    let decoded = tandem(&["tokenize", "-m", tiny::model(), "--detokenize", encoded.trim()]);
    assert_eq!(decoded.stdout, bytes);
    let stderr = tandem(&["tokenize", "-m", tiny::model(), "--detokenize", "1,263"]).fails(2);
    assert!(stderr.contains("263"), "{stderr}");
}

#[test]
fn template_renders() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    let messages = write("messages.json", r#"[{"role": "user", "content": " Hi "}]"#);
    let render = |args: &[&str]| tandem(&[&["template", "--messages", arg(&messages)], args].concat());
    let model = ["-m", tiny::model()];
    assert_eq!(render(&model).ok(), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let closed = render(&[&model[..], &["--no-generation-prompt"]].concat()).ok();
    assert_eq!(closed, "<|im_start|>user\nHi<|im_end|>\n");

    let other = write("t.jinja", "{{ bos_token }}|{{ n + 1 }}|{{ strftime_now('%Y-%m-%d') }}|{{ tools | length }}");
    let tools = write("tools.json", "[1, 2]");
    let set = ["--set", "bos_token=\"<s>\"", "--set", "n=41", "--now", "2026-01-02T12:34:56"];
    let args = [&["--template", arg(&other), "--tools", arg(&tools)][..], &set].concat();
    assert_eq!(render(&args).ok(), "<s>|42|2026-01-02|2");

    let bad = write("bad.json", "[{]");
    assert!(tandem(&["template", "--messages", arg(&bad)]).fails(2).contains("bad.json"));
    let refuses = write("r.jinja", "{{ raise_exception('no such role') }}");
    assert!(render(&["--template", arg(&refuses)]).fails(1).contains("no such role"));
    let broken = write("b.jinja", "{% if %}");
    assert!(render(&["--template", arg(&broken)]).fails(1).contains("b.jinja"));
    assert!(render(&["-m", tiny::base_model()]).fails(3).contains("no chat template"));
}

#[test]
fn logits_do_not_depend_on_batches_or_threads() {
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids");
    std::fs::write(&ids, "[5, 6, 7,\n 8, 9]").unwrap();
    let logits = |tokens: &str, args: &[&str]| {
        let out = folder.path().join("logits");
        let fixed = ["logits", "-m", tiny::model(), "--tokens", tokens, "--out", arg(&out)];
        assert_eq!(tandem(&[&fixed[..], args].concat()).ok(), "");
        std::fs::read(out).unwrap()
    };
    let whole = logits("5,6,7,8,9", &[]);
    assert_eq!(whole.len(), 5 * N_VOCAB * 4);
    assert_eq!(logits(arg(&ids), &[]), whole);
    for args in [&["--batch", "1"][..], &["--batch", "2", "-t", "1"], &["-t", "2"]] {
        assert_eq!(logits("5,6,7,8,9", args), whole, "{args:?}");
    }
    // More tokens than the model was trained for: as many as asked for.
    let long: Vec<String> = (0..N_CTX + 1).map(|i| (i % N_VOCAB).to_string()).collect();
    assert_eq!(logits(&long.join(","), &[]).len(), (N_CTX + 1) * N_VOCAB * 4);
}

#[test]
fn failed_logits_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits");
    let logits = |args: &[&str]| tandem(&[&["logits", "-m", tiny::model(), "--out", arg(&out)], args].concat());
    assert!(logits(&["--tokens", "1,263"]).fails(2).contains("263"));
    assert!(logits(&["--tokens", "1,2,3", "-c", "2"]).fails(1).contains("context"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn pull_lists_the_catalog() {
    let list = tandem(&["pull", "--list"]).ok();
    for word in ["smollm2", "gemma3-270m", "Apache-2.0"] {
        assert!(list.contains(word), "{list}");
    }
    assert!(tandem(&["pull", tiny::model()]).fails(2).contains("already"));
}
