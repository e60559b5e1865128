//! Help, completions, manual page: what a user reads first.

use crate::command::tandem;

/// One snapshot per command: a change of the command line is seen in review.
#[test]
fn help_of_every_command() {
    insta::assert_snapshot!("tandem", tandem(&["--help"]).ok());
    for name in [
        "run",
        "chat",
        "bench",
        "devices",
        "plan",
        "verify",
        "info",
        "pull",
        "tokenize",
        "template",
        "logits",
        "perplexity",
        "compare",
        "imatrix",
        "quantize",
        "completions",
        "man",
    ] {
        insta::assert_snapshot!(name, tandem(&[name, "--help"]).ok());
    }
}

#[test]
fn completions_and_manual_page() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(tandem(&["completions", shell]).ok().contains("tandem"), "{shell}");
    }
    let man = tandem(&["man"]).ok();
    for word in [".TH tandem", "TANDEM RUN", "parse\\-special", "TANDEM LOGITS"] {
        assert!(man.contains(word), "{word}");
    }
    assert!(tandem(&["--version"]).ok().starts_with("tandem "));
}
