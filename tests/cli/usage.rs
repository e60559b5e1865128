//! Wrong usage, and exit codes.

use crate::command::{command, tandem, tandem_with};
use crate::tiny;

#[test]
fn wrong_usage_is_2_and_says_what_is_right() {
    for (args, says) in [
        (&["run", "hi", "--temp", "x"][..], "--temp"),
        (&["run", "hi", "--temp", "-1"], "temp"),
        (&["run", "hi", "--top-p", "7"], "top_p"),
        (&["run", "hi", "-t", "0"], "from 1 to 1024"),
        (&["run", "hi", "-t", "100000"], "from 1 to 1024"),
        (&["run", "hi", "-c", "0"], "at least 1"),
        (&["run", "hi", "--kv-type", "q5_0"], "f32, f16, q8_0, q4_0"),
        (&["run", "hi", "-ngl", "many"], "`auto` or `all`"),
        (&["run", "hi", "--place", "atn=gpu"], "at character 1"),
        (&["run", "hi", "--place", "attn=gpu,"], "at character 10"),
        (&["run", "hi", "--vram-budget", "lots"], "4GiB"),
        (&["run", "hi", "--logit-bias", "x"], "ID=BIAS"),
        (&["run", "hi", "-q", "-v"], "cannot be used with"),
        (&["bench", "-p", "0", "-n", "0"], "nothing to measure"),
        (&["info", "--dump-tensor", "x"], "--out"),
        (&["logits", "--tokens", "1,x", "--out", "x"], "not a token id"),
        (&["logits", "--tokens", "[]", "--out", "x"], "no tokens"),
        (&["pull"], "REF"),
    ] {
        let stderr = tandem(args).fails(2);
        assert!(stderr.contains(says), "{args:?}: {stderr}");
    }
    let empty = tandem_with(&["run", "-m", tiny::model()], b"\n").fails(2);
    assert!(empty.contains("empty"), "{empty}");
    let base = tandem(&["run", "-m", tiny::base_model(), "--system", "x", "hi"]).fails(2);
    assert!(base.contains("no"), "{base}");
    let bias = format!("{}=1", tiny::N_VOCAB);
    tandem(&["run", "-m", tiny::model(), "hi", "--logit-bias", &bias]).fails(2);
}

#[test]
fn a_model_that_is_not_there_is_3() {
    for model in ["/nowhere/model.gguf", "nonsense"] {
        for command in [&["run", "hi"][..], &["info"], &["tokenize", "hi"], &["bench"]] {
            tandem(&[command, &["-m", model]].concat()).fails(3);
        }
    }
    let folder = env!("CARGO_TARGET_TMPDIR");
    assert!(tandem(&["info", "-m", folder]).fails(3).contains("folder"));
}

#[test]
fn memory_that_is_not_there_is_4() {
    let stderr = tandem(&["run", "-m", tiny::model(), "-c", "99999999999999", "hi"]).fails(4);
    assert!(stderr.contains("allocate"), "{stderr}");
}

#[test]
fn a_closed_pipe_is_quiet() {
    for args in [&["info", "--tensors"][..], &["run", "hi", "-n", "200", "--ignore-eos"], &["man"]] {
        let with_model = if args[0] == "man" { args.to_vec() } else { [args, &["-m", tiny::model()]].concat() };
        let mut child = command(&with_model).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("roken pipe"), "{args:?}: {stderr}");
    }
}
