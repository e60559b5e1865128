//! Python's `%` formatting and `str.format`.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::budget;
use super::containers::is_tuple;
use super::ops::{int, item};
use super::values::{Result, as_float, as_int, fail, float_repr, is_float, items, repr, to_str, type_name};

/// The widest field and the most digits that may be asked for.
const MAX_WIDTH: usize = 10_000;

/// How one value is to be laid out.
#[derive(Debug, Default, Clone)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    /// `+`, `-` or a space.
    sign: Option<char>,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `format % values`.
pub(super) fn percent(format: &str, values: &Value) -> Result<String> {
    budget::bytes(format.len())?;
    let positional = if is_tuple(values) { items(values)? } else { vec![values.clone()] };
    let mut next = positional.iter();
    let mut used_mapping = false;
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        let mut key = None;
        if let Some(named) = rest.strip_prefix('(') {
            let end = named.find(')').ok_or_else(|| fail("incomplete format key"))?;
            key = Some(&named[..end]);
            rest = &named[end + 1..];
        }
        let (mut spec, after) = percent_spec(rest, &mut next)?;
        rest = after;
        let conversion = spec.kind.ok_or_else(|| fail("incomplete format"))?;
        if conversion == '%' {
            out.push('%');
            continue;
        }
        let value = match key {
            Some(key) => {
                used_mapping = true;
                item(values, &Value::from(key))?
            }
            None => next.next().cloned().ok_or_else(|| fail("not enough arguments for format string"))?,
        };
        let text = percent_value(&mut spec, conversion, &value)?;
        budget::bytes(text.len())?;
        out += &text;
    }
    if next.next().is_some() && !used_mapping && values.kind() != ValueKind::Map {
        return Err(fail("not all arguments converted during string formatting"));
    }
    Ok(out + rest)
}

/// Flags, width, precision and conversion after a `%`.
fn percent_spec<'a>(text: &'a str, values: &mut std::slice::Iter<'_, Value>) -> Result<(Spec, &'a str)> {
    let mut spec = Spec { align: Some('>'), ..Spec::default() };
    let mut rest = text;
    while let Some(flag) = rest.chars().next().filter(|c| "-+ #0".contains(*c)) {
        match flag {
            '-' => spec.align = Some('<'),
            '#' => spec.alternate = true,
            '0' => spec.fill = Some('0'),
            sign => spec.sign = Some(sign),
        }
        rest = &rest[1..];
    }
    let mut number = |rest: &mut &'a str| -> Result<Option<usize>> {
        if let Some(after) = rest.strip_prefix('*') {
            *rest = after;
            let n = values.next().and_then(as_int).ok_or_else(|| fail("* wants int"))?;
            return width_of(&n.to_string()).map(Some);
        }
        let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = &rest[..len];
        *rest = &rest[len..];
        if digits.is_empty() { Ok(None) } else { width_of(digits).map(Some) }
    };
    spec.width = number(&mut rest)?.unwrap_or(0);
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        spec.precision = Some(number(&mut rest)?.unwrap_or(0));
    }
    rest = rest.trim_start_matches(['h', 'l', 'L']);
    spec.kind = rest.chars().next();
    Ok((spec.clone(), &rest[spec.kind.map_or(0, char::len_utf8)..]))
}

fn percent_value(spec: &mut Spec, conversion: char, value: &Value) -> Result<String> {
    let is_text = matches!(conversion, 's' | 'r' | 'a' | 'c');
    if spec.fill == Some('0') {
        match (spec.align, is_text) {
            (Some('>'), false) => spec.align = Some('='),
            _ => spec.fill = None,
        }
    }
    match conversion {
        's' => Ok(pad_text(spec, &to_str(value))),
        'r' | 'a' => Ok(pad_text(spec, &repr(value))),
        'c' => {
            let text = match as_int(value).and_then(|n| u32::try_from(n).ok()).and_then(char::from_u32) {
                Some(c) => c.to_string(),
                None => to_str(value),
            };
            Ok(pad_text(spec, &text))
        }
        'd' | 'i' | 'u' => {
            let truncated = as_int(value).or_else(|| as_float(value).map(|x| x.trunc() as i128));
            let n = truncated.ok_or_else(|| {
                fail(format!("%{conversion} format: a real number is required, not {}", type_name(value)))
            })?;
            spec.kind = Some('d');
            let digits = spec.precision.take().unwrap_or(0);
            Ok(pad_number(spec, n < 0, "", &format!("{:0>digits$}", n.unsigned_abs())))
        }
        'x' | 'X' | 'o' => {
            let n = as_int(value).ok_or_else(|| {
                fail(format!("%{conversion} format: an integer is required, not {}", type_name(value)))
            })?;
            number_text(spec, &int(n))
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let x = as_float(value).ok_or_else(|| fail(format!("must be real number, not {}", type_name(value))))?;
            number_text(spec, &Value::from(x))
        }
        other => Err(fail(format!("unsupported format character '{other}'"))),
    }
}

