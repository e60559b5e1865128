//! `strftime_now`: Python's `datetime.strftime` on a time without zone.

use jiff::civil::DateTime;
use jiff::fmt::strtime::format;

use super::values::{Result, fail};

/// Formats `now`. Directives are those of C's strftime; unknown ones stay as they are.
pub(super) fn strftime(now: DateTime, text: &str) -> Result<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = String::from("%");
        for c in chars.by_ref() {
            directive.push(c);
            if !matches!(c, '-' | '_' | '0' | '^' | '#') {
                break;
            }
        }
        match directive.as_str() {
            // A time without zone has no name and no offset.
            "%z" | "%Z" => {}
            "%f" => out += &format!("{:06}", now.subsec_nanosecond() / 1000),
            "%c" => out += &piece("%a %b %e %H:%M:%S %Y", now)?,
            "%x" => out += &piece("%m/%d/%y", now)?,
            "%X" => out += &piece("%H:%M:%S", now)?,
            known => out += &piece(known, now).unwrap_or_else(|_| known.to_string()),
        }
    }
    Ok(out)
}

fn piece(directives: &str, now: DateTime) -> Result<String> {
    format(directives, now).map_err(|error| fail(format!("strftime_now: {error}")))
}
