//! Rewrites the expressions of a template so that operators mean what they mean in Python.
//!
//! minijinja runs statements, scopes, loops and macros. Its operators differ from Python's in corners that chat
//! templates reach (`"%s" % x`, slices, methods as attributes) and are not bounded in memory, and it has no hook
//! for operators. So each operator becomes a call of one of our own functions (`ops`), by the grammar of jinja2's
//! parser: `a + b[1:]` becomes `__add(a, __slice(b, 1, none, none))`. Line numbers are kept.

use super::TemplateError;
use super::lexer::{Kind, Piece, Tag, TagKind, Token, split};

pub(super) type Result<T> = std::result::Result<T, TemplateError>;

/// Rewrites a whole template.
pub(super) fn rewrite(source: &str) -> Result<String> {
    let mut out = String::with_capacity(source.len() * 2);
    for piece in split(source)? {
        match piece {
            Piece::Verbatim(text) => out.push_str(text),
            Piece::Tag(tag) => rewrite_tag(&tag, &mut out)?,
        }
    }
    Ok(out)
}

fn rewrite_tag(tag: &Tag<'_>, out: &mut String) -> Result<()> {
    let mut parser = Parser { tokens: &tag.tokens, at: 0, pending: 0, line: tag.line, depth: 0 };
    let body = match tag.kind {
        TagKind::Print => parser.tuple(false)?,
        TagKind::Block => parser.statement()?,
    };
    if parser.at < tag.tokens.len() {
        return Err(parser.unexpected());
    }
    let breaks = "\n".repeat(parser.pending + tag.line_breaks);
    *out += &format!("{} {body}{breaks} {}", tag.open, tag.close);
    Ok(())
}

/// A recursive-descent parser whose value is the rewritten text.
pub(super) struct Parser<'t> {
    pub(super) tokens: &'t [Token],
    pub(super) at: usize,
    /// Line breaks passed but not yet written.
    pending: usize,
    /// 1-based line of the current token.
    line: usize,
    /// Nesting of the expression being read.
    pub(super) depth: usize,
}

