//! The byte alphabet of GPT-2 vocabularies: every byte is written as one printable character.
//!
//! Printable Latin-1 bytes stand for themselves; the 68 others are the characters from U+0100 on, in byte order
//! (`bytes_to_unicode` of the GPT-2 release).

/// Whether a byte is written as the character of the same number.
const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character of each byte.
const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut next = 0x100;
    let mut byte = 0;
    while byte < 256 {
        chars[byte] = if stands_for_itself(byte as u8) {
            byte as u8 as char
        } else {
            next += 1;
            match char::from_u32(next - 1) {
                Some(c) => c,
                None => unreachable!(),
            }
        };
        byte += 1;
    }
    chars
};

/// The byte of each character below U+0144.
const BYTES: [Option<u8>; 0x144] = {
    let mut bytes = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHARS[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// Appends the characters of `bytes`, as UTF-8.
pub(crate) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.extend_from_slice(CHARS[byte as usize].encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The bytes that `text` stands for. Characters outside the alphabet, and bytes that are not UTF-8, stand for
/// themselves.
pub(crate) fn decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match BYTES.get(c as usize) {
                Some(&Some(byte)) => out.push(byte),
                _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out.extend_from_slice(chunk.invalid());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_round_trip() {
        let all: Vec<u8> = (0..=255).collect();
        let mut text = Vec::new();
        encode(&all, &mut text);
        assert_eq!(std::str::from_utf8(&text).unwrap().chars().count(), 256);
        assert_eq!(decode(&text), all);
    }

    #[test]
    fn known_characters() {
        let mut text = Vec::new();
        encode(b" a\n\xff", &mut text);
        assert_eq!(String::from_utf8(text).unwrap(), "ĠaĊÿ");
        assert_eq!(decode("日".as_bytes()), "日".as_bytes());
    }
}
