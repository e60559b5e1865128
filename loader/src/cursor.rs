//! A bounds-checked little-endian reader that knows what it is reading, for its errors.

use std::path::Path;

use crate::error::{Error, Result};

/// Longest key or tensor name accepted, in bytes (the format's own limit for keys).
const MAX_NAME: u64 = 65_535;
/// Longest string value accepted outside an array, in bytes: room for an embedded tokenizer file.
const MAX_STRING: u64 = 64 << 20;
/// Longest part of a name that a message repeats, in characters.
const SHOWN_NAME: usize = 120;

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

    /// A length-prefixed string's bytes. Nothing is copied, so any length that the file holds is fine.
    pub(crate) fn string_bytes(&mut self, field: &str) -> Result<&'a [u8]> {
        let len = self.u64(field)?;
        self.take(len, field)
    }

    /// The bytes of a length-prefixed string that is to be copied: no longer than `max`.
    fn bounded_bytes(&mut self, field: &str, max: u64) -> Result<&'a [u8]> {
        let start = self.pos;
        let bytes = self.string_bytes(field)?;
        if bytes.len() as u64 > max {
            return Err(self.malformed(field, start, format!("has length {} (at most {max} are read)", bytes.len())));
        }
        Ok(bytes)
    }

    /// A string value. The format asks for UTF-8, but other programs do not check it, so files with an author's name in
    /// Latin-1 exist and work: what is not UTF-8 becomes replacement characters.
    pub(crate) fn text(&mut self, field: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(self.bounded_bytes(field, MAX_STRING)?).into_owned())
    }

    /// A key or tensor name: a non-empty UTF-8 string of bounded length.
    pub(crate) fn name(&mut self, field: &str) -> Result<String> {
        let start = self.pos;
        let bytes = self.bounded_bytes(field, MAX_NAME)?;
        if bytes.is_empty() {
            return Err(self.malformed(field, start, "is empty"));
        }
        match std::str::from_utf8(bytes) {
            Ok(name) => Ok(name.to_owned()),
            Err(e) => Err(self.malformed(field, start, format!("is not UTF-8 from its byte {}", e.valid_up_to()))),
        }
    }
}

/// A name of the file as a message may show it: on one line, of bounded length, without terminal control characters.
pub(crate) fn shown(name: &str) -> String {
    let mut out: String =
        name.chars().take(SHOWN_NAME).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if name.chars().nth(SHOWN_NAME).is_some() {
        out.push_str("...");
    }
    out
}
