//! The two real models, where they are in the cache: greedy text against the reference beside the clone.

use serde_json::Value;

use crate::command::{shared, tandem};

/// The model's file, or a notice that it was not fetched.
fn cached(alias: &str) -> bool {
    let here = tandem(&["info", "-q", "-m", alias]).code == 0;
    if !here {
        eprintln!("SKIPPED: {alias} is not in the cache; `tandem pull {alias}` fetches it");
    }
    here
}

/// Greedy tokens of one generation of the fixture.
fn greedy(alias: &str, generation: &Value, precision: &str) -> Vec<u64> {
    let text = generation["text"].as_str().unwrap();
    let mut args = vec!["run", "-m", alias, "--raw", "--temp", "0", "-n", "64", "--ignore-eos", "--json"];
    args.extend(["--precision", precision]);
    if generation["parse_special"].as_bool().unwrap() {
        args.push("--parse-special");
    }
    let answer = tandem(&[&args[..], &["--", text]].concat()).json();
    let prompt = generation["prompt_tokens"]
        .as_array()
        .map_or_else(|| generation["prompt_tokens"].clone(), |ids| ids.len().into());
    assert_eq!(answer["prompt_tokens"], prompt, "{text:?}");
    answer["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// The exact path equals the reference up to the first near-tie; the fast path's agreement is reported.
fn check(alias: &str, fixture: &str) {
    let Some(folder) = shared("models") else { return };
    if !cached(alias) {
        return;
    }
    let reference = std::fs::read(folder.join(fixture)).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    for generation in reference["generations"].as_array().unwrap() {
        let wanted: Vec<u64> = generation["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let sure = usize::try_from(generation["first_near_tie_index"].as_i64().unwrap()).unwrap_or(wanted.len());
        let text = generation["text"].as_str().unwrap();
        let exact = greedy(alias, generation, "exact");
        assert_eq!(exact[..sure], wanted[..sure], "{alias}, exact: {text:?}");
        let fast = greedy(alias, generation, "fast");
        let agreement = fast.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
        println!("{alias}, fast: the first {agreement} of {} tokens agree: {text:?}", wanted.len());
    }
}

#[test]
fn greedy_text_of_smollm2() {
    check("smollm2", "smollm2-135m.greedy.json");
}

#[test]
fn greedy_text_of_gemma3() {
    check("gemma3-270m", "gemma3-270m.greedy.json");
}

/// The default model answers in its own words and stops by itself.
#[test]
fn the_default_model_answers() {
    if !cached("smollm2") {
        return;
    }
    let answer = tandem(&["run", "What is the capital of France?", "--temp", "0", "--json"]).json();
    assert!(answer["text"].as_str().unwrap().contains("Paris"), "{answer}");
    assert_eq!(answer["stop_reason"], "eos");
}
