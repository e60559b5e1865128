//! The grammar of jinja2's expressions, loosest operators first; what each rule returns is the rewritten text.

use super::lexer::Kind;
use super::methods::is_method_name;
use super::rewrite::{Parser, Result, literal};

/// Nesting of brackets, and operators in a row, that an expression may have.
const MAX_DEPTH: usize = 100;

impl Parser<'_> {
    pub(super) fn expression(&mut self) -> Result<String> {
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

    pub(super) fn or(&mut self) -> Result<String> {
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
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(operator) = self.comparison() {
            rest.push((operator, self.sum()?));
        }
        match rest.as_slice() {
            [] => Ok(first),
            [((function, negated), right)] => {
                let call = format!("{function}({first}, {right})");
                Ok(if *negated { format!("(not {call})") } else { call })
            }
            chain => {
                let mut arguments = first;
                for ((function, negated), right) in chain {
                    arguments += &format!(", \"{function}\", {negated}, {right}");
                }
                Ok(format!("__chain({arguments})"))
            }
        }
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
                    return Ok(breaks + "__tuple()");
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
        Ok(format!("__list({})", items.join(", ")))
    }

    fn dict(&mut self) -> Result<String> {
        let mut items = Vec::new();
        while !self.is_op("}") {
            let key = self.expression()?;
            self.expect_op(":")?;
            items.push(format!("{key}, {}", self.expression()?));
            if !self.is_op("}") {
                self.expect_op(",")?;
            }
        }
        self.expect_op("}")?;
        Ok(format!("__dict({})", items.join(", ")))
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
            index = format!("__tuple({})", items.join(", "));
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
    pub(super) fn filters(&mut self, mut value: String) -> Result<String> {
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

    pub(super) fn filter_call(&mut self, name: &str) -> Result<String> {
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
