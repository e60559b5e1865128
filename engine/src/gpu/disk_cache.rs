//! Compiled kernels on disk, so that the driver need not compile them again.
//!
//! A cache that cannot be read or written is none: it only saves time.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::device::Gpu;

/// What the file begins with; the number is that of this layout: magic, checksum, data.
const MAGIC: [u8; 8] = *b"tandemP1";
/// Larger files are not ours.
const MAX_BYTES: u64 = 64 << 20;

/// A cache of pipelines and its file.
pub(super) struct DiskCache {
    path: PathBuf,
    pub(super) cache: wgpu::PipelineCache,
    /// The data it was made from.
    loaded: Option<Vec<u8>>,
}

impl DiskCache {
    /// Opens the cache of a file, empty where there is none or it is damaged. `None` where the driver keeps no caches.
    pub(super) fn open(gpu: &Gpu, path: &Path) -> Option<DiskCache> {
        if !gpu.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let loaded = read(path);
        let desc = wgpu::PipelineCacheDescriptor { label: None, data: loaded.as_deref(), fallback: true };
        // SAFETY: the data is what `get_data` returned: the checksum says that the file is whole, and wgpu and the driver
        // refuse what another device or driver made.
        let cache = unsafe { gpu.device.create_pipeline_cache(&desc) };
        Some(DiskCache { path: path.to_owned(), cache, loaded })
    }

    /// Writes the file, if there is anything new.
    pub(super) fn save(&self) {
        if let Some(data) = self.cache.get_data()
            && self.loaded.as_ref() != Some(&data)
        {
            let _ = write(&self.path, &data);
        }
    }
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): it finds damage, not malice.
fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The data of a file, if it is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (sum, data) = rest.split_first_chunk::<8>()?;
    (*magic == MAGIC && u64::from_le_bytes(*sum) == checksum(data)).then(|| data.to_vec())
}

/// Writes a file beside its place, then moves it there: another process sees the old one or the new one.
fn write(path: &Path, data: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    let mut file = std::fs::File::create(&beside)?;
    let written = file.write_all(&MAGIC).and_then(|()| file.write_all(&checksum(data).to_le_bytes()));
    let written = written.and_then(|()| file.write_all(data));
    drop(file);
    written.and_then(|()| std::fs::rename(&beside, path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_read() {
        let path = std::env::temp_dir().join(format!("tandem-pipelines-{}", std::process::id())).join("cache.bin");
        assert_eq!(read(&path), None);
        write(&path, b"data").unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"data"[..]));
        write(&path, b"other").unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"other"[..]));
        for damaged in [&whole[..whole.len() - 1], &whole[1..], b"", b"tandemP1"] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path), None);
        }
        let mut flipped = whole;
        flipped[18] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert_eq!(read(&path), None);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
