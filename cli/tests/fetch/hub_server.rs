//! A hub in this process: the part of its protocol that fetching uses, with faults to order.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// SHA-256 in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that repeat late, so that a piece in the wrong place is noticed.
pub(crate) fn content(n: usize, seed: u32) -> Vec<u8> {
    (0..n as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// How the server behaves.
#[derive(Default, Clone)]
pub(crate) struct Faults {
    /// Close the connection after this many bytes of a file, once for each entry.
    pub(crate) drop_after: Vec<usize>,
    /// The SHA-256 announced for every file, instead of the true one.
    pub(crate) announce: Option<String>,
    /// Answer everything for which no token is sent with this status and `x-error-code`.
    pub(crate) without_token: Option<(u16, &'static str)>,
    /// Answer 503 this many times.
    pub(crate) busy: usize,
    /// List names only, as some mirrors do.
    pub(crate) names_only: bool,
    /// Send files from the beginning whatever range is asked for.
    pub(crate) no_ranges: bool,
}

/// One request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) range: Option<String>,
}

struct State {
    files: HashMap<String, Vec<u8>>,
    faults: Faults,
    seen: Vec<Seen>,
    storage: String,
}

/// A hub for the repository `org/model`, and the storage it redirects to on a second port.
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub(crate) fn start(files: &[(&str, Vec<u8>)], faults: Faults) -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [endpoint, storage] = [0, 1].map(|i| format!("http://{}", listeners[i].local_addr().unwrap()));
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, faults, seen: Vec::new(), storage }));
        for listener in listeners {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || answer(stream, &state));
                }
            });
        }
        Self { endpoint, state }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// Requests for bytes of files.
    pub(crate) fn transfers(&self) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path.starts_with("/storage/")).collect()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(&stream).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let mut headers = HashMap::new();
    while let Some(Ok(line)) = lines.next() {
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let (token, range) = (headers.remove("authorization"), headers.remove("range"));
    let mut state = state.lock().unwrap();
    state.seen.push(Seen { path: path.clone(), token: token.clone(), range: range.clone() });
    if state.faults.busy > 0 {
        state.faults.busy -= 1;
        return reply(&stream, "503 Busy", "", b"");
    }
    if let Some(name) = path.strip_prefix("/storage/") {
        assert!(token.is_none(), "the token must stay with the hub");
        return send_file(&stream, &mut state, name, range.as_deref());
    }
    if let Some((status, code)) = state.faults.without_token.filter(|_| token.is_none()) {
        return reply(&stream, &format!("{status} No"), &format!("X-Error-Code: {code}\r\n"), b"");
    }
    let resolve = format!("/org/model/resolve/{COMMIT}/");
    if path.starts_with("/api/models/org/model/revision/main") {
        reply(&stream, "200 OK", "", listing(&state).as_bytes());
    } else if let Some(name) = path.strip_prefix(&resolve)
        && let Some(bytes) = state.files.get(name)
    {
        let id = state.faults.announce.clone().unwrap_or_else(|| sha256(bytes));
        let location = format!("{}/storage/{name}", state.storage);
        reply(&stream, "302 Found", &format!("Location: {location}\r\nX-Linked-ETag: \"{id}\"\r\n"), b"");
    } else {
        reply(&stream, "404 Not Found", "X-Error-Code: EntryNotFound\r\n", b"");
    }
}

fn listing(state: &State) -> String {
    let mut names: Vec<_> = state.files.keys().collect();
    names.sort();
    let file = |name: &&String| {
        let bytes = &state.files[*name];
        if state.faults.names_only {
            return format!(r#"{{"rfilename":"{name}"}}"#);
        }
        let id = state.faults.announce.clone().unwrap_or_else(|| sha256(bytes));
        let size = bytes.len();
        format!(
            r#"{{"rfilename":"{name}","size":{size},"blobId":"{:040x}","lfs":{{"sha256":"{id}","size":{size}}}}}"#,
            size
        )
    };
    let files: Vec<String> = names.iter().map(file).collect();
    format!(r#"{{"id":"org/model","sha":"{COMMIT}","siblings":[{}]}}"#, files.join(","))
}

fn send_file(stream: &TcpStream, state: &mut State, name: &str, range: Option<&str>) {
    let bytes = &state.files[name];
    let range = range.filter(|_| !state.faults.no_ranges);
    let from = range.map_or(0, |range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
    let cut = if state.faults.drop_after.is_empty() { usize::MAX } else { state.faults.drop_after.remove(0) };
    let total = bytes.len();
    let status = match from {
        0 => "200 OK".to_owned(),
        from => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}", total - 1),
    };
    let mut stream = stream;
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", total - from);
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&bytes[from..total.min(from.saturating_add(cut))]);
}

fn reply(mut stream: &TcpStream, status: &str, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}
