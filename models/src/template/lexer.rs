//! Cuts a Jinja template into text and tags, and tags into tokens, as jinja2's own lexer does.
//!
//! Only the insides of `{{ }}` and `{% %}` are tokenized; everything else is passed on byte by byte.

use super::TemplateError;

/// One token of a tag.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Name(String),
    /// A string literal, escapes already decoded.
    Str(String),
    /// An integer literal, in decimal.
    Int(String),
    Float(String),
    Op(&'static str),
}

/// A token and the number of line breaks in front of or inside it, back to the end of the token before.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) line_breaks: usize,
}

/// What a tag is delimited by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TagKind {
    /// `{{ ... }}`
    Print,
    /// `{% ... %}`
    Block,
}

/// A piece of a template.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    /// Text, comments and `raw` blocks: copied as they are.
    Verbatim(&'a str),
    Tag(Tag<'a>),
}

/// A tag with its delimiters, which carry the whitespace control signs.
#[derive(Debug)]
pub(super) struct Tag<'a> {
    pub(super) kind: TagKind,
    pub(super) open: &'a str,
    pub(super) tokens: Vec<Token>,
    /// Line breaks between the last token and the closing delimiter.
    pub(super) line_breaks: usize,
    pub(super) close: &'a str,
    /// 1-based line of the opening delimiter.
    pub(super) line: usize,
}

/// Longest first, so that the first match is the right one.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// Splits a whole template.
pub(super) fn split(source: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let mut cursor = Cursor { source, at: 0, line: 1 };
    while cursor.at < source.len() {
        let rest = cursor.rest();
        let Some(offset) = next_tag(rest) else {
            pieces.push(Piece::Verbatim(rest));
            break;
        };
        if offset > 0 {
            pieces.push(Piece::Verbatim(cursor.advance(offset)));
        }
        if cursor.rest().starts_with("{#") {
            let len = cursor.rest().find("#}").ok_or_else(|| cursor.error("missing end of comment tag"))?;
            pieces.push(Piece::Verbatim(cursor.advance(len + 2)));
        } else if let Some((open, len)) = raw_block(cursor.rest()) {
            let (open, body) = cursor.advance(len).split_at(open);
            // jinja2 keeps the line break after "raw", which minijinja removes unless told not to.
            match open.strip_suffix("-%}").or(open.strip_suffix("+%}")) {
                Some(_) => pieces.push(Piece::Verbatim(open)),
                None => pieces.extend([Piece::Verbatim(&open[..open.len() - 2]), Piece::Verbatim("+%}")]),
            }
            pieces.push(Piece::Verbatim(body));
        } else {
            pieces.push(Piece::Tag(cursor.tag()?));
        }
    }
    Ok(pieces)
}

/// Byte offset of the next `{{`, `{%` or `{#`.
fn next_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

/// Lengths of the opening tag and of the whole of a `{% raw %}...{% endraw %}` block at the start of `text`.
fn raw_block(text: &str) -> Option<(usize, usize)> {
    let open = keyword_tag(text, "raw")?;
    let mut at = open;
    loop {
        at += text[at..].find("{%")?;
        match keyword_tag(&text[at..], "endraw") {
            Some(len) => return Some((open, at + len)),
            None => at += 2,
        }
    }
}

/// Length of a tag at the start of `text` that holds just `keyword`.
fn keyword_tag(text: &str, keyword: &str) -> Option<usize> {
    let inner = text.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start();
    let inner = inner.strip_prefix(keyword)?.trim_start();
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    Some(text.len() - inner.strip_prefix("%}")?.len())
}

