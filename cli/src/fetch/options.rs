//! Settings of a fetch, and the one place that reads the environment for them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::catalog::{CatalogRow, catalog};

/// The address of the Hugging Face hub.
const HUB: &str = "https://huggingface.co";

/// Everything a fetch depends on beside the reference.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// Tandem's own folder of models (`$XDG_CACHE_HOME/tandem/models`).
    pub models_dir: PathBuf,
    /// The hub's cache folder, which holds `models--org--repo` folders.
    pub hub_cache: PathBuf,
    /// Address of the hub, without a trailing slash.
    pub endpoint: String,
    /// Access token for the hub. Sent to the endpoint's own host only.
    pub token: Option<String>,
    /// Use no network at all.
    pub offline: bool,
    /// Ask the hub for the newest commit, and hash catalog files again, although something is cached (`tandem pull`).
    pub refresh: bool,
    /// Whether the usual proxy variables (`HTTPS_PROXY`, `NO_PROXY`, ...) are followed. The HTTP client reads them.
    pub env_proxy: bool,
    /// Command lines that run pip, tried in order until one exists; `download ...` is appended.
    pub pip: Vec<Vec<OsString>>,
    /// The catalog.
    pub catalog: &'static [CatalogRow],
    /// How long name resolution may take, and again connecting.
    pub connect_timeout: Duration,
    /// How long a server may take to begin its answer.
    pub answer_timeout: Duration,
    /// How long a server may pause within an answer.
    pub read_timeout: Duration,
    /// Wait before the first retry; doubled for each further one.
    pub retry_wait: Duration,
}

impl FetchOptions {
    /// Options with these two folders, no token, and nothing taken from the environment.
    pub fn new(models_dir: impl Into<PathBuf>, hub_cache: impl Into<PathBuf>) -> Self {
        let pip: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip"], &["pip3"]];
        Self {
            models_dir: models_dir.into(),
            hub_cache: hub_cache.into(),
            endpoint: HUB.to_owned(),
            token: None,
            offline: false,
            refresh: false,
            env_proxy: false,
            pip: pip.iter().map(|words| words.iter().map(OsString::from).collect()).collect(),
            catalog: catalog(),
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            retry_wait: Duration::from_millis(500),
        }
    }

    /// Options from the environment of this process.
    ///
    /// Variables, as the hub's own tools read them: `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME`, `HF_HUB_CACHE` (or
    /// `HUGGINGFACE_HUB_CACHE`), `HF_TOKEN` (or `HUGGING_FACE_HUB_TOKEN`), `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`; and `XDG_CACHE_HOME`. An empty variable counts as not set.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// Like [`from_env`](Self::from_env), with the variables looked up in `var`.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &str| var(name).and_then(|value| value.into_string().ok());
        let home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        let home = home.or_else(std::env::home_dir).unwrap_or_else(std::env::temp_dir);
        let dir = |name: &str| var(name).map(|value| expand_home(Path::new(&value), &home));

        // A relative one does not count: <https://specifications.freedesktop.org/basedir-spec/latest/>.
        let cache = dir("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()).unwrap_or_else(|| home.join(".cache"));
        let hf_home = dir("HF_HOME").unwrap_or_else(|| cache.join("huggingface"));
        let hub_cache =
            dir("HF_HUB_CACHE").or_else(|| dir("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub"));

        let mut options = Self::new(cache.join("tandem").join("models"), hub_cache);
        if let Some(endpoint) = text("HF_ENDPOINT") {
            options.endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        options.offline = text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value));
        options.env_proxy = true;
        if !text("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value)) {
            let token_file = dir("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
            options.token = text("HF_TOKEN")
                .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| std::fs::read_to_string(token_file).ok())
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty());
        }
        options
    }
}

/// Truth as the hub's Python library reads it.
fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// Replaces a leading `~`, which the hub's tools allow in these variables.
fn expand_home(path: &Path, home: &Path) -> PathBuf {
    path.strip_prefix("~").map_or_else(|_| path.to_owned(), |rest| home.join(rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> FetchOptions {
        FetchOptions::from_vars(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn folders_follow_the_hub_s_rules() {
        let plain = from(&[("HOME", "/h")]);
        assert_eq!(plain.models_dir, Path::new("/h/.cache/tandem/models"));
        assert_eq!(plain.hub_cache, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(plain.endpoint, HUB);
        assert!(!plain.offline && plain.token.is_none());

        let moved = from(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")]);
        assert_eq!(moved.models_dir, Path::new("/x/tandem/models"));
        assert_eq!(moved.hub_cache, Path::new("/h/hf/hub"));
        let old = from(&[("HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "")]);
        assert_eq!(old.hub_cache, Path::new("/old"));
        let new = from(&[("HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]);
        assert_eq!(new.hub_cache, Path::new("/new"));
    }

    #[test]
    fn switches_and_token() {
        let set = from(&[("HF_HUB_OFFLINE", "yes"), ("HF_ENDPOINT", "http://mirror/"), ("HF_TOKEN", " hf_a\n")]);
        assert!(set.offline);
        assert_eq!(set.endpoint, "http://mirror");
        assert_eq!(set.token.as_deref(), Some("hf_a"));
        assert!(!from(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(from(&[("HF_TOKEN", "hf_a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token.is_none());

        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
    }
}
