//! The hub over HTTP: requests with the token, redirects, and what statuses mean.

use std::io;
use std::time::Duration;

use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body, Timeout};

use super::error::FetchError;
use super::options::FetchOptions;

/// Redirects followed before giving up.
const MAX_REDIRECTS: usize = 8;

/// A connection to one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// Why a request gave no usable answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection at all; trying again at once is of no use.
    Unreachable(String),
    /// A connection that broke, or a server that is busy; worth another try.
    Dropped(String),
    /// The server says no.
    Status {
        status: u16,
        /// The hub's name for the reason (`x-error-code`), or empty.
        code: String,
    },
}

/// An answer, with what the hub said on the way to it.
pub(super) struct Answer {
    /// The last response: 200 or 206.
    pub(super) response: Response<Body>,
    /// Content id of the file (`x-linked-etag`, else `etag`), without quotes.
    pub(super) etag: Option<String>,
}

impl Client {
    pub(super) fn new(options: &FetchOptions) -> Self {
        let mut config = Agent::config_builder()
            .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_recv_response(Some(options.answer_timeout))
            .timeout_per_read(Some(options.read_timeout));
        if !options.env_proxy {
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), endpoint: options.endpoint.clone(), token: options.token.clone() }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// GET `path` below the endpoint, from byte `offset` on, following redirects.
    ///
    /// Redirects are followed here and not by the library, because the hub states a file's content id only in the
    /// redirect to its storage, and because the token must not go to that storage.
    pub(super) fn get(&self, path: &str, offset: u64) -> Result<Answer, Failure> {
        let mut url = format!("{}{path}", self.endpoint);
        let mut etag = None;
        for _ in 0..MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if offset > 0 {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            let response = request.call().map_err(failure)?;
            etag = etag.or_else(|| etag_of(&response, "x-linked-etag"));
            let status = response.status();
            if let Some(location) = text(&response, "location").filter(|_| status.is_redirection()) {
                url = redirected(&url, location);
            } else if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
                etag = etag.or_else(|| etag_of(&response, "etag"));
                return Ok(Answer { response, etag });
            } else {
                return Err(status_failure(&response));
            }
        }
        Err(Failure::Dropped("too many redirects".to_owned()))
    }

    /// The error for a failure to get something of `repo`.
    pub(super) fn error(&self, failure: Failure, repo: &str, path: &str) -> FetchError {
        let endpoint = self.endpoint.clone();
        let (status, code) = match failure {
            Failure::Unreachable(reason) | Failure::Dropped(reason) => {
                return FetchError::Unreachable { endpoint, reason };
            }
            Failure::Status { status, code } => (status, code),
        };
        let repo = repo.to_owned();
        let has_token = self.token.is_some();
        match (status, code.as_str()) {
            (404, _) => FetchError::NotFound { what: repo, endpoint },
            (401 | 403, "GatedRepo") => {
                let note = if has_token { " (the token sent has no access yet)" } else { "" };
                FetchError::Gated { repo, endpoint, note }
            }
            (401 | 403, _) => {
                // The hub answers 401, not 404, for a repository that does not exist or is private.
                let advice = if has_token {
                    "check the spelling, and that HF_TOKEN is a valid token with read access to it"
                } else {
                    "check the spelling; if it is private or gated, set HF_TOKEN to a token with access to it"
                };
                FetchError::Refused { repo, status, advice }
            }
            _ => FetchError::BadAnswer { url: format!("{endpoint}{path}"), problem: format!("status {status}") },
        }
    }
}

/// Runs `attempt` until it gives something else than [`Failure::Dropped`], at most three times.
pub(super) fn retrying<T>(wait: Duration, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    for n in 0..2 {
        match attempt() {
            Err(Failure::Dropped(_)) => std::thread::sleep(wait * 2_u32.pow(n)),
            result => return result,
        }
    }
    attempt()
}

fn text<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn etag_of(response: &Response<Body>, name: &str) -> Option<String> {
    let etag = text(response, name)?.trim_start_matches("W/").trim_matches('"');
    (!etag.is_empty()).then(|| etag.to_owned())
}

fn status_failure(response: &Response<Body>) -> Failure {
    let status = response.status();
    if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
        return Failure::Dropped(format!("status {}", status.as_u16()));
    }
    Failure::Status { status: status.as_u16(), code: text(response, "x-error-code").unwrap_or_default().to_owned() }
}

/// Scheme, host and port of an address, in lower case.
fn origin(url: &str) -> String {
    let host_at = url.find("://").map_or(0, |at| at + 3);
    let end = url[host_at..].find(['/', '?', '#']).map_or(url.len(), |at| host_at + at);
    url[..end].to_ascii_lowercase()
}

/// Where a `Location` header leads from `url`.
fn redirected(url: &str, location: &str) -> String {
    if location.starts_with("https://") || location.starts_with("http://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        let scheme = url.split("//").next().unwrap_or("https:");
        format!("{scheme}//{rest}")
    } else {
        format!("{}/{}", origin(url), location.trim_start_matches('/'))
    }
}

/// Sorts the errors of the library.
fn failure(error: ureq::Error) -> Failure {
    let message = error.to_string();
    match error {
        ureq::Error::HostNotFound => Failure::Unreachable("the name of the host is not known".to_owned()),
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            Failure::Unreachable("no connection in time".to_owned())
        }
        ureq::Error::Timeout(Timeout::RecvResponse) => Failure::Unreachable("no answer in time".to_owned()),
        ureq::Error::Io(e) if never_connected(&e) => Failure::Unreachable(e.to_string()),
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => Failure::Dropped(message),
        _ => Failure::Unreachable(message),
    }
}

fn never_connected(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    let kinds = [AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable];
    // The standard library has no kind for a failed name lookup, only this text.
    kinds.contains(&error.kind()) || error.to_string().contains("failed to lookup address")
}

/// Writes a path so that it can stand in an address: everything but `A-Z a-z 0-9 - . _ ~ /` as `%XX`.
pub(super) fn url_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(origin("https://Hub.example:8/a/b?c"), "https://hub.example:8");
        assert_eq!(origin("https://hub.example"), "https://hub.example");
        assert_eq!(redirected("https://h/a/b", "/c?d"), "https://h/c?d");
        assert_eq!(redirected("https://h/a/b", "http://x/y"), "http://x/y");
        assert_eq!(redirected("https://h/a/b", "//x/y"), "https://x/y");
        assert_eq!(redirected("https://h/a/b", "/y?next=https://z"), "https://h/y?next=https://z");
        assert_eq!(url_path("a b/c#1-é.gguf"), "a%20b/c%231-%C3%A9.gguf");
    }
}
