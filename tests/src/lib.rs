//! End-to-end and parity tests of the whole workspace, and the helpers they share.

pub mod real;

use std::path::PathBuf;

/// Models of the reference data (in `archs`) whose blocks each backend runs one by one beside the reference executor.
pub const BLOCK_MODELS: [&str; 11] = [
    "llama",
    "llama-bias",
    "llama-mqa",
    "llama-yarn",
    "llama-moe",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma3",
    "bitnet",
];

/// The reference data beside the project, or `None` (with a printed notice) where it is absent.
///
/// A fresh clone does not have it; tests that use it return early and say so.
pub fn fixtures(folder: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures").join(folder);
    if path.is_dir() {
        return Some(path);
    }
    skipped(&format!("reference data {} is not beside this clone", path.display()));
    None
}

/// A model file fetched by `tandem pull`, or `None` (with a printed notice) where it is absent.
pub fn model(file: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
    let path = cache.join("tandem/models").join(file);
    if path.is_file() {
        return Some(path);
    }
    skipped(&format!("{file} has not been fetched; run `tandem pull` first"));
    None
}

/// Says that a test does not run here. Written past the test harness, which hides what passing tests print.
pub fn skipped(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
