//! A bounds-checked little-endian reader that knows what it is reading, for its errors.

use std::path::Path;

use crate::error::{Error, Result};

/// Longest key or tensor name accepted, in bytes (the format's own limit for keys).
const MAX_NAME: u64 = 65_535;

/// Position in the header of one file.
pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { path, bytes, pos: 0 }
    }

    /// Byte offset of the next read.
    pub(crate) fn offset(&self) -> usize {
        self.pos
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.pos
    }

    /// An error about `field` at byte `offset`.
    pub(crate) fn malformed(&self, field: &str, offset: usize, message: impl Into<String>) -> Error {
        Error::Malformed {
            path: self.path.to_owned(),
            field: field.to_owned(),
            message: message.into(),
            offset: offset as u64,
        }
    }

    /// The next `n` bytes of `field`.
    pub(crate) fn take(&mut self, n: u64, field: &str) -> Result<&'a [u8]> {
        let left = self.remaining();
        match usize::try_from(n) {
            Ok(n) if n <= left => {
                let out = &self.bytes[self.pos..self.pos + n];
                self.pos += n;
                Ok(out)
            }
            _ => Err(self.malformed(
                field,
                self.pos,
                format!("needs {n} bytes but only {left} are left in the file; it is truncated or damaged"),
            )),
        }
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, field)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A length-prefixed string's bytes.
    pub(crate) fn string_bytes(&mut self, field: &str) -> Result<&'a [u8]> {
        let len = self.u64(&format!("{field} (string length)"))?;
        self.take(len, field)
    }

    /// A length-prefixed UTF-8 string.
    pub(crate) fn string(&mut self, field: &str) -> Result<String> {
        let start = self.pos;
        let bytes = self.string_bytes(field)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(self.malformed(field, start, format!("is not UTF-8 from its byte {}", e.valid_up_to()))),
        }
    }

    /// A key or tensor name: a non-empty UTF-8 string of bounded length.
    pub(crate) fn name(&mut self, field: &str) -> Result<String> {
        let start = self.pos;
        let name = self.string(field)?;
        if name.is_empty() || name.len() as u64 > MAX_NAME {
            return Err(self.malformed(field, start, format!("has length {} (must be 1 to {MAX_NAME})", name.len())));
        }
        Ok(name)
    }
}