impl Parser<'_> {
    pub(super) fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub(super) fn next(&mut self) -> Option<Kind> {
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        self.pending += token.line_breaks;
        self.line += token.line_breaks;
        Some(token.kind.clone())
    }

    /// The line breaks passed since this was last asked for.
    pub(super) fn breaks(&mut self) -> String {
        "\n".repeat(std::mem::take(&mut self.pending))
    }

    pub(super) fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Kind::Op(found)) if *found == op)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(found)) if found == name)
    }

    pub(super) fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect_op(&mut self, op: &str) -> Result<()> {
        if self.skip_op(op) { Ok(()) } else { Err(self.error(format!("expected '{op}', found {}", self.found()))) }
    }

    pub(super) fn expect_name(&mut self) -> Result<String> {
        match self.next() {
            Some(Kind::Name(name)) => Ok(name),
            _ => Err(self.error("expected a name")),
        }
    }

    pub(super) fn error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError::Syntax { line: self.line, message: message.into() }
    }

    pub(super) fn found(&self) -> String {
        match self.peek() {
            None => "the end of the tag".into(),
            Some(Kind::Op(op)) => format!("'{op}'"),
            Some(Kind::Name(text) | Kind::Int(text) | Kind::Float(text)) => format!("'{text}'"),
            Some(Kind::Str(text)) => format!("string {text:?}"),
        }
    }

    pub(super) fn unexpected(&self) -> TemplateError {
        self.error(format!("unexpected {}", self.found()))
    }

    /// The inside of a `{% %}` tag.
    fn statement(&mut self) -> Result<String> {
        let keyword = self.expect_name()?;
        let head = format!("{}{keyword}", self.breaks());
        let body = match keyword.as_str() {
            "for" => self.for_head()?,
            "set" => self.set_head()?,
            "if" | "elif" | "do" | "autoescape" => self.tuple(false)?,
            "with" => self.with_head()?,
            "macro" => self.expect_name()? + &self.parameters()?,
            "call" => {
                let parameters = if self.is_op("(") { self.parameters()? } else { String::new() };
                format!("{parameters} {}", self.expression()?)
            }
            "filter" => {
                let name = self.expect_name()?;
                let first = self.filter_call(&name)?;
                self.filters(first)?
            }
            // Marks the text of the assistant for training; for us it is a scope and nothing else.
            "generation" => return Ok("with".into()),
            "endgeneration" => return Ok("endwith".into()),
            _ => self.verbatim()?,
        };
        Ok(format!("{head} {body}"))
    }

    /// The rest of the tag, token by token.
    fn verbatim(&mut self) -> Result<String> {
        let mut out = String::new();
        while let Some(kind) = self.next() {
            let text = match kind {
                Kind::Str(text) => literal(&text),
                Kind::Op(text) => text.to_string(),
                Kind::Name(text) | Kind::Int(text) | Kind::Float(text) => text,
            };
            out += &format!("{}{text} ", self.breaks());
        }
        Ok(out)
    }

    fn for_head(&mut self) -> Result<String> {
        let targets = self.targets("in")?;
        if !self.skip_name("in") {
            return Err(self.error("expected 'in' in a for tag"));
        }
        let iter = self.tuple(true)?;
        let mut out = format!("{targets} in __iter({iter})");
        if self.skip_name("if") {
            out += &format!(" if {}", self.expression()?);
        }
        if self.skip_name("recursive") {
            out += " recursive";
        }
        Ok(out)
    }

    fn set_head(&mut self) -> Result<String> {
        let targets = self.targets("=")?;
        if self.skip_op("=") {
            let value = self.tuple(false)?;
            let is_attribute = targets.contains('.');
            return Ok(format!("{targets} = {}", if is_attribute { format!("__stored({value})") } else { value }));
        }
        self.filters(targets)
    }

    fn with_head(&mut self) -> Result<String> {
        let mut out = Vec::new();
        while self.peek().is_some() {
            if !out.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.targets("=")?;
            self.expect_op("=")?;
            out.push(format!("{target} = {}", self.expression()?));
        }
        Ok(out.join(", "))
    }

    /// Assignment targets: names, `namespace.attribute`, tuples of them.
    fn targets(&mut self, end: &str) -> Result<String> {
        let mut out = String::new();
        while !self.is_op(end) && !self.is_name(end) && !self.is_op("|") {
            match self.next() {
                Some(Kind::Name(name)) => out += &name,
                Some(Kind::Op(op @ ("," | "(" | ")" | "."))) => out += op,
                None => break,
                _ => return Err(self.error("cannot assign to this")),
            }
            out += &self.breaks();
        }
        Ok(out)
    }

    /// The parameters of a macro, with their defaults.
    fn parameters(&mut self) -> Result<String> {
        self.expect_op("(")?;
        let mut out = Vec::new();
        while !self.is_op(")") {
            if !out.is_empty() {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            let name = self.expect_name()?;
            let default = if self.skip_op("=") { format!("={}", self.expression()?) } else { String::new() };
            out.push(name + &default);
        }
        self.expect_op(")")?;
        Ok(format!("({})", out.join(", ")))
    }

    /// Expressions with commas between make a tuple.
    pub(super) fn tuple(&mut self, no_condition: bool) -> Result<String> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if matches!(self.peek(), None | Some(Kind::Op(")"))) {
                break;
            }
            items.push(if no_condition { self.or()? } else { self.expression()? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match items.len() {
            0 => Err(self.error("expected an expression")),
            1 if !is_tuple => Ok(items.remove(0)),
            _ => Ok(format!("__tuple({})", items.join(", "))),
        }
    }
}

/// A string literal on one line.
pub(super) fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r");
    format!("\"{escaped}\"")
}
