//! Files the commands write.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;

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
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The rights of an ordinary new file (the umask still takes from them), not those of a secret.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder.prefix(".tandem-").tempfile_in(folder).with_context(cannot)?;
    let mut out = BufWriter::new(file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(|error| error.into_error()).with_context(cannot)?;
    file.persist(path).map(|_| ()).map_err(|error| error.error).with_context(cannot)
}
