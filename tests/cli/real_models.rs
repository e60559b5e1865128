//! The two real models, where they are in the cache: greedy text against the reference beside the clone.

use serde_json::Value;

use crate::command::tandem;

/// The model's file, or a notice that it was not fetched.
fn cached(alias: &str) -> bool {
    let here = tandem(&["info", "-q", "-m", alias]).code == 0;
    if !here {
        tandem_tests::skipped(&format!("{alias} is not in the cache; `tandem pull {alias}` fetches it"));
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
    assert_eq!(answer["prompt_tokens"], generation["prompt_tokens"], "{text:?}");
    answer["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// The exact path equals the reference up to the first near-tie; the fast path's agreement is reported.
fn check(alias: &str, fixture: &str) {
    let Some(folder) = tandem_tests::fixtures("models") else { return };
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

/// Through the chat template, up to the model's own end: what a user gets who asks.
#[test]
fn conversations_of_smollm2() {
    let Some(folder) = tandem_tests::fixtures("models") else { return };
    if !cached("smollm2") {
        return;
    }
    let reference = std::fs::read(folder.join("smollm2-135m.greedy.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let mut checked = 0;
    for generation in reference["generations"].as_array().unwrap() {
        let number = |key: &str| generation[key].as_i64().unwrap();
        let (end, tie) = (number("first_eog_index"), number("first_near_tie_index"));
        let Some(messages) = generation["messages"].as_array().filter(|_| end >= 0 && (tie < 0 || end < tie)) else {
            continue;
        };
        let content = |i: usize| messages[i]["content"].as_str().unwrap();
        let system = match messages.len() {
            1 => vec![],
            2 if messages[0]["role"] == "system" => vec!["--system", content(0)],
            _ => continue,
        };
        let args =
            ["run", "-m", "smollm2", "--temp", "0", "--precision", "exact", "--json", content(messages.len() - 1)];
        let answer = tandem(&[&args[..], &system].concat()).json();
        let wanted = &generation["tokens"].as_array().unwrap()[..=end as usize];
        assert_eq!(answer["tokens"].as_array().unwrap(), wanted, "{messages:?}");
        assert_eq!(answer["stop_reason"], "eos");
        checked += 1;
    }
    assert!(checked >= 3, "only {checked} conversations checked");
}
