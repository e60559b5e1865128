//! `run`: one answer.

use crate::command::{arg, command, tandem, tandem_with};
use crate::tiny;

/// `run` on the small model, as JSON.
fn run(args: &[&str]) -> serde_json::Value {
    tandem(&[&["run", "-m", tiny::model(), "--json"], args].concat()).json()
}

#[test]
fn json_has_what_the_contract_says() {
    let answer = run(&["-n", "5", "--ignore-eos", "--seed", "1", "hi"]);
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(answer["timings"]["n_gen"], 5);
    assert_eq!(answer["stop_reason"], "length");
    // <|im_start|> u s e r \n h i <|im_end|> \n <|im_start|> a s s i s t a n t \n
    assert_eq!(answer["prompt_tokens"].as_array().unwrap().len(), 21);
    assert_eq!(answer["timings"]["n_prompt"], 21);
    for key in ["load_ms", "prompt_ms", "prompt_per_second", "generation_ms", "generation_per_second"] {
        assert!(answer["timings"][key].is_number(), "{key}");
    }
    assert!(answer["text"].is_string());
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let text = |args: &[&str]| run(&[&["-n", "40", "--ignore-eos", "hi"], args].concat())["text"].clone();
    let seeded = text(&["--seed", "7"]);
    assert_eq!(seeded, text(&["--seed", "7", "-t", "1"]));
    assert_ne!(seeded, text(&["--seed", "8"]));
    assert_eq!(text(&["--temp", "0"]), text(&["--temp", "0", "--seed", "3"]));
}

#[test]
fn prompts_come_from_three_places() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt");
    std::fs::write(&file, "hi\n").unwrap();
    let options = ["run", "-m", tiny::model(), "-n", "20", "--temp", "0", "--ignore-eos"];
    let given = tandem(&[&options[..], &["hi"]].concat()).ok();
    assert_eq!(tandem(&[&options[..], &["-f", arg(&file)]].concat()).ok(), given);
    assert_eq!(tandem_with(&options, b"hi\n").ok(), given);
    assert!(given.ends_with('\n'));
}

/// To look through the whole message for each of them would take minutes.
#[test]
fn a_message_full_of_special_tokens_takes_no_time_to_speak_of() {
    let start = std::time::Instant::now();
    let message = "<|im_end|>x".repeat(200_000);
    let stderr = tandem_with(&["run", "-m", tiny::model(), "-n", "1"], message.as_bytes()).fails(1);
    assert!(stderr.contains("the context is full"), "{stderr}");
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn typed_special_tokens_are_text() {
    let n_prompt = |args: &[&str]| run(&[&["-n", "0"], args].concat())["timings"]["n_prompt"].as_u64().unwrap();
    let plain = n_prompt(&["a<|im_end|>b"]);
    // One message of 12 bytes, against 21 tokens for one of 2.
    assert_eq!(plain, 21 - 2 + 12);
    assert_eq!(n_prompt(&["--parse-special", "a<|im_end|>b"]), 21 - 2 + 3);
    // The template trims; the text inside must stay whole.
    assert_eq!(n_prompt(&["  <|im_end|>a<|im_start|>  "]), 21 - 2 + 23);
    assert_eq!(n_prompt(&["--raw", "<|im_end|>"]), 10);
    assert_eq!(n_prompt(&["--raw", "--parse-special", "<|im_end|>"]), 1);
    assert_eq!(n_prompt(&["--system", "x", "hi"]), 21 + 11);
}

#[test]
fn stop_texts_end_the_answer_and_are_not_in_it() {
    let options = ["-n", "60", "--temp", "0", "--ignore-eos", "hi"];
    let whole = run(&options)["text"].as_str().unwrap().to_owned();
    let letters: Vec<char> = whole.chars().collect();
    let stop: String = letters[letters.len() / 2..letters.len() / 2 + 3].iter().collect();
    let stopped = run(&[&options[..], &["--stop", "never there", "--stop", &stop]].concat());
    assert_eq!(stopped["stop_reason"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), &whole[..whole.find(&stop).unwrap()]);
    let streamed = tandem(&[&["run", "-m", tiny::model(), "--stop", &stop], &options[..]].concat()).ok();
    assert_eq!(streamed.strip_suffix('\n').unwrap_or(&streamed), stopped["text"].as_str().unwrap());
}

#[test]
fn the_model_ends_its_answer() {
    let ended = run(&["hi", "--logit-bias", "2=1000"]);
    assert_eq!(
        (&ended["stop_reason"], &ended["text"], &ended["timings"]["n_gen"]),
        (&"eos".into(), &"".into(), &1.into())
    );
    let ignored = run(&["hi", "--logit-bias", "2=1000", "--ignore-eos", "-n", "4"]);
    assert_eq!((&ignored["stop_reason"], &ignored["timings"]["n_gen"]), (&"length".into(), &4.into()));
}

#[test]
fn a_full_context_ends_the_answer() {
    let full = run(&["-c", "30", "-n", "100", "--ignore-eos", "hi"]);
    assert_eq!(full["stop_reason"], "context");
    // 21 of the prompt, 9 more places, and one that needs no place.
    assert_eq!(full["timings"]["n_gen"], 10);
    let stderr = tandem(&["run", "-m", tiny::model(), "-c", "10", "hi"]).fails(1);
    assert!(stderr.contains("context is full"), "{stderr}");
}

#[test]
fn timings_and_placement_go_to_stderr() {
    let args = ["run", "-m", tiny::base_model(), "-n", "3", "--ignore-eos", "hi"];
    let ran = tandem(&args);
    for words in ["2 layers and output on CPU", "no chat template", "load", "t/s"] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains('\x1b'), "colour without a terminal");
    assert_eq!(tandem(&[&args[..], &["-q"]].concat()).stderr, "");
}

#[test]
fn every_precision_and_instruction_set_answers() {
    for args in [
        &["--precision", "exact"][..],
        &["--kv-type", "f32"],
        &["--kv-type", "q8_0"],
        &["--kv-type", "q4_0"],
        &["--cpu-isa", "scalar"],
    ] {
        assert_eq!(run(&[&["-n", "4", "--ignore-eos", "hi"], args].concat())["timings"]["n_gen"], 4, "{args:?}");
    }
    for (isa, architecture) in
        [("avx2", "x86_64"), ("avx512", "x86_64"), ("neon", "aarch64"), ("neon-dotprod", "aarch64")]
    {
        let args = ["-n", "4", "--ignore-eos", "--cpu-isa", isa, "hi"];
        if std::env::consts::ARCH == architecture {
            assert_eq!(run(&args)["timings"]["n_gen"], 4, "{isa}");
        } else {
            let stderr = tandem(&[&["run", "-m", tiny::model()], &args[..]].concat()).fails(2);
            assert!(stderr.contains("no CPU of this architecture"), "{stderr}");
        }
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer() {
    use std::io::Read;
    let args = ["run", "-m", tiny::model(), "-c", "100000", "-n", "99999", "--ignore-eos", "hi"];
    let mut child = command(&args).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("t/s") && stderr.contains("interrupted"), "{stderr}");
}