fn width_of(digits: &str) -> Result<usize> {
    digits.parse().ok().filter(|n| *n <= MAX_WIDTH).ok_or_else(|| fail(format!("a field is wider than {MAX_WIDTH}")))
}

/// `format.format(*positional, **keywords)`.
pub(super) fn str_format(format: &str, positional: &[Value], keywords: &[(Value, Value)]) -> Result<String> {
    let mut source = Fields { positional, keywords, next: 0 };
    source.expand(format, 0)
}

/// The arguments of one `str.format` call.
struct Fields<'a> {
    positional: &'a [Value],
    keywords: &'a [(Value, Value)],
    next: usize,
}

impl Fields<'_> {
    fn expand(&mut self, format: &str, depth: usize) -> Result<String> {
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out += &rest[..at];
            let doubled = rest.as_bytes().get(at + 1) == rest.as_bytes().get(at);
            let brace = &rest[at..=at];
            if doubled {
                out += brace;
                rest = &rest[at + 2..];
                continue;
            }
            if brace == "}" {
                return Err(fail("Single '}' encountered in format string"));
            }
            let end = closing_brace(&rest[at..]).ok_or_else(|| fail("expected '}' before end of string"))?;
            let text = self.field(&rest[at + 1..at + end], depth)?;
            budget::bytes(text.len())?;
            out += &text;
            rest = &rest[at + end + 1..];
        }
        Ok(out + rest)
    }

    fn field(&mut self, field: &str, depth: usize) -> Result<String> {
        if depth > 1 {
            return Err(fail("Max string recursion exceeded"));
        }
        let (head, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = head.split_once('!').unwrap_or((head, ""));
        let value = self.lookup(name)?;
        let value = match conversion {
            "" => value,
            "s" => Value::from(to_str(&value)),
            "r" | "a" => Value::from(repr(&value)),
            other => return Err(fail(format!("Unknown conversion specifier '{other}'"))),
        };
        let spec = self.expand(spec, depth + 1)?;
        format_value(&value, &spec)
    }

    fn lookup(&mut self, name: &str) -> Result<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut path) = name.split_at(end);
        let mut value = if first.is_empty() || first.bytes().all(|b| b.is_ascii_digit()) {
            let index = if first.is_empty() { self.next } else { width_of(first)? };
            self.next = index + 1;
            let missing = || fail(format!("Replacement index {index} out of range for positional args tuple"));
            self.positional.get(index).cloned().ok_or_else(missing)?
        } else {
            let found = self.keywords.iter().find(|(key, _)| key.as_str() == Some(first));
            found.map(|(_, value)| value.clone()).ok_or_else(|| fail(format!("'{first}'")))?
        };
        while !path.is_empty() {
            let key = if let Some(inner) = path.strip_prefix('[') {
                let end = inner.find(']').ok_or_else(|| fail("Missing ']' in format string"))?;
                path = &inner[end + 1..];
                inner[..end].parse::<i64>().map_or_else(|_| Value::from(&inner[..end]), Value::from)
            } else {
                return Err(fail("attributes in a format string are not supported"));
            };
            value = item(&value, &key)?;
        }
        Ok(value)
    }
}

