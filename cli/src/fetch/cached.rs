//! What is on this machine already, for `tandem pull --list`.

use std::path::PathBuf;

use super::alias::in_hub_cache;
use super::hub_cache::{RepoCache, repos};
use super::options::FetchOptions;
use super::quant::{quant_of, whole_models};

/// A model file in one of the caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// What to write after `-m` to use it.
    pub reference: String,
    /// Where it is; the first part of a split model.
    pub path: PathBuf,
    /// Its size in bytes, of all parts.
    pub n_bytes: u64,
}

/// The models in Tandem's folder and in the hub's cache: first those of the catalog, then by repository.
///
/// Looks at names and sizes only; contents are checked by [`resolve`](super::resolve).
pub fn cached(options: &FetchOptions) -> Vec<CachedModel> {
    let mut found = Vec::new();
    for row in options.catalog {
        let target = options.models_dir.join(row.file_name);
        let here = std::fs::metadata(&target).is_ok_and(|meta| meta.len() == row.n_bytes).then_some(target);
        let path = here.or_else(|| in_hub_cache(row, options).map(|(path, _)| path));
        if let Some(path) = path {
            found.push(CachedModel { reference: row.alias.to_owned(), path, n_bytes: row.n_bytes });
        }
    }
    for repo in repos(&options.hub_cache) {
        let cache = RepoCache::new(&options.hub_cache, &repo);
        let Some(commit) = cache.commit_of("main") else { continue };
        let models = whole_models(&cache.files(&commit));
        for model in &models {
            let first = &model.files[0];
            let path = cache.snapshot(&commit, first);
            if found.iter().any(|other: &CachedModel| other.path == path) {
                continue;
            }
            let size = |file: &String| std::fs::metadata(cache.snapshot(&commit, file)).map_or(0, |meta| meta.len());
            let n_bytes = model.files.iter().map(size).sum();
            let quant = quant_of(first);
            let is_unique = models.iter().filter(|other| quant_of(&other.files[0]) == quant).count() == 1;
            let reference = if is_unique { format!("{repo}:{quant}") } else { format!("{repo}/{first}") };
            found.push(CachedModel { reference, path, n_bytes });
        }
    }
    found
}
