//! Fetching models: the hub against a server in this process, and packages against a pip that is a script here.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "fetch/hub_server.rs"]
mod hub_server;
#[path = "fetch/packages.rs"]
mod packages;

use std::fs;
use std::path::Path;
use std::time::Duration;

use hub_server::{COMMIT, Faults, Hub, content, sha256};
use tandem_cli::fetch::{FetchError, FetchOptions, Origin, Progress, Resolved, cached, resolve};
use tempfile::TempDir;

/// Keeps what a fetch reports.
#[derive(Default)]
struct Log {
    started: Vec<(String, u64, Option<u64>)>,
    last: u64,
    messages: Vec<String>,
    /// Stop after this many bytes.
    stop_after: Option<u64>,
}

impl Progress for Log {
    fn start(&mut self, what: &str, done: u64, total: Option<u64>) {
        self.started.push((what.to_owned(), done, total));
    }
    fn update(&mut self, done: u64) {
        self.last = done;
    }
    fn message(&mut self, line: &str) {
        self.messages.push(line.to_owned());
    }
    fn cancelled(&self) -> bool {
        self.stop_after.is_some_and(|stop| self.last >= stop)
    }
}

/// Empty caches, and options that lead to `endpoint`, where nobody listens if it is empty.
fn setup(endpoint: &str) -> (TempDir, FetchOptions) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = FetchOptions::new(folder.path().join("models"), folder.path().join("hub"));
    options.endpoint = if endpoint.is_empty() { "http://127.0.0.1:1".to_owned() } else { endpoint.to_owned() };
    options.retry_wait = Duration::from_millis(5);
    options.pip = Vec::new();
    (folder, options)
}

fn run(reference: &str, options: &FetchOptions) -> Result<Resolved, FetchError> {
    resolve(reference, options, &mut Log::default())
}

fn repo_folder(options: &FetchOptions) -> std::path::PathBuf {
    options.hub_cache.join("models--org--model")
}

/// Nothing in the cache that could be taken for a model.
fn assert_no_model(options: &FetchOptions) {
    let blobs = fs::read_dir(repo_folder(options).join("blobs")).into_iter().flatten().flatten();
    let names: Vec<_> = blobs.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name.ends_with(".incomplete")), "{names:?}");
    assert!(!repo_folder(options).join("snapshots").exists());
}

#[test]
fn a_file_comes_into_the_standard_layout_and_is_found_there_without_the_hub() {
    let bytes = content(700_001, 1);
    let hub = Hub::start(&[("m-Q4_K_M.gguf", bytes.clone()), ("m-Q8_0.gguf", content(10, 2))], Faults::default());
    let (_folder, mut options) = setup(&hub.endpoint);
    let mut log = Log::default();
    let resolved = resolve("org/model", &options, &mut log).unwrap();

    let root = repo_folder(&options);
    assert_eq!(resolved.path, root.join("snapshots").join(COMMIT).join("m-Q4_K_M.gguf"));
    assert_eq!(fs::read(&resolved.path).unwrap(), bytes);
    assert_eq!(fs::read(root.join("blobs").join(sha256(&bytes))).unwrap(), bytes);
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(fs::read_link(&resolved.path).unwrap(), Path::new("../../blobs").join(sha256(&bytes)));
    assert_eq!(log.started, [("m-Q4_K_M.gguf".to_owned(), 0, Some(700_001))]);
    assert_eq!(log.last, 700_001);
    let line = "fetched org/model from the hub: org/model, m-Q4_K_M.gguf, commit 01234567 (SHA-256 checked)";
    assert_eq!(resolved.summary(), line);

    let n_requests = hub.seen().len();
    for reference in ["org/model", "org/model:q4_k_m", "org/model/m-Q4_K_M.gguf"] {
        let again = run(reference, &options).unwrap();
        assert_eq!((again.path, again.origin), (resolved.path.clone(), Origin::HubCache { repo: "org/model".into() }));
    }
    assert_eq!(hub.seen().len(), n_requests, "the cache needs no network");
    options.refresh = true;
    assert!(!run("org/model", &options).unwrap().was_fetched());
    assert_eq!(hub.transfers().len(), 1, "a refresh asks, and fetches nothing it has");
    options.endpoint = "http://127.0.0.1:1".to_owned();
    assert!(run("org/model", &options).is_ok(), "a refresh without the hub uses the cache");

    let listed = cached(&options);
    assert_eq!((listed[0].reference.as_str(), listed[0].n_bytes, listed.len()), ("org/model:Q4_K_M", 700_001, 1));
}

