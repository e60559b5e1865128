//! Rewrites the expressions of a template so that operators mean what they mean in Python.
//!
//! minijinja runs statements, scopes, loops and macros. Its operators differ from Python's in corners that chat
//! templates reach (`"%s" % x`, slices, methods as attributes) and are not bounded in memory, and it has no hook
//! for operators. So each operator becomes a call of one of our own functions (`ops`), by the grammar of jinja2's
//! parser: `a + b[1:]` becomes `__add(a, __slice(b, 1, none, none))`. Line numbers are kept.

use super::TemplateError;
use super::lexer::{Kind, Piece, Tag, TagKind, Token, split};
use super::methods::is_method_name;

/// Nesting of brackets and operators that a template may have.
const MAX_DEPTH: usize = 100;

type Result<T> = std::result::Result<T, TemplateError>;

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
struct Parser<'t> {
    tokens: &'t [Token],
    at: usize,
    /// Line breaks passed but not yet written.
    pending: usize,
    /// 1-based line of the current token.
    line: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    fn next(&mut self) -> Option<Kind> {
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        self.pending += token.line_breaks;
        self.line += token.line_breaks;
        Some(token.kind.clone())
    }

    /// The line breaks passed since this was last asked for.
    fn breaks(&mut self) -> String {
        "\n".repeat(std::mem::take(&mut self.pending))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Kind::Op(found)) if *found == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(found)) if found == name)
    }

    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn expect_op(&mut self, op: &str) -> Result<()> {
        if self.skip_op(op) { Ok(()) } else { Err(self.error(format!("expected '{op}', found {}", self.found()))) }
    }

    fn expect_name(&mut self) -> Result<String> {
        match self.next() {
            Some(Kind::Name(name)) => Ok(name),
            _ => Err(self.error("expected a name")),
        }
    }

    fn error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError::Syntax { line: self.line, message: message.into() }
    }

    fn found(&self) -> String {
        match self.peek() {
            None => "the end of the tag".into(),
            Some(Kind::Op(op)) => format!("'{op}'"),
            Some(Kind::Name(text) | Kind::Int(text) | Kind::Float(text)) => format!("'{text}'"),
            Some(Kind::Str(text)) => format!("string {text:?}"),
        }
    }

    fn unexpected(&self) -> TemplateError {
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
            return Ok(format!("{targets} = {}", self.tuple(false)?));
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
    fn tuple(&mut self, no_condition: bool) -> Result<String> {
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
            1 if is_tuple => Ok(format!("({},)", items[0])),
            1 => Ok(items.remove(0)),
            _ => Ok(format!("({})", items.join(", "))),
        }
    }

    fn expression(&mut self) -> Result<String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("expressions are nested more than {MAX_DEPTH} deep")));
        }
        let mut value = self.or()?;
        while self.skip_name("if") {
            let condition = self.or()?;
            // Without "else" the other value is undefined.
            let other = if self.skip_name("else") { format!(" else {}", self.expression()?) } else { String::new() };
            value = format!("({value} if {condition}{other})");
        }
        self.depth -= 1;
        Ok(value)
    }

    fn or(&mut self) -> Result<String> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            left = format!("({left} or {})", self.and()?);
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<String> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            left = format!("({left} and {})", self.not()?);
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<String> {
        let mut count = 0;
        while self.skip_name("not") {
            count += 1;
        }
        let operand = self.compare()?;
        Ok(match count {
            0 => operand,
            n if n % 2 == 1 => format!("(not {operand})"),
            _ => format!("(not not {operand})"),
        })
    }

    /// Chains mean what they mean in Python: `a < b < c` is `a < b and b < c`.
    fn compare(&mut self) -> Result<String> {
        let mut left = self.sum()?;
        let mut parts = Vec::new();
        while let Some((function, negated)) = self.comparison() {
            let right = self.sum()?;
            let call = format!("{function}({left}, {right})");
            parts.push(if negated { format!("(not {call})") } else { call });
            left = right.replace('\n', "");
        }
        Ok(match parts.len() {
            0 => left,
            1 => parts.remove(0),
            _ => format!("({})", parts.join(" and ")),
        })
    }

    fn comparison(&mut self) -> Option<(&'static str, bool)> {
        let found = match self.peek()? {
            Kind::Op("==") => ("__eq", false),
            Kind::Op("!=") => ("__eq", true),
            Kind::Op("<") => ("__lt", false),
            Kind::Op("<=") => ("__le", false),
            Kind::Op(">") => ("__gt", false),
            Kind::Op(">=") => ("__ge", false),
            Kind::Name(name) if name == "in" => ("__in", false),
            Kind::Name(name) if name == "not" => {
                let after = self.tokens.get(self.at + 1).map(|token| &token.kind);
                if !matches!(after, Some(Kind::Name(name)) if name == "in") {
                    return None;
                }
                self.next();
                ("__in", true)
            }
            _ => return None,
        };
        self.next();
        Some(found)
    }

    fn sum(&mut self) -> Result<String> {
        self.binary(&[("+", "__add"), ("-", "__sub")], Self::concat)
    }

    fn concat(&mut self) -> Result<String> {
        let mut items = vec![self.product()?];
        while self.skip_op("~") {
            items.push(self.product()?);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { format!("__concat({})", items.join(", ")) })
    }

    fn product(&mut self) -> Result<String> {
        self.binary(&[("*", "__mul"), ("//", "__floordiv"), ("/", "__div"), ("%", "__mod")], Self::power)
    }

    fn power(&mut self) -> Result<String> {
        self.binary(&[("**", "__pow")], |parser| parser.unary(true))
    }

    /// Left-associative operators of one precedence.
    fn binary(&mut self, table: &[(&str, &str)], operand: fn(&mut Self) -> Result<String>) -> Result<String> {
        let mut left = operand(self)?;
        let mut count = 0;
        while let Some((op, function)) = table.iter().find(|(op, _)| self.is_op(op)) {
            self.skip_op(op);
            left = format!("{function}({left}, {})", operand(self)?);
            count += 1;
            if count > MAX_DEPTH {
                return Err(self.error(format!("more than {MAX_DEPTH} operators in a row")));
            }
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Result<String> {
        let mut value = if self.is_op("-") || self.is_op("+") {
            let function = if self.skip_op("-") { "__neg" } else { "__pos" };
            if function == "__pos" {
                self.skip_op("+");
            }
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(self.error("too many signs"));
            }
            let operand = self.unary(false)?;
            self.depth -= 1;
            format!("{function}({operand})")
        } else {
            self.primary()?
        };
        value = self.postfix(value)?;
        if with_filters { self.filters(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Result<String> {
        let Some(kind) = self.next() else {
            return Err(self.error("expected an expression, found the end of the tag"));
        };
        let breaks = self.breaks();
        let text = match kind {
            Kind::Name(name) => name,
            Kind::Int(text) => text,
            Kind::Float(text) => format!("__float({})", literal(&text)),
            Kind::Str(mut text) => {
                while let Some(Kind::Str(more)) = self.peek().cloned() {
                    text += &more;
                    self.next();
                }
                literal(&text)
            }
            Kind::Op("(") => {
                if self.skip_op(")") {
                    return Ok(breaks + "()");
                }
                let inner = self.tuple(false)?;
                self.expect_op(")")?;
                format!("({inner})")
            }
            Kind::Op("[") => self.list()?,
            Kind::Op("{") => self.dict()?,
            Kind::Op(op) => return Err(self.error(format!("expected an expression, found '{op}'"))),
        };
        Ok(breaks + &text)
    }

    fn list(&mut self) -> Result<String> {
        let mut items = Vec::new();
        while !self.is_op("]") {
            items.push(self.expression()?);
            if !self.is_op("]") {
                self.expect_op(",")?;
            }
        }
        self.expect_op("]")?;
        Ok(format!("[{}]", items.join(", ")))
    }

    fn dict(&mut self) -> Result<String> {
        let mut items = Vec::new();
        while !self.is_op("}") {
            let key = self.expression()?;
            self.expect_op(":")?;
            items.push(format!("{key}: {}", self.expression()?));
            if !self.is_op("}") {
                self.expect_op(",")?;
            }
        }
        self.expect_op("}")?;
        Ok(format!("{{{} }}", items.join(", ")))
    }

    /// Attributes, subscripts and calls.
    fn postfix(&mut self, mut value: String) -> Result<String> {
        loop {
            value = if self.skip_op(".") {
                self.attribute(value)?
            } else if self.skip_op("[") {
                self.subscript(value)?
            } else if self.is_op("(") {
                format!("{value}{}", self.arguments()?)
            } else {
                return Ok(value);
            };
        }
    }

    fn attribute(&mut self, value: String) -> Result<String> {
        let name = match self.next() {
            Some(Kind::Name(name)) => name,
            Some(Kind::Int(index)) => return Ok(format!("__item({value}, {index})")),
            _ => return Err(self.error("expected a name or a number after '.'")),
        };
        let breaks = self.breaks();
        if self.is_op("(") {
            return Ok(format!("{value}{breaks}.{name}{}", self.arguments()?));
        }
        if is_method_name(&name) {
            return Ok(format!("__attr({value}, {breaks}{})", literal(&name)));
        }
        Ok(format!("{value}{breaks}.{name}"))
    }

    fn subscript(&mut self, value: String) -> Result<String> {
        let mut bounds: [Option<String>; 3] = [None, None, None];
        let mut colons = 0;
        loop {
            if self.is_op("]") || self.is_op(",") {
                break;
            }
            if self.is_op(":") && colons < 2 {
                self.next();
                colons += 1;
                continue;
            }
            if bounds[colons].is_some() {
                return Err(self.unexpected());
            }
            bounds[colons] = Some(self.expression()?);
        }
        let [start, stop, step] = bounds;
        if colons > 0 {
            self.expect_op("]")?;
            let text = |bound: Option<String>| bound.unwrap_or_else(|| "none".into());
            return Ok(format!("__slice({value}, {}, {}, {})", text(start), text(stop), text(step)));
        }
        let mut index = start.ok_or_else(|| self.error("empty subscript"))?;
        if self.is_op(",") {
            let mut items = vec![index];
            while self.skip_op(",") {
                items.push(self.expression()?);
            }
            index = format!("({})", items.join(", "));
        }
        self.expect_op("]")?;
        Ok(format!("__item({value}, {index})"))
    }

    fn arguments(&mut self) -> Result<String> {
        self.expect_op("(")?;
        let mut items = Vec::new();
        while !self.is_op(")") {
            let after = self.tokens.get(self.at + 1).map(|token| &token.kind);
            let item = if self.skip_op("*") {
                format!("*{}", self.expression()?)
            } else if self.skip_op("**") {
                format!("**{}", self.expression()?)
            } else if matches!(self.peek(), Some(Kind::Name(_))) && matches!(after, Some(Kind::Op("="))) {
                let name = self.expect_name()?;
                self.expect_op("=")?;
                format!("{name}={}", self.expression()?)
            } else {
                self.expression()?
            };
            items.push(item);
            if !self.is_op(")") {
                self.expect_op(",")?;
            }
        }
        self.expect_op(")")?;
        Ok(format!("({}{})", items.join(", "), self.breaks()))
    }

    /// Filters, tests, and calls of their results.
    fn filters(&mut self, mut value: String) -> Result<String> {
        loop {
            value = if self.skip_op("|") {
                let name = self.expect_name()?;
                let call = self.filter_call(&name)?;
                format!("{value}|{call}")
            } else if self.skip_name("is") {
                self.test(value)?
            } else if self.is_op("(") {
                format!("({value}){}", self.arguments()?)
            } else {
                return Ok(value);
            };
        }
    }

    fn filter_call(&mut self, name: &str) -> Result<String> {
        let breaks = self.breaks();
        let arguments = if self.is_op("(") { self.arguments()? } else { String::new() };
        Ok(format!("{breaks}{name}{arguments}"))
    }

    fn test(&mut self, value: String) -> Result<String> {
        let negated = self.skip_name("not");
        let name = self.expect_name()?;
        let breaks = self.breaks();
        let takes_argument = match self.peek() {
            Some(Kind::Name(name)) => !matches!(name.as_str(), "else" | "or" | "and" | "is" | "if" | "in" | "not"),
            Some(Kind::Op(op)) => matches!(*op, "[" | "{"),
            Some(_) => true,
            None => false,
        };
        let arguments = if self.is_op("(") {
            self.arguments()?
        } else if takes_argument {
            let argument = self.primary()?;
            format!("({})", self.postfix(argument)?)
        } else {
            String::new()
        };
        let test = format!("({value} is {breaks}{name}{arguments})");
        Ok(if negated { format!("(not {test})") } else { test })
    }
}

/// A string literal on one line.
fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r");
    format!("\"{escaped}\"")
}
