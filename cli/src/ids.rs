//! Token ids as users write them.

/// Reads ids separated by commas or white space, or a JSON array.
///
/// # Errors
/// What is not a token id.
pub(crate) fn parse(text: &str) -> Result<Vec<u32>, String> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let words = inner.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    words.map(|word| word.parse().map_err(|_| format!("{word:?} is not a token id"))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_to_write_ids() {
        for text in ["1,2,3", "1 2\n3\n", "[1, 2, 3]", " [1,2,3]\n"] {
            assert_eq!(parse(text).unwrap(), [1, 2, 3], "{text:?}");
        }
        assert!(parse("").unwrap().is_empty());
        for text in ["1,x", "-1", "1.5", "[1", "4294967296"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