struct Cursor<'a> {
    source: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn advance(&mut self, len: usize) -> &'a str {
        let text = &self.source[self.at..self.at + len];
        self.line += text.matches('\n').count();
        self.at += len;
        text
    }

    fn error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError::Syntax { line: self.line, message: message.into() }
    }

    /// Reads one tag, the cursor being at its opening delimiter.
    fn tag(&mut self) -> Result<Tag<'a>, TemplateError> {
        let line = self.line;
        let kind = if self.rest().starts_with("{{") { TagKind::Print } else { TagKind::Block };
        let sign = matches!(self.rest().as_bytes().get(2), Some(b'-' | b'+'));
        let open = self.advance(2 + usize::from(sign));
        let mut tokens = Vec::new();
        let mut brackets: Vec<&str> = Vec::new();
        let mut token_line = self.line;
        loop {
            let blank = self.rest().len() - self.rest().trim_start().len();
            self.advance(blank);
            if self.rest().is_empty() {
                return Err(TemplateError::Syntax { line, message: "this tag is never closed".into() });
            }
            if brackets.is_empty()
                && let Some(len) = close_len(kind, self.rest())
            {
                let line_breaks = self.line - token_line;
                let close = self.advance(len);
                return Ok(Tag { kind, open, tokens, line_breaks, close, line });
            }
            let kind = self.token()?;
            if let Kind::Op(op) = kind {
                self.balance(&mut brackets, op)?;
            }
            tokens.push(Token { kind, line_breaks: self.line - token_line });
            token_line = self.line;
        }
    }

    fn balance(&self, open: &mut Vec<&'static str>, op: &'static str) -> Result<(), TemplateError> {
        let expected = match op {
            "(" | "[" | "{" => {
                open.push(op);
                return Ok(());
            }
            ")" => "(",
            "]" => "[",
            "}" => "{",
            _ => return Ok(()),
        };
        match open.pop() {
            Some(bracket) if bracket == expected => Ok(()),
            _ => Err(self.error(format!("unexpected '{op}'"))),
        }
    }

    fn token(&mut self) -> Result<Kind, TemplateError> {
        let rest = self.rest();
        let first = rest.chars().next().unwrap_or_default();
        if first.is_alphabetic() || first == '_' {
            let len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            return Ok(Kind::Name(self.advance(len).to_string()));
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if first == '"' || first == '\'' {
            return self.string(first);
        }
        match OPERATORS.iter().find(|op| rest.starts_with(**op)) {
            Some(op) => {
                self.advance(op.len());
                Ok(Kind::Op(op))
            }
            None => Err(self.error(format!("unexpected character {first:?}"))),
        }
    }

    fn number(&mut self) -> Result<Kind, TemplateError> {
        let rest = self.rest();
        let lower: String = rest.chars().take(2).flat_map(char::to_lowercase).collect();
        let radix = match lower.as_str() {
            "0x" => 16,
            "0o" => 8,
            "0b" => 2,
            _ => 10,
        };
        if radix != 10 {
            let len =
                2 + rest[2..].find(|c: char| !(c.is_digit(radix) || c == '_')).unwrap_or(rest.len().saturating_sub(2));
            let digits = self.advance(len)[2..].replace('_', "");
            let value = i64::from_str_radix(&digits, radix).map_err(|_| self.error("bad integer literal"))?;
            return Ok(Kind::Int(value.to_string()));
        }
        let digits = |text: &str| text.find(|c: char| !(c.is_ascii_digit() || c == '_')).unwrap_or(text.len());
        let mut len = digits(rest);
        let mut float = false;
        if rest[len..].starts_with('.') && rest[len + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            float = true;
            len += 1 + digits(&rest[len + 1..]);
        }
        if let Some(exponent) = rest[len..].strip_prefix(['e', 'E']) {
            let sign = usize::from(exponent.starts_with(['+', '-']));
            if exponent[sign..].starts_with(|c: char| c.is_ascii_digit()) {
                float = true;
                len += 1 + sign + digits(&exponent[sign..]);
            }
        }
        let text = self.advance(len).replace('_', "");
        if float {
            return Ok(Kind::Float(text));
        }
        text.parse::<i64>().map(|n| Kind::Int(n.to_string())).map_err(|_| self.error("integer literal is too large"))
    }

    fn string(&mut self, quote: char) -> Result<Kind, TemplateError> {
        let mut escaped = false;
        let end = self.rest()[1..].find(|c: char| {
            let closes = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        });
        let Some(end) = end else {
            return Err(self.error("this string literal is never closed"));
        };
        let text = self.advance(end + 2);
        unescape(&text[1..=end]).map(Kind::Str).ok_or_else(|| self.error("bad escape sequence in a string literal"))
    }
}

/// Length of the closing delimiter at the start of `text`, if there is one.
fn close_len(kind: TagKind, text: &str) -> Option<usize> {
    let closes: &[&str] = match kind {
        TagKind::Print => &["}}", "-}}"],
        TagKind::Block => &["%}", "-%}", "+%}"],
    };
    closes.iter().find(|close| text.starts_with(**close)).map(|close| close.len())
}

/// Python's `unicode-escape` decoding, which jinja2 applies to string literals: unknown escapes stay as they are.
fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut high_surrogate = None;
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let simple = match chars.next()? {
            '\n' => continue,
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'v' => '\x0b',
            same @ ('\\' | '\'' | '"') => same,
            digit @ '0'..='7' => {
                let mut code = digit.to_digit(8)?;
                for _ in 0..2 {
                    let Some(next) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + next;
                    chars.next();
                }
                char::from_u32(code)?
            }
            length @ ('x' | 'u' | 'U') => {
                let n = match length {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits: String = chars.by_ref().take(n).collect();
                let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == n)?;
                match (high_surrogate.take(), code) {
                    (None, 0xd800..=0xdbff) => {
                        high_surrogate = Some(code);
                        continue;
                    }
                    (Some(high), 0xdc00..=0xdfff) => {
                        char::from_u32(0x10000 + ((high - 0xd800) << 10) + (code - 0xdc00))?
                    }
                    _ => char::from_u32(code)?,
                }
            }
            other => {
                out.push('\\');
                other
            }
        };
        out.push(simple);
    }
    Some(out)
}
