//! Large zeroed memory for weights and caches: page-aligned, and not resident until it is touched.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// Which pages serve a buffer best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Huge ones where the system has them: for memory that is all used and read from end to end.
    Huge,
    /// Small ones: for memory of which often only a part is ever touched.
    Small,
}

/// Zeroed bytes straight from the operating system.
pub(crate) struct Buffer(MmapMut);

impl Buffer {
    /// `bytes` of zeros for `what` (for the message when there is no memory).
    pub(crate) fn zeroed(bytes: usize, pages: Pages, what: &'static str) -> Result<Buffer> {
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|source| Error::OutOfMemory { what, bytes, source })?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(match pages {
            Pages::Huge => memmap2::Advice::HugePage,
            Pages::Small => memmap2::Advice::NoHugePage,
        });
        #[cfg(not(target_os = "linux"))]
        let _ = pages;
        Ok(Buffer(map))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