#[test]
fn dropped_connections_and_busy_servers_are_tried_again_from_where_they_stopped() {
    let bytes = content(900_000, 3);
    let faults = Faults { drop_after: vec![300_000, 0, 200_000], busy: 2, ..Faults::default() };
    let hub = Hub::start(&[("m.gguf", bytes.clone())], faults);
    let (_folder, options) = setup(&hub.endpoint);
    let resolved = run("org/model", &options).unwrap();
    assert_eq!(fs::read(resolved.path).unwrap(), bytes);
    let ranges: Vec<_> = hub.transfers().into_iter().map(|seen| seen.range).collect();
    let from = |n: u64| Some(format!("bytes={n}-"));
    assert_eq!(ranges, [None, from(300_000), from(300_000), from(500_000)]);
}

#[test]
fn an_interrupted_download_stays_and_goes_on_in_the_next_call() {
    let bytes = content(2_000_000, 4);
    let hub = Hub::start(&[("m.gguf", bytes.clone())], Faults::default());
    let (_folder, options) = setup(&hub.endpoint);
    let mut log = Log { stop_after: Some(1), ..Log::default() };
    assert!(matches!(resolve("org/model", &options, &mut log), Err(FetchError::Interrupted)));
    assert_no_model(&options);

    let mut log = Log::default();
    let resolved = resolve("org/model", &options, &mut log).unwrap();
    assert_eq!(fs::read(resolved.path).unwrap(), bytes);
    let (_, done, total) = log.started[0];
    assert!(done > 0 && total == Some(2_000_000), "{:?}", log.started);
    assert_eq!(hub.transfers()[1].range, Some(format!("bytes={done}-")));
}

#[test]
fn a_server_that_does_not_resume_and_a_damaged_rest_both_end_well() {
    let bytes = content(500_000, 5);
    for (faults, kept) in [
        (Faults { no_ranges: true, ..Faults::default() }, bytes[..100_000].to_vec()),
        (Faults::default(), content(100_000, 99)),
        (Faults::default(), content(600_000, 99)),
        (Faults::default(), bytes.clone()),
    ] {
        let hub = Hub::start(&[("m.gguf", bytes.clone())], faults);
        let (_folder, options) = setup(&hub.endpoint);
        let partial = repo_folder(&options).join("blobs").join(format!("{}.incomplete", sha256(&bytes)));
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(&partial, kept).unwrap();
        assert_eq!(fs::read(run("org/model", &options).unwrap().path).unwrap(), bytes);
        assert!(!partial.exists());
    }
}

#[test]
fn wrong_content_is_refused_and_not_left_in_place() {
    let announced = sha256(b"something else");
    let faults = Faults { announce: Some(announced.clone()), ..Faults::default() };
    let bytes = content(1000, 6);
    let hub = Hub::start(&[("m.gguf", bytes.clone())], faults);
    let (_folder, options) = setup(&hub.endpoint);
    let error = run("org/model", &options).unwrap_err();
    assert!(matches!(&error, FetchError::WrongContent { expected, .. } if expected.contains(&announced)), "{error}");
    assert!(error.to_string().contains(&sha256(&bytes)));
    assert_no_model(&options);
    let partial = repo_folder(&options).join("blobs").join(format!("{announced}.incomplete"));
    assert!(!partial.exists(), "wrong bytes must not be resumed");
}

#[test]
fn a_connection_that_brings_nothing_is_given_up_with_what_is_there_kept() {
    let mut drop_after = vec![0; 20];
    drop_after[0] = 400;
    let hub = Hub::start(&[("m.gguf", content(1000, 7))], Faults { drop_after, ..Faults::default() });
    let (_folder, options) = setup(&hub.endpoint);
    let error = run("org/model", &options).unwrap_err();
    assert!(matches!(error, FetchError::Dropped { kept: 400, .. }), "{error}");
    assert_no_model(&options);
    hub.set_faults(Faults::default());
    assert!(run("org/model", &options).is_ok());
}

