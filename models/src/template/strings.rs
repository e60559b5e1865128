//! Python's string functions on Rust strings; positions and lengths are in characters.

use minijinja::Value;

use super::budget;
use super::containers::{list, tuple};
use super::values::{Result, fail};

/// Strings as a list of values.
pub(super) fn list_of(parts: Vec<&str>) -> Result<Value> {
    budget::items(parts.len())?;
    list(parts.into_iter().map(Value::from).collect())
}

/// What Python counts as whitespace, which is Unicode's plus four control characters.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// The `is...` methods.
pub(super) fn predicate(text: &str, name: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    Some(match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdecimal" | "isdigit" | "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "islower" => text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        "isprintable" => !text.chars().any(char::is_control),
        "isidentifier" => {
            text.starts_with(|c: char| c.is_alphabetic() || c == '_')
                && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        }
        "istitle" => text.chars().any(char::is_alphabetic) && title(text) == text,
        _ => return None,
    })
}

/// The methods that change case.
pub(super) fn change_case(text: &str, name: &str) -> Option<String> {
    Some(match name {
        "upper" => text.to_uppercase(),
        "lower" | "casefold" => text.to_lowercase(),
        "title" => title(text),
        "capitalize" => capitalize(text),
        "swapcase" => text
            .chars()
            .flat_map(|c| {
                let swapped =
                    if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
                swapped.chars().collect::<Vec<_>>()
            })
            .collect(),
        _ => return None,
    })
}

/// Words, which are runs of letters, with a capital first letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_alphabetic();
    }
    out
}

/// The first character in upper case, the others in lower case.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

/// `strip` and its one-sided forms.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let matches = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(matches) } else { text };
    if right { text.trim_end_matches(matches) } else { text }
}

/// `split` and `rsplit`; without a separator at runs of whitespace.
pub(super) fn split<'a>(text: &'a str, sep: Option<&str>, max: Option<i128>, from_right: bool) -> Result<Vec<&'a str>> {
    let limit = max.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let Some(sep) = sep else {
        return Ok(split_at_space(text, limit, from_right));
    };
    if sep.is_empty() {
        return Err(fail("empty separator"));
    }
    let n = limit.saturating_add(1);
    if from_right {
        let mut parts: Vec<_> = text.rsplitn(n, sep).collect();
        parts.reverse();
        return Ok(parts);
    }
    Ok(text.splitn(n, sep).collect())
}

fn split_at_space(text: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, !from_right, from_right);
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        match cut.filter(|_| parts.len() < limit) {
            Some(at) if from_right => {
                let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                parts.push(&rest[after..]);
                rest = strip(&rest[..at], None, false, true);
            }
            Some(at) => {
                parts.push(&rest[..at]);
                rest = strip(&rest[at..], None, true, false);
            }
            None => {
                // What is left after the last allowed split keeps its inner whitespace, but not that of the far end.
                let whole = parts.len() < limit;
                parts.push(if whole { strip(rest, None, true, true) } else { rest });
                break;
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// Lines, ended by what Python counts as a line end.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    let is_break =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    while let Some(at) = rest.find(is_break) {
        let len = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(if keep_ends { &rest[..at + len] } else { &rest[..at] });
        rest = &rest[at + len..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// `partition` and `rpartition`.
pub(super) fn partition(text: &str, sep: &str, from_right: bool) -> Result<Value> {
    if sep.is_empty() {
        return Err(fail("empty separator"));
    }
    let cut = if from_right { text.rsplit_once(sep) } else { text.split_once(sep) };
    let parts = match cut {
        Some((before, after)) => [before, sep, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    tuple(parts.map(Value::from).to_vec())
}

/// The part of `text` between two character positions, and how many characters come before it.
pub(super) fn window(text: &str, start: Option<i128>, end: Option<i128>) -> (&str, usize) {
    if start.is_none() && end.is_none() {
        return (text, 0);
    }
    let len = text.chars().count() as i128;
    let clamp = |at: i128| (if at < 0 { at + len } else { at }).clamp(0, len) as usize;
    let (start, end) = (clamp(start.unwrap_or(0)), clamp(end.unwrap_or(len)));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    if start > end {
        return ("", start);
    }
    (&text[byte(start)..byte(end)], start)
}

/// `replace`; `count` limits it when it is not negative.
pub(super) fn replace(text: &str, old: &str, new: &str, count: Option<i128>) -> Result<String> {
    let limit = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let found = text.matches(old).count().min(limit);
    budget::bytes(text.len() + found.saturating_mul(new.len()))?;
    Ok(text.replacen(old, new, limit))
}

/// `expandtabs`.
pub(super) fn expand_tabs(text: &str, size: i128) -> Result<String> {
    let size = usize::try_from(size).unwrap_or(0);
    budget::bytes(text.matches('\t').count().saturating_mul(size))?;
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        if c == '\t' {
            let n = size.saturating_sub(column % size.max(1));
            out += &" ".repeat(n);
            column += n;
        } else {
            out.push(c);
            column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
        }
    }
    Ok(out)
}
