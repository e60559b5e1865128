//! `bench`: all combinations, in four formats.

use crate::command::tandem;
use crate::tiny;

#[test]
fn json_rows_have_all_fields() {
    let args =
        ["bench", "-m", tiny::model(), "-p", "8,16", "-n", "4", "-d", "0,8", "-r", "3", "-t", "1,2", "-ngl", "0"];
    let rows = tandem(&[&args[..], &["-o", "json"]].concat()).json();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2 * 2 * 3);
    let keys = "model test n_prompt n_gen depth ngl threads device backend mean stddev median min max samples";
    for row in rows {
        for key in keys.split(' ').chain(["model_bytes", "date"]) {
            assert!(!row[key].is_null(), "{key}");
        }
        let speed = |key: &str| row[key].as_f64().unwrap();
        assert!(speed("min") > 0.0 && speed("min") <= speed("median") && speed("median") <= speed("max"));
        assert_eq!(row["samples"].as_array().unwrap().len(), 3);
        assert_eq!(row["gb_per_s"].is_number(), row["n_gen"] != 0);
        assert_eq!(row["gop_per_s"].is_number(), row["n_prompt"] != 0);
    }
    assert_eq!(rows[0]["test"], "pp8");
    assert_eq!(rows[5]["test"], "tg4 @ d8");
}

#[test]
fn other_formats() {
    let bench = |format| tandem(&["bench", "-m", tiny::model(), "-p", "8", "-n", "0", "-r", "1", "-o", format]).ok();
    let lines = |format| bench(format).lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines("md").len(), 5);
    assert!(lines("md")[2].contains("pp8"));
    assert!(!lines("md")[0].contains("threads"));
    assert!(lines("csv")[0].starts_with("model,"));
    assert_eq!(lines("jsonl").len(), 1);
}

/// What is a list is a column.
#[test]
fn numbers_of_threads_are_shown_where_there_are_several() {
    let table = tandem(&["bench", "-m", tiny::model(), "-p", "8", "-n", "0", "-r", "1", "-ngl", "0", "-t", "1,2"]).ok();
    let rows: Vec<Vec<&str>> = table.lines().map(|row| row.split('|').map(str::trim).collect()).collect();
    assert_eq!([rows[0][5], rows[2][5], rows[3][5]], ["threads", "1", "2"]);
}

#[test]
fn the_machine_alone() {
    let rows = tandem(&["bench", "--roofline", "--json", "-t", "1,2"]).json();
    for (i, row) in rows.as_array().unwrap().iter().enumerate() {
        assert_eq!(row["threads"], i + 1);
        for key in ["memory_gb_per_s", "int8_gop_per_s", "f32_gflop_per_s"] {
            assert!(row[key].as_f64().unwrap() > 0.1, "{key}");
        }
    }
    let table = tandem(&["bench", "--roofline", "--cpu-isa", "scalar"]).ok();
    assert!(table.contains("scalar"), "{table}");
    assert!(tandem(&["bench", "--roofline", "-p", "8"]).fails(2).contains("--roofline"));
}

#[test]
fn a_context_that_is_too_short_is_said() {
    let stderr = tandem(&["bench", "-m", tiny::model(), "-p", "64", "-c", "32"]).fails(2);
    assert!(stderr.contains("context"), "{stderr}");
}
