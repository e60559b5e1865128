//! The bytes of one file: memory-mapped, or owned (tests and fuzzing).

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Bytes of one file part, shared by everything that reads from it.
#[derive(Debug, Clone)]
pub(crate) struct Source(Arc<Bytes>);

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Source {
    /// Maps `path`. Nothing is read yet.
    pub(crate) fn map(path: &Path) -> Result<Source> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        // Looked at before it is opened: opening a named pipe would wait for somebody to write to it.
        let meta = std::fs::metadata(path).map_err(io)?;
        if meta.is_dir() {
            let message = "is a directory; give the path of a .gguf file".to_owned();
            return Err(Error::NotGguf { path: path.to_owned(), message });
        }
        if !meta.is_file() {
            let message = "is no regular file, so it cannot be mapped; give the path of a .gguf file".to_owned();
            return Err(Error::NotGguf { path: path.to_owned(), message });
        }
        if meta.len() == 0 {
            let message = "is empty (0 bytes); the download may have failed".to_owned();
            return Err(Error::NotGguf { path: path.to_owned(), message });
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process. Another process truncating the file while it is
        // mapped would fault on access, as it does for every program that maps files; the documentation says so.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Source(Arc::new(Bytes::Mapped(map))))
    }

    /// Wraps bytes already in memory.
    pub(crate) fn owned(bytes: Vec<u8>) -> Source {
        Source(Arc::new(Bytes::Owned(bytes)))
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &*self.0 {
            Bytes::Mapped(map) => map,
            Bytes::Owned(vec) => vec,
        }
    }

    /// Tells the operating system that `range` will not be needed soon: its pages leave this process's resident memory
    /// (the page cache may keep them). The bytes stay readable.
    pub(crate) fn forget(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &*self.0 {
            // SAFETY: the mapping is read-only and file-backed, so dropped pages are read again from the file.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the operating system that `range` will be read from start to end soon.
    pub(crate) fn prefetch(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &*self.0 {
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