#[test]
fn the_token_goes_to_the_hub_only_and_its_absence_is_explained() {
    let faults = |status, code| Faults { without_token: Some((status, code)), ..Faults::default() };
    let hub = Hub::start(&[("m.gguf", content(1000, 8))], faults(401, "GatedRepo"));
    let (_folder, mut options) = setup(&hub.endpoint);
    let gated = run("org/model", &options).unwrap_err().to_string();
    assert!(gated.contains(&format!("{}/org/model", hub.endpoint)) && gated.contains("set HF_TOKEN"), "{gated}");
    hub.set_faults(faults(403, ""));
    let refused = run("org/model", &options).unwrap_err().to_string();
    assert!(refused.contains("status 403") && refused.contains("set HF_TOKEN"), "{refused}");

    options.token = Some("hf_secret".to_owned());
    run("org/model", &options).unwrap();
    let (storage, at_hub): (Vec<_>, Vec<_>) =
        hub.seen().into_iter().skip(2).partition(|seen| seen.path.starts_with("/storage/"));
    assert!(at_hub.iter().all(|seen| seen.token.as_deref() == Some("Bearer hf_secret")), "{at_hub:?}");
    assert!(!storage.is_empty() && storage.iter().all(|seen| seen.token.is_none()), "{storage:?}");
}

#[test]
fn what_is_not_there_is_said_so() {
    let hub = Hub::start(&[("m-Q4_0.gguf", content(9, 1)), ("m-Q8_0.gguf", content(9, 1))], Faults::default());
    let (_folder, mut options) = setup(&hub.endpoint);
    let error = |reference: &str, options: &FetchOptions| run(reference, options).unwrap_err().to_string();
    let quant = error("org/model:Q2_K", &options);
    assert!(quant.contains("no Q2_K file") && quant.contains("Q4_0, Q8_0"), "{quant}");
    assert!(error("org/other", &options).contains("org/other is neither a file here nor on the hub"));
    assert!(error("org/model/x.gguf", &options).contains("org/model/x.gguf"));
    options.offline = true;
    let n_requests = hub.seen().len();
    let offline = error("org/model", &options);
    assert!(offline.contains("HF_HUB_OFFLINE") && offline.contains("tandem pull org/model"), "{offline}");
    assert_eq!(hub.seen().len(), n_requests);
    options.offline = false;
    options.endpoint = "http://127.0.0.1:1".to_owned();
    let unreachable = error("org/model", &options);
    assert!(unreachable.contains("cannot reach the hub at http://127.0.0.1:1"), "{unreachable}");
}

#[test]
fn a_hub_that_says_nothing_is_given_up_soon() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for scheme in ["http", "https"] {
        let (_folder, mut options) = setup(&format!("{scheme}://{}", silent.local_addr().unwrap()));
        options.connect_timeout = Duration::from_millis(300);
        options.answer_timeout = Duration::from_millis(300);
        let start = std::time::Instant::now();
        let error = run("org/model", &options).unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
        // Once, not once for each retry; the rest of the second is for a busy machine.
        assert!(start.elapsed() < Duration::from_millis(850), "{:?}", start.elapsed());
    }
}

#[test]
fn all_parts_of_a_split_model_are_fetched() {
    let part = |n: u32| (format!("q8/m-Q8_0-0000{n}-of-00003.gguf"), content(1000 * n as usize, n));
    let parts = [part(1), part(2), part(3)];
    let files: Vec<(&str, Vec<u8>)> = parts.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let hub = Hub::start(&files, Faults::default());
    let (_folder, mut options) = setup(&hub.endpoint);
    let resolved = run("org/model:Q8_0", &options).unwrap();
    assert_eq!(resolved.parts.len(), 3);
    assert_eq!(resolved.path, resolved.parts[0]);
    for (path, (name, bytes)) in resolved.parts.iter().zip(&parts) {
        assert!(path.ends_with(name));
        assert_eq!(&fs::read(path).unwrap(), bytes);
    }
    assert_eq!(cached(&options)[0].n_bytes, 6000);
    options.offline = true;
    assert_eq!(run("org/model", &options).unwrap().parts, resolved.parts);
    fs::remove_file(&resolved.parts[1]).unwrap();
    assert!(matches!(run("org/model", &options), Err(FetchError::Offline { .. })), "a part is missing");
}

#[test]
fn a_mirror_that_lists_names_only_will_do() {
    let bytes = content(5000, 9);
    let hub = Hub::start(&[("m.gguf", bytes.clone())], Faults { names_only: true, ..Faults::default() });
    let (_folder, options) = setup(&hub.endpoint);
    let resolved = run("org/model", &options).unwrap();
    assert!(resolved.checked);
    assert_eq!(fs::read(resolved.path).unwrap(), bytes);
}

#[test]
fn two_at_once_fetch_once() {
    let hub = Hub::start(&[("m.gguf", content(3_000_000, 10))], Faults::default());
    let (_folder, options) = setup(&hub.endpoint);
    let fetched = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| run("org/model", &options).unwrap().was_fetched()));
        both.map(|thread| usize::from(thread.join().unwrap())).iter().sum::<usize>()
    });
    assert_eq!((fetched, hub.transfers().len()), (1, 1));
}
