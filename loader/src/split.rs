//! Split models: `NAME-00001-of-0000N.gguf` and the `split.*` keys that tie the parts together.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::metadata::Metadata;

/// More parts than any real model has; a larger count is damage.
const MAX_PARTS: u64 = 10_000;

fn error(path: &Path, message: String) -> Error {
    Error::Split { path: path.to_owned(), message }
}

/// Number of parts the first part's metadata asks for (1 for an ordinary file).
pub(crate) fn expected_parts(path: &Path, metadata: &Metadata) -> Result<u64> {
    let count = metadata.u64("split.count")?.unwrap_or(1).max(1);
    if count > MAX_PARTS {
        return Err(error(path, format!("metadata key `split.count`: {count} parts are not believable")));
    }
    let no = metadata.u64("split.no")?.unwrap_or(0);
    if no != 0 {
        let first = part_path(path, 0, count).map_or("the first part".to_owned(), |p| p.display().to_string());
        let part = no.saturating_add(1);
        let of = if part > count { String::new() } else { format!(" of {count}") };
        return Err(error(path, format!("is part {part}{of} of a split model; give the first part: {first}")));
    }
    Ok(count)
}

/// Path of part `no` (from 0) of `count`, from the path of any part.
pub(crate) fn part_path(any: &Path, no: u64, count: u64) -> Result<PathBuf> {
    let name = any.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(&format!("-of-{count:05}.gguf")).and_then(|rest| {
        let (stem, digits) = rest.split_at_checked(rest.len().checked_sub(5)?)?;
        (digits.bytes().all(|b| b.is_ascii_digit()) && stem.ends_with('-')).then_some(stem)
    });
    match stem {
        Some(stem) => {
            let path = any.with_file_name(format!("{stem}{:05}-of-{count:05}.gguf", no + 1));
            if no > 0 && !path.exists() {
                return Err(error(
                    &path,
                    format!("part {} of {count} is missing; put all parts in one folder", no + 1),
                ));
            }
            Ok(path)
        }
        None => Err(error(
            any,
            format!(
                "is one of {count} parts, but its name does not end in `-00001-of-{count:05}.gguf`, so the others cannot be found"
            ),
        )),
    }
}

/// Checks that a further part says it is what its name says, and counts the same tensors as the `first` one.
pub(crate) fn check_part(path: &Path, metadata: &Metadata, no: u64, count: u64, first: &Metadata) -> Result<()> {
    for (key, expected) in [
        ("split.no", Some(no)),
        ("split.count", Some(count)),
        ("split.tensors.count", first.u64("split.tensors.count")?),
    ] {
        let found = metadata.u64(key)?;
        if found != expected {
            let shown = |v: Option<u64>| v.map_or("missing".to_owned(), |v| v.to_string());
            let message = format!(
                "does not belong here as part {} of {count}: metadata key `{key}` is {} (expected: {}); the parts of \
                 different models or downloads may be mixed",
                no + 1,
                shown(found),
                shown(expected)
            );
            return Err(error(path, message));
        }
    }
    Ok(())
}

/// Checks the number of tensors of all parts together.
pub(crate) fn check_total(path: &Path, metadata: &Metadata, n_tensors: usize) -> Result<()> {
    match metadata.u64("split.tensors.count")? {
        Some(expected) if expected != n_tensors as u64 => {
            Err(error(path, format!("`split.tensors.count` is {expected}, but the parts hold {n_tensors} tensors")))
        }
        _ => Ok(()),
    }
}
