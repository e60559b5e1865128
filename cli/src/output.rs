//! Files the commands write.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use crate::exit::Failure;

/// Fails early where a file could not be written later: long work comes first.
///
/// # Errors
/// The path is a folder, or in none.
pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        anyhow::bail!("cannot write {}: there is no folder {}", path.display(), folder.display());
    }
    if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        anyhow::bail!("cannot write {}: it is a folder", path.display());
    }
    Ok(())
}

/// An error where a file to be written is one of those that are read: `what` is the option that names it.
///
/// # Errors
/// It is.
pub(crate) fn refuse_inputs<'a>(
    what: &str,
    path: &Path,
    inputs: impl IntoIterator<Item = &'a Path>,
) -> anyhow::Result<()> {
    let Ok(out) = path.canonicalize() else { return Ok(()) };
    match inputs.into_iter().find(|input| input.canonicalize().is_ok_and(|input| input == out)) {
        None => Ok(()),
        Some(_) => Err(Failure::usage(format!("{what} {}: this file is read, give another name", path.display()))),
    }
}

/// Writes a file that appears under its name only when it is whole. What is no regular file (a pipe, `/dev/null`) is
/// written directly.
///
/// # Errors
/// Those of `fill`, and of writing; then there is no new file.
pub(crate) fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        let mut out = BufWriter::new(File::options().write(true).open(path).with_context(cannot)?);
        fill(&mut out)?;
        return out.flush().with_context(cannot);
    }
    // Behind a link, the file it leads to is replaced; and a file keeps its rights.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Else those of an ordinary new file (the umask still takes from them), not those of a secret.
        let new = std::fs::Permissions::from_mode(0o666);
        builder.permissions(std::fs::metadata(&target).map_or(new, |meta| meta.permissions()));
    }
    let file = builder.prefix(".tandem-").tempfile_in(folder).with_context(cannot)?;
    let mut out = BufWriter::new(file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(|error| error.into_error()).with_context(cannot)?;
    file.persist(&target).map(|_| ()).map_err(|error| error.error).with_context(cannot)
}
