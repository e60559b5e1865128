//! What runs where: `devices`, `plan`, and the placement options of the commands that load a model.
//!
//! A machine without a GPU is made by naming a driver that does not exist. What needs an adapter (a software one will do)
//! is skipped aloud where there is none.

use serde_json::Value;

use crate::command::{Ran, arg, command};
use crate::tiny;

/// Runs the command with a cache of its own, so that nothing measured earlier is known.
fn tandem(args: &[&str]) -> Ran {
    let cache = tempfile::tempdir().unwrap();
    Ran::new(command(args).env("XDG_CACHE_HOME", cache.path()).output().unwrap())
}

/// Runs the command where no driver for GPUs is installed.
fn without_gpu(args: &[&str]) -> Ran {
    let cache = tempfile::tempdir().unwrap();
    let nowhere = cache.path().join("none.json");
    let mut command = command(args);
    command.env("VK_DRIVER_FILES", &nowhere).env("VK_ICD_FILENAMES", arg(&nowhere));
    Ran::new(command.env("XDG_CACHE_HOME", cache.path()).output().unwrap())
}

/// The adapters of this machine; says so where there are none.
fn gpus() -> Vec<Value> {
    let gpus = tandem(&["devices", "--json"]).json()["gpus"].as_array().unwrap().clone();
    if gpus.is_empty() {
        tandem_tests::skipped("no GPU driver is installed, not even a software one");
    }
    gpus
}

fn run<'a>(options: &[&'a str]) -> Vec<&'a str> {
    [&["run", "-m", tiny::model(), "--raw", "--temp", "0", "-n", "12", "--ignore-eos", "hello in"][..], options]
        .concat()
}

#[test]
fn devices_names_the_cpu_and_says_when_there_is_no_gpu() {
    let text = without_gpu(&["devices"]).ok();
    for words in ["CPU ", "cores", "kernels: ", "no GPU: "] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let json = without_gpu(&["devices", "--json"]).json();
    assert_eq!(json["gpus"], serde_json::json!([]));
    assert!(json["no_gpu_because"].is_string());
    assert!(json["cpu"]["cores"].as_u64() >= Some(1));
}

#[test]
fn devices_describes_adapters() {
    for (i, gpu) in gpus().iter().enumerate() {
        assert_eq!(gpu["index"], i);
        for key in ["name", "backend", "driver", "kind"] {
            assert!(gpu[key].is_string(), "{key}");
        }
        assert!(gpu["limits"]["max_binding"].as_u64() > Some(0));
        assert!(gpu["features"]["subgroups"].is_boolean());
        assert!(tandem(&["devices"]).ok().contains(gpu["name"].as_str().unwrap()));
    }
}

#[test]
fn a_gpu_that_is_not_there() {
    let wanted = without_gpu(&run(&["-ngl", "0"])).ok();
    for options in [&["-ngl", "1"][..], &["-ngl", "all"], &["-ngl", "0", "--place", "attn=gpu"]] {
        let ran = without_gpu(&run(options));
        assert!(ran.stderr.contains("there is no GPU") && ran.stderr.contains("on the CPU"), "{}", ran.stderr);
        assert_eq!(ran.ok(), wanted);
        let stderr = without_gpu(&run(&[options, &["--strict-placement"]].concat())).fails(4);
        // Not about the file, which is not named then.
        assert!(stderr.starts_with("error: there is no GPU"), "{stderr}");
    }
    let stderr = without_gpu(&run(&["--cpu-moe", "--strict-placement"])).fails(4);
    assert!(stderr.contains("experts=cpu"), "{stderr}");
    let stderr = without_gpu(&run(&["-ngl", "-1"])).fails(2);
    assert!(stderr.contains("give a number, `auto` or `all`"), "{stderr}");
    for options in [&["-ngl", "auto", "--strict-placement"][..], &[], &["--cpu-moe"]] {
        assert_eq!(without_gpu(&run(options)).ok(), wanted);
    }
    let stderr = without_gpu(&run(&["--device", "0"])).fails(4);
    assert!(stderr.contains("--device") && stderr.contains("there is none"), "{stderr}");
}

#[test]
fn layers_on_a_gpu_give_the_same_text() {
    if gpus().is_empty() {
        return;
    }
    let wanted = tandem(&run(&["-ngl", "0"])).ok();
    for (options, line) in [
        (&["-ngl", "1"][..], "embed, layers.0, output on CPU; layers.1 on GPU"),
        (&["-ngl", "2"], "embed, output on CPU; layers.0-1 on GPU"),
        (&["-ngl", "all"], "embed on CPU; layers.0-1, output on GPU"),
        (&["-ngl", "99"], "embed on CPU; layers.0-1, output on GPU"),
        (&["-ngl", "0", "--place", "attn=gpu, output=gpu"], "embed, ffn.0-1 on CPU; attn.0-1, output on GPU"),
        (&["-ngl", "all", "--place", "ffn.1=cpu"], "embed, ffn.1 on CPU; layers.0, attn.1, output on GPU"),
        (&["-ngl", "auto", "--place", "layers.1=gpu"], "embed, layers.0, output on CPU; layers.1 on GPU"),
        (&["-ngl", "1", "--vram-budget", "1GiB"], "layers.1 on GPU"),
    ] {
        let ran = tandem(&run(&[options, &["--strict-placement"]].concat()));
        assert!(ran.stderr.contains(line), "{options:?}: {}", ran.stderr);
        assert_eq!(ran.ok(), wanted, "{options:?}");
    }
}