/// Position of the brace that closes the one at the start of `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// `format(value, spec)`.
fn format_value(value: &Value, spec: &str) -> Result<String> {
    if spec.is_empty() {
        return Ok(to_str(value));
    }
    let spec = parse_spec(spec)?;
    let is_number = matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    match spec.kind {
        None | Some('s') if !is_number => Ok(pad_text(&spec, &to_str(value))),
        _ if !is_number => Err(fail(format!(
            "Unknown format code '{}' for object of type '{}'",
            spec.kind.unwrap_or('s'),
            type_name(value)
        ))),
        Some('c') => Err(fail("format code 'c' is not supported")),
        _ => number_text(&Spec { align: spec.align.or(Some('>')), ..spec }, value),
    }
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
fn parse_spec(text: &str) -> Result<Spec> {
    let mut spec = Spec::default();
    let mut chars: Vec<char> = text.chars().collect();
    let is_align = |c: Option<&char>| c.is_some_and(|c| "<>^=".contains(*c));
    if is_align(chars.get(1)) {
        spec.fill = Some(chars[0]);
        spec.align = Some(chars[1]);
        chars.drain(..2);
    } else if is_align(chars.first()) {
        spec.align = Some(chars.remove(0));
    }
    let mut rest: &str = &chars.iter().collect::<String>();
    if let Some(sign) = rest.chars().next().filter(|c| "+- ".contains(*c)) {
        spec.sign = Some(sign);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('#') {
        spec.alternate = true;
        rest = after;
    }
    if rest.starts_with('0') && spec.align.is_none() {
        spec.fill = Some('0');
        spec.align = Some('=');
    }
    let digits = |rest: &str| rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let len = digits(rest);
    if len > 0 {
        spec.width = width_of(&rest[..len])?;
    }
    rest = &rest[len..];
    if let Some(grouping) = rest.chars().next().filter(|c| ",_".contains(*c)) {
        spec.grouping = Some(grouping);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let len = digits(after);
        spec.precision = Some(width_of(&after[..len])?);
        rest = &after[len..];
    }
    let mut kinds = rest.chars();
    spec.kind = kinds.next();
    if kinds.next().is_some() { Err(fail(format!("Invalid format specifier '{text}'"))) } else { Ok(spec) }
}

/// A number by its type letter.
fn number_text(spec: &Spec, value: &Value) -> Result<String> {
    let unknown = |kind| fail(format!("Unknown format code '{kind}' for object of type '{}'", type_name(value)));
    let kind = spec.kind.filter(|kind| *kind != 'n');
    if !is_float(value) && matches!(kind, None | Some('d' | 'x' | 'X' | 'o' | 'b')) {
        let n = as_int(value).ok_or_else(|| fail("expected a number"))?;
        let magnitude = n.unsigned_abs();
        let (prefix, digits) = match kind {
            Some('x') => ("0x", format!("{magnitude:x}")),
            Some('X') => ("0X", format!("{magnitude:X}")),
            Some('o') => ("0o", format!("{magnitude:o}")),
            Some('b') => ("0b", format!("{magnitude:b}")),
            _ => ("", magnitude.to_string()),
        };
        return Ok(pad_number(spec, n < 0, if spec.alternate { prefix } else { "" }, &digits));
    }
    let x = as_float(value).ok_or_else(|| fail("expected a number"))?;
    let magnitude = x.abs();
    let precision = spec.precision.unwrap_or(6);
    let digits = match kind {
        _ if !x.is_finite() => float_repr(magnitude),
        None if spec.precision.is_none() => float_repr(magnitude),
        None => general(magnitude, precision.max(1), true),
        Some('f' | 'F') => format!("{magnitude:.precision$}"),
        Some('%') => format!("{:.precision$}%", magnitude * 100.0),
        Some('e') => exponent(magnitude, precision),
        Some('E') => exponent(magnitude, precision).to_uppercase(),
        Some('g') => general(magnitude, precision.max(1), false),
        Some('G') => general(magnitude, precision.max(1), false).to_uppercase(),
        Some(other) => return Err(unknown(other)),
    };
    Ok(pad_number(spec, x.is_sign_negative() && !x.is_nan(), "", &digits))
}

/// `1.5e+03`
fn exponent(x: f64, precision: usize) -> String {
    let text = format!("{x:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `precision` significant digits without trailing zeros, in exponent form where that is shorter.
fn general(x: f64, precision: usize, keep_point: bool) -> String {
    let scientific = format!("{x:.*e}", precision - 1);
    let power: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text.to_string() }
    };
    if power < -4 || power >= precision as i32 {
        let text = exponent(x, precision - 1);
        let (mantissa, power) = text.split_once('e').unwrap_or((&text, "+00"));
        return format!("{}e{power}", trim(mantissa));
    }
    let digits = (precision as i32 - 1 - power).max(0) as usize;
    let text = trim(&format!("{x:.digits$}"));
    if keep_point && !text.contains('.') { text + ".0" } else { text }
}

fn pad_text(spec: &Spec, text: &str) -> String {
    let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
    pad(spec, "", &text, spec.align.unwrap_or('<'))
}

fn pad_number(spec: &Spec, negative: bool, prefix: &str, digits: &str) -> String {
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let digits = match spec.grouping {
        Some(separator) => group(digits, separator),
        None => digits.to_string(),
    };
    pad(spec, &format!("{sign}{prefix}"), &digits, spec.align.unwrap_or('>'))
}

/// Separators between thousands of the integral part.
fn group(digits: &str, separator: char) -> String {
    let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut out = String::new();
    for (i, c) in digits[..whole].chars().enumerate() {
        if i > 0 && (whole - i).is_multiple_of(3) {
            out.push(separator);
        }
        out.push(c);
    }
    out + &digits[whole..]
}

fn pad(spec: &Spec, head: &str, body: &str, align: char) -> String {
    let missing = spec.width.saturating_sub(head.chars().count() + body.chars().count());
    let run = |n: usize| spec.fill.unwrap_or(' ').to_string().repeat(n);
    match align {
        '<' => format!("{head}{body}{}", run(missing)),
        '^' => format!("{}{head}{body}{}", run(missing / 2), run(missing - missing / 2)),
        '=' => format!("{head}{}{body}", run(missing)),
        _ => format!("{}{head}{body}", run(missing)),
    }
}
