//! What a user may write after `-m`, and how the forms are told apart.

use std::path::{Path, PathBuf};

use super::catalog::CatalogRow;
use super::error::FetchError;

/// A parsed model reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A file on this machine.
    File(PathBuf),
    /// A row of the catalog.
    Alias(&'static CatalogRow),
    /// Something on the hub.
    Hub(HubReference),
}

/// A repository on the hub, and which of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubReference {
    /// `org/repo`.
    pub repo: String,
    /// Which file.
    pub selection: Selection,
}

/// Which file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The best by preference.
    Any,
    /// The file of this quant.
    Quant(String),
    /// The file at this path in the repository.
    File(String),
}

impl Reference {
    /// Reads a reference. In this order: a file that exists; an alias of `catalog`; `org/repo`, `org/repo:QUANT` and
    /// `org/repo/file.gguf`; any other path.
    ///
    /// # Errors
    /// [`FetchError::NoSuchFile`] for a path without a file, [`FetchError::Unknown`] for anything else.
    pub fn parse(reference: &str, catalog: &'static [CatalogRow]) -> Result<Self, FetchError> {
        let path = Path::new(reference);
        // What is no regular file is refused where it is opened, which can say so.
        if path.exists() && !path.is_dir() {
            return Ok(Self::File(path.to_owned()));
        }
        if let Some(row) = catalog.iter().find(|row| row.alias.eq_ignore_ascii_case(reference)) {
            return Ok(Self::Alias(row));
        }
        if path.is_dir() {
            let hint = " (it is a folder; name the .gguf file in it)".to_owned();
            return Err(FetchError::NoSuchFile { path: reference.to_owned(), hint });
        }
        if let Some(hub) = parse_hub(reference) {
            return Ok(Self::Hub(hub));
        }
        let aliases = catalog.iter().map(|row| row.alias).collect::<Vec<_>>().join(", ");
        let has_gguf_name = reference.to_ascii_lowercase().ends_with(".gguf");
        if has_gguf_name || reference.contains(['/', '\\']) {
            let hint = format!(", or use one of the names {aliases} or org/repo[:QUANT]");
            return Err(FetchError::NoSuchFile { path: reference.to_owned(), hint });
        }
        Err(FetchError::Unknown { reference: reference.to_owned(), aliases })
    }
}

/// `org/repo`, `org/repo:QUANT` or `org/repo/path/file.gguf`; `None` for anything that is more like a path.
fn parse_hub(reference: &str) -> Option<HubReference> {
    let (name, quant) = match reference.split_once(':') {
        Some((name, quant)) => (name, Some(quant)),
        None => (reference, None),
    };
    let mut parts = name.splitn(3, '/');
    let (org, repo, file) = (parts.next()?, parts.next()?, parts.next());
    if !is_hub_name(org) || !is_hub_name(repo) {
        return None;
    }
    let is_gguf = |name: &str| name.to_ascii_lowercase().ends_with(".gguf");
    let selection = match (file, quant) {
        (Some(file), None) if is_gguf(file) && is_safe_path(file) => Selection::File(file.to_owned()),
        (None, Some(quant)) if is_hub_name(quant) => Selection::Quant(quant.to_owned()),
        (None, None) if !is_gguf(repo) => Selection::Any,
        _ => return None,
    };
    Some(HubReference { repo: format!("{org}/{repo}"), selection })
}

/// The names the hub allows: letters, digits, `-`, `_` and `.`, no dot at the start.
fn is_hub_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(allowed)
}

/// Whether a path named by a server (or for one) stays inside the folder it is joined to.
pub(super) fn is_safe_path(path: &str) -> bool {
    !path.contains(['\\', ':', '\0']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::catalog::catalog;
    use super::*;

    fn hub(reference: &str) -> Option<(String, Selection)> {
        match Reference::parse(reference, catalog()) {
            Ok(Reference::Hub(hub)) => Some((hub.repo, hub.selection)),
            _ => None,
        }
    }

    #[test]
    fn forms_are_told_apart() {
        let repo = || "org/repo-1.5_B".to_owned();
        assert_eq!(hub("org/repo-1.5_B"), Some((repo(), Selection::Any)));
        assert_eq!(hub("org/repo-1.5_B:q4_k_m"), Some((repo(), Selection::Quant("q4_k_m".into()))));
        assert_eq!(hub("org/repo-1.5_B/sub/a.gguf"), Some((repo(), Selection::File("sub/a.gguf".into()))));
        for path in ["./org/repo", "/org/repo", "../a/b.gguf", "org/model.gguf", "a/b/c", "a/b/../c.gguf", "C:\\a.gguf"]
        {
            assert!(matches!(Reference::parse(path, catalog()), Err(FetchError::NoSuchFile { .. })), "{path}");
        }
        assert!(matches!(Reference::parse("SmolLM2", catalog()), Ok(Reference::Alias(row)) if row.alias == "smollm2"));
        assert!(matches!(Reference::parse("smollm3", catalog()), Err(FetchError::Unknown { .. })));
        assert!(matches!(Reference::parse("/", catalog()), Err(FetchError::NoSuchFile { .. })));

        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(Reference::parse(path, catalog()).unwrap(), Reference::File(path.into()));
    }
}
