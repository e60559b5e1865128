//! Text out of tokens as they come, never half a character.

use super::Tokenizer;

/// Turns bytes that arrive in any portions into text. The start of a character is held back until the rest comes;
/// bytes that cannot become a character are shown as U+FFFD.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    /// The start of a character, at most 3 bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// An empty stream.
    pub fn new() -> Utf8Stream {
        Utf8Stream::default()
    }

    /// Takes bytes, and returns the text that is complete with them.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let mut text = String::with_capacity(held.len());
        let mut at = 0;
        for chunk in held.utf8_chunks() {
            text.push_str(chunk.valid());
            at += chunk.valid().len() + chunk.invalid().len();
            if at == held.len() && is_start(chunk.invalid()) {
                self.held = chunk.invalid().to_vec();
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// Ends the stream: what is held back will not be completed.
    pub fn finish(&mut self) -> String {
        if std::mem::take(&mut self.held).is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.to_string() }
    }
}

/// Whether more bytes could make a character of these.
fn is_start(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The text of a growing list of tokens, from [`Tokenizer::stream`].
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    special: bool,
    utf8: Utf8Stream,
}

impl<'a> TokenStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, special: bool) -> TokenStream<'a> {
        TokenStream { tokenizer, special, utf8: Utf8Stream::new() }
    }

    /// Takes the next token, and returns the text that is complete with it (often all of it, sometimes nothing).
    pub fn push(&mut self, id: u32) -> String {
        if !self.special && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.utf8.push(&self.tokenizer.piece(id))
    }

    /// Ends the stream: a character that is still incomplete becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        self.utf8.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Cuts `bytes` into portions of the given sizes (repeated) and streams them.
    fn stream(bytes: &[u8], sizes: &[usize]) -> String {
        let mut stream = Utf8Stream::new();
        let mut text = String::new();
        let mut rest = bytes;
        for &size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(size.min(rest.len()));
            text += &stream.push(now);
            assert!(stream.held.len() < 4);
            rest = later;
        }
        text + &stream.finish()
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_text(text in ".*", sizes in prop::collection::vec(1usize..5, 1..9)) {
            prop_assert_eq!(stream(text.as_bytes(), &sizes), text);
        }

        #[test]
        fn any_bytes_give_the_lossy_text(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            sizes in prop::collection::vec(1usize..5, 1..9),
        ) {
            prop_assert_eq!(stream(&bytes, &sizes), String::from_utf8_lossy(&bytes).into_owned());
        }
    }

    #[test]
    fn holds_back_and_gives_up() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push(&[b'a', 0xF0, 0x9F]), "a");
        assert_eq!(stream.push(&[0x99]), "");
        assert_eq!(stream.push(&[0x82, b'b']), "🙂b");
        assert_eq!(stream.push(&[0xE2, b'c']), "\u{FFFD}c");
        assert_eq!(stream.push(&[0xE2, 0x82]), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
        assert_eq!(stream.finish(), "");
    }
}