#[test]
fn auto_does_not_take_a_software_adapter() {
    if gpus().iter().any(|gpu| gpu["software"] == false) {
        return tandem_tests::skipped("there is a real GPU");
    }
    assert!(tandem(&run(&[])).stderr.contains("2 layers and output on CPU"));
}

#[test]
fn a_device_is_named_by_index_or_part_of_its_name() {
    let gpus = gpus();
    let Some(name) = gpus.first().map(|gpu| gpu["name"].as_str().unwrap()) else { return };
    for device in ["0", name, &name[..4].to_uppercase()] {
        tandem(&run(&["-ngl", "1", "--device", device])).ok();
    }
    for device in ["99", "no such gpu"] {
        let stderr = tandem(&run(&["-ngl", "1", "--device", device])).fails(4);
        assert!(stderr.contains(device) && stderr.contains(name), "{stderr}");
    }
}

#[test]
fn a_budget_that_is_too_small_says_what_fits() {
    if gpus().is_empty() {
        return;
    }
    let plan = |layers| tandem(&["plan", "-m", tiny::model(), "-ngl", layers, "--json"]).json();
    let bytes = |plan: &Value| plan["devices"][1]["total"].as_u64().unwrap();
    let budget = bytes(&plan("1")).to_string();
    for layers in ["2", "all"] {
        let stderr = tandem(&run(&["-ngl", layers, "--vram-budget", &budget])).fails(4);
        assert!(stderr.contains("more than") && stderr.contains("-ngl 1 fits"), "{stderr}");
    }
    tandem(&run(&["-ngl", "1", "--vram-budget", &budget])).ok();
    let stderr = tandem(&run(&["-ngl", "1", "--vram-budget", "1KiB"])).fails(4);
    assert!(stderr.contains("not even -ngl 1 fits"), "{stderr}");
    let stderr = tandem(&["verify", "-m", tiny::model(), "--vram-budget", "1KiB"]).fails(4);
    assert!(stderr.contains("alone takes"), "{stderr}");
}

#[test]
fn a_cache_beyond_the_machine_s_memory_is_announced() {
    let ran = tandem(&["plan", "-m", tiny::model(), "-ngl", "0", "-c", "4000000000000", "--json"]);
    let notes = ran.json()["notes"].to_string();
    assert!(notes.contains("a smaller -c"), "{notes}");
}

#[test]
fn layers_that_the_model_does_not_have() {
    let stderr = without_gpu(&run(&["--place", "attn.1-2=cpu"])).fails(4);
    assert!(stderr.contains("2 layers, 0 to 1"), "{stderr}");
}

