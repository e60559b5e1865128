//! `chat`, driven through a pipe: each line is a turn.

use crate::command::{Ran, arg, tandem_with};
use crate::tiny;

fn chat(args: &[&str], lines: &[&str]) -> Ran {
    tandem_with(&[&["chat", "-m", tiny::model(), "-n", "6", "--seed", "1"], args].concat(), lines.join("\n").as_bytes())
}

#[test]
fn turns_reuse_what_was_evaluated() {
    let ran = chat(&[], &["hello", "again", "/stats"]);
    let stats = &ran.stderr;
    assert!(stats.contains("4 messages") && stats.contains("reused from the KV cache"), "{stats}");
    // The first message (24 tokens) is the least that the second prompt shares.
    let reused = stats.lines().find(|line| line.contains("reused from")).unwrap();
    let n: usize = reused.split_whitespace().nth(4).unwrap().parse().unwrap();
    assert!(n >= 20, "{reused}");
    assert_eq!(ran.code, 0);
}

#[test]
fn a_saved_conversation_is_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.json");
    let save = format!("/save {}", arg(&file));
    chat(&["--system", "Be brief."], &["hello", &save]).ok();
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let roles: Vec<&str> = saved.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    let load = format!("/load {}", arg(&file));
    let ran = chat(&[], &["x", &load, "/system", "/stats"]);
    assert!(ran.stderr.contains("Be brief.") && ran.stderr.contains("2 messages"), "{}", ran.stderr);
}

#[test]
fn commands() {
    let lines = ["/help", "/set temp 0", "/set top-k 9", "/set", "/set temp -1", "/set x 1", "/nope", "/regen", "hi"];
    let ran = chat(&[], &[&lines[..], &["/regen", "/clear", "/stats", "/exit", "never"]].concat());
    for words in ["/regen", "temp 0", "top_k 9", "0 or more", "no setting x", "no command /nope", "no message to"] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert!(ran.stderr.contains("0 messages"), "{}", ran.stderr);
    // Greedy: the answer, and the same again.
    let answer = ran.ok();
    assert_eq!(answer[..answer.len() / 2], answer[answer.len() / 2..]);
}

#[test]
fn a_quoted_message_is_no_command() {
    let ran = chat(&[], &["\"\"\"", "/exit", "\"\"\"", "hi", "/stats"]);
    assert!(ran.code == 0 && ran.stderr.contains("4 messages"), "{}", ran.stderr);
}

#[cfg(unix)]
#[test]
fn saving_keeps_rights_and_links() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let [file, link] = ["c.json", "link.json"].map(|name| folder.path().join(name));
    std::fs::write(&file, "[]").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    chat(&[], &["hello", &format!("/save {}", arg(&link))]).ok();
    assert!(std::fs::read_link(&link).is_ok());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&file).unwrap().contains("hello"));
}

#[test]
fn messages_of_several_lines_are_one_turn() {
    let ran = chat(&[], &["\"\"\"", "one", "two", "\"\"\"", "three \\", "four", "/stats"]);
    assert!(ran.stderr.contains("4 messages"), "{}", ran.stderr);
}

#[test]
fn a_full_context_says_what_to_do() {
    let ran = chat(&["-c", "40"], &["hello", "and a message that does not fit", "/clear", "hi"]);
    assert!(ran.stderr.contains("context is full") && ran.stderr.contains("/clear"), "{}", ran.stderr);
    assert_eq!(ran.code, 0);
}

#[test]
fn a_model_without_a_template_chats_too() {
    let ran = tandem_with(&["chat", "-m", tiny::base_model(), "-n", "4"], b"hello\n");
    assert!(ran.stderr.contains("no chat template"), "{}", ran.stderr);
    assert_eq!(ran.code, 0);
}
