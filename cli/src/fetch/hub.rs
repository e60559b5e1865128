//! Models of the hub: what a repository holds, and its files into the cache.

use std::path::PathBuf;

use serde::Deserialize;

use super::download::Job;
use super::error::FetchError;
use super::http::{Client, retrying, url_path};
use super::hub_cache::{RepoCache, is_id};
use super::options::FetchOptions;
use super::progress::Progress;
use super::quant::choose;
use super::reference::{HubReference, is_safe_path};
use super::store::Lock;
use super::{Origin, Resolved};

/// The branch a reference means.
const BRANCH: &str = "main";

/// A repository at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RepoFile>,
}

/// A file of a repository.
#[derive(Debug, Clone)]
pub(super) struct RepoFile {
    pub(super) path: String,
    pub(super) n_bytes: Option<u64>,
    /// Known for files in large-file storage.
    pub(super) sha256: Option<String>,
    /// Git's id of the file.
    git_id: Option<String>,
}

/// A file that is in the cache now.
pub(super) struct Fetched {
    pub(super) path: PathBuf,
    /// Whether it came over the network now.
    pub(super) is_new: bool,
    /// Whether its SHA-256 is known to be right.
    pub(super) checked: bool,
}

/// The answer of `/api/models/ORG/REPO/revision/REV?blobs=true`, as far as it matters here.
#[derive(Deserialize)]
struct ApiModel {
    sha: String,
    #[serde(default)]
    siblings: Vec<ApiFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApiFile {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<ApiLfs>,
}

#[derive(Deserialize)]
struct ApiLfs {
    sha256: String,
    size: Option<u64>,
}

/// Resolves a reference to the hub.
pub(super) fn resolve(
    reference: &str,
    wanted: &HubReference,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Resolved, FetchError> {
    let repo = wanted.repo.as_str();
    let cache = RepoCache::new(&options.hub_cache, repo);
    let resolved = |files: Vec<Fetched>, origin| Resolved {
        reference: reference.to_owned(),
        path: files[0].path.clone(),
        checked: files.iter().all(|file| file.checked),
        parts: files.into_iter().map(|file| file.path).collect(),
        origin,
        row: None,
    };
    let in_cache = cached_choice(&cache, wanted, options);
    let from_cache = |files| resolved(files, Origin::HubCache { repo: repo.to_owned() });
    let in_cache = match in_cache {
        Some(files) if options.offline || !options.refresh => return Ok(from_cache(files)),
        None if options.offline => {
            let looked = cache.root().display().to_string();
            return Err(FetchError::Offline { what: reference.to_owned(), looked });
        }
        in_cache => in_cache,
    };

    let client = Client::new(options);
    let listing = match (list(&client, repo, BRANCH, options), in_cache) {
        (Ok(listing), _) => listing,
        (Err(error @ FetchError::Unreachable { .. }), Some(files)) => {
            progress.message(&format!("using the cached file, because it cannot be refreshed: {error}"));
            return Ok(from_cache(files));
        }
        (Err(error), _) => return Err(error),
    };
    let names: Vec<String> = listing.files.iter().map(|file| file.path.clone()).collect();
    let model = choose(repo, client.endpoint(), &names, &wanted.selection)?;
    let mut files = Vec::new();
    for file in listing.files.iter().filter(|file| model.files.contains(&file.path)) {
        files.push((file.path.clone(), fetch(&client, &cache, repo, &listing.commit, file, options, progress)?));
    }
    files.sort_by_key(|(path, _)| model.files.iter().position(|part| part == path));
    cache.set_commit(BRANCH, &listing.commit)?;
    let origin = if files.iter().any(|(_, file)| file.is_new) {
        Origin::Hub { repo: repo.to_owned(), file: model.files[0].clone(), commit: listing.commit }
    } else {
        Origin::HubCache { repo: repo.to_owned() }
    };
    Ok(resolved(files.into_iter().map(|(_, file)| file).collect(), origin))
}

/// The chosen model, when all of it is in the cache.
fn cached_choice(cache: &RepoCache, wanted: &HubReference, options: &FetchOptions) -> Option<Vec<Fetched>> {
    let commit = cache.commit_of(BRANCH)?;
    let model = choose(&wanted.repo, &options.endpoint, &cache.files(&commit), &wanted.selection).ok()?;
    let fetched = |path: &String| Fetched { path: cache.snapshot(&commit, path), is_new: false, checked: true };
    Some(model.files.iter().map(fetched).collect())
}

/// Asks the hub what a repository holds.
pub(super) fn list(client: &Client, repo: &str, revision: &str, options: &FetchOptions) -> Result<Listing, FetchError> {
    let url = format!("/api/models/{repo}/revision/{revision}?blobs=true");
    let bad = |problem: String| FetchError::BadAnswer { url: format!("{}{url}", client.endpoint()), problem };
    let answer = retrying(options.retry_wait, || client.get(&url, 0));
    let mut answer = answer.map_err(|failure| client.error(failure, repo, &url))?;
    let body = answer.response.body_mut().read_to_vec().map_err(|e| bad(e.to_string()))?;
    let model: ApiModel = serde_json::from_slice(&body).map_err(|e| bad(e.to_string()))?;
    if !is_id(&model.sha) {
        return Err(bad("no commit".to_owned()));
    }
    let file = |file: ApiFile| RepoFile {
        path: file.rfilename,
        n_bytes: file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size),
        sha256: file.lfs.map(|lfs| lfs.sha256.to_ascii_lowercase()).filter(|id| is_id(id)),
        git_id: file.blob_id.filter(|id| is_id(id)),
    };
    let files = model.siblings.into_iter().map(file).filter(|file| is_safe_path(&file.path)).collect();
    Ok(Listing { commit: model.sha, files })
}

/// Brings one file into the cache.
pub(super) fn fetch(
    client: &Client,
    cache: &RepoCache,
    repo: &str,
    commit: &str,
    file: &RepoFile,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Fetched, FetchError> {
    let url = format!("/{repo}/resolve/{commit}/{}", url_path(&file.path));
    let id = match file.sha256.as_ref().or(file.git_id.as_ref()) {
        Some(id) => id.clone(),
        None => {
            // A mirror that lists names only: the redirect to the file states its id.
            let answer = retrying(options.retry_wait, || client.get(&url, 0));
            let answer = answer.map_err(|failure| client.error(failure, repo, &url))?;
            let no_id = || FetchError::BadAnswer {
                url: format!("{}{url}", client.endpoint()),
                problem: "no content id".to_owned(),
            };
            answer.etag.filter(|id| is_id(id)).ok_or_else(no_id)?
        }
    };
    // 64 hex digits are a SHA-256; git's own ids have 40.
    let sha256 = Some(id.as_str()).filter(|id| id.len() == 64);
    let checked = sha256.is_some();
    let blob = cache.blob(&id);
    let _lock = Lock::acquire(&cache.lock(&id), &file.path, progress)?;
    // A blob gets its name when it is whole and checked, so the name vouches for the content.
    let whole = std::fs::metadata(&blob).is_ok_and(|meta| file.n_bytes.is_none_or(|n_bytes| n_bytes == meta.len()));
    if !whole {
        let partial = cache.blob(&format!("{id}.incomplete"));
        let n_bytes = file.n_bytes;
        let job = Job { repo, name: &file.path, url: &url, partial: &partial, n_bytes, sha256 };
        job.run(client, options, progress)?;
        std::fs::rename(&partial, &blob).map_err(|e| FetchError::io("rename to", &blob, e))?;
    }
    let path = cache.link(commit, &file.path, &id)?;
    Ok(Fetched { path, is_new: !whole, checked })
}