#[test]
fn plan_of_the_cpu() {
    let text = without_gpu(&["plan", "-m", tiny::model()]).ok();
    for words in ["embed, layers.0-1, output", "KV cache", "staging", "context of 256", "predicted generation"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let json = without_gpu(&["plan", "-m", tiny::model(), "-c", "128", "--json"]).json();
    assert_eq!(json["n_ctx"], 128);
    assert_eq!(json["runs"], serde_json::json!([{ "device": "CPU", "first": "embed", "last": "output" }]));
    let device = &json["devices"][0];
    // 2 layers, keys and values of 2 heads of 16 elements in f16.
    assert_eq!(device["kv_cache"], 2 * 2 * 2 * 16 * 2 * 128);
    let sum: u64 = ["weights", "kv_cache", "scratch", "staging"].map(|key| device[key].as_u64().unwrap()).iter().sum();
    assert_eq!(device["total"], sum);
    assert!(json["predicted_tokens_per_second"].as_f64() > json["predicted_tokens_per_second_full_context"].as_f64());
    assert_eq!(json["blocks"].as_array().unwrap().len(), 6);
}

#[test]
fn what_was_measured_is_kept() {
    let cache = tempfile::tempdir().unwrap();
    let plan = || {
        let args = ["plan", "-m", tiny::model(), "-ngl", "0", "--json"];
        Ran::new(command(&args).env("XDG_CACHE_HOME", cache.path()).output().unwrap())
    };
    let first = plan();
    assert!(first.stderr.contains("measuring the CPU"), "{}", first.stderr);
    let again = plan();
    assert!(!again.stderr.contains("measuring"), "{}", again.stderr);
    // Read from JSON, a number may be off by its last bit.
    let speeds = [first, again].map(|ran| ran.json()["predicted_tokens_per_second"].as_f64().unwrap());
    assert!((speeds[0] / speeds[1] - 1.0).abs() < 1e-12, "{speeds:?}");
    // A file that was damaged is made again, and so are figures that cannot be.
    let path = cache.path().join("tandem/speeds.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    let mut wrong: Value = serde_json::from_str(&whole).unwrap();
    let device = wrong.as_object_mut().unwrap().values_mut().next().unwrap();
    device["bytes_per_second"].as_object_mut().unwrap().values_mut().for_each(|rate| *rate = Value::from(0.0));
    for text in ["{".to_owned(), wrong.to_string(), whole.replace("\"step_seconds\": ", "\"step_seconds\": -")] {
        std::fs::write(&path, text).unwrap();
        assert!(plan().stderr.contains("measuring the CPU"));
    }
}

#[test]
fn bench_takes_a_list_of_layers() {
    if gpus().is_empty() {
        return;
    }
    let args = ["bench", "-m", tiny::model(), "-p", "8", "-n", "4", "-r", "1", "-ngl", "0,1,all", "-o", "json"];
    let rows = tandem(&args).json();
    let rows = rows.as_array().unwrap();
    let ngl: Vec<&Value> = rows.iter().map(|row| &row["ngl"]).collect();
    assert_eq!(
        ngl,
        [0, 0, 1, 1]
            .iter()
            .map(|n| serde_json::json!(n))
            .chain(["all", "all"].map(Value::from))
            .collect::<Vec<_>>()
            .iter()
            .collect::<Vec<_>>()
    );
    for row in rows {
        let on_gpu = row["ngl"] != 0;
        assert_eq!(row["device"] != "CPU", on_gpu);
        assert_eq!(row["backend"].as_str().unwrap().contains("GPU"), on_gpu);
        assert!(row["mean"].as_f64() > Some(0.0));
    }
}

/// In the table, rows can be told apart.
#[test]
fn bench_shows_the_layers_where_there_are_several() {
    if gpus().is_empty() {
        return;
    }
    let args = ["bench", "-m", tiny::model(), "-p", "8", "-n", "4", "-r", "1", "-ngl"];
    let table = |layers| -> Vec<Vec<String>> {
        let text = tandem(&[&args[..], &[layers]].concat()).ok();
        let rows = text.lines().filter(|line| line.starts_with('|'));
        rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    };
    let rows = table("0,1,all");
    let (ngl, test) = (5, 6);
    assert_eq!((rows[0][ngl].as_str(), rows[0][test].as_str()), ("ngl", "test"));
    let cells: Vec<(&str, &str)> = rows[2..].iter().map(|row| (row[ngl].as_str(), row[test].as_str())).collect();
    let wanted = ["0", "1", "all"].into_iter().flat_map(|n| [(n, "pp8"), (n, "tg4")]);
    assert_eq!(cells, wanted.collect::<Vec<_>>());
    assert!(!table("1")[0].contains(&"ngl".to_owned()));
    // What each token costs the CPU beside the kernels: of generation, where a GPU takes part.
    let host = rows[0].iter().position(|name| name == "host us").unwrap();
    let is_known: Vec<bool> = rows[2..].iter().map(|row| row[host].parse::<f64>().is_ok()).collect();
    assert_eq!(is_known, [false, false, false, true, false, true]);
    assert!(!table("0")[0].contains(&"host us".to_owned()));
}

#[test]
fn verify_compares_every_block() {
    let verify = |options: &[&str]| tandem(&[&["verify", "-m", tiny::model()], options].concat());
    let stderr = without_gpu(&["verify", "-m", tiny::model()]).fails(4);
    assert!(stderr.starts_with("error: there is no GPU"), "{stderr}");
    for (options, words) in [
        (&["--tokens", "1"][..], "fewer than 2 tokens"),
        (&["-p", "a", "--tokens", "1,2"], "cannot be used with"),
        (&["-p", "a", "-f", "b"], "cannot be used with"),
    ] {
        let stderr = verify(options).fails(2);
        assert!(stderr.contains(words), "{stderr}");
    }
    if gpus().is_empty() {
        return;
    }
    let text = verify(&["--precision", "exact"]).ok();
    for words in ["24 tokens", "embed", "attn.0", "ffn.1", "output"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let json = verify(&["-p", "hello in the morning", "--json"]).json();
    assert_eq!(json["blocks"].as_array().unwrap().len(), 6);
    assert_eq!((&json["blocks"][1]["block"], &json["diverges"]), (&Value::from("attn.0"), &Value::Null));
    let json = verify(&["--tokens", "1,2,3", "-ngl", "1", "--json"]).json();
    assert_eq!((json["blocks"].as_array().unwrap().len(), &json["n_tokens"]), (2, &Value::from(3)));
    let stderr = verify(&["-ngl", "0"]).fails(4);
    assert!(stderr.contains("nothing is placed on the GPU"), "{stderr}");
}
