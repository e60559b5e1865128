//! Values as Python sees them: type names, `str()`, `repr()`, and iteration.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::budget;
use super::containers::{View, dict, is_dict, is_tuple, list};

pub(super) type Result<T> = std::result::Result<T, Error>;

/// Nesting that the given variables may have.
const MAX_JSON_DEPTH: usize = 150;

/// An error in the manner of Python's TypeError and ValueError.
pub(super) fn fail(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The value as a template value; objects keep their key order.
pub(super) fn from_json(json: &serde_json::Value) -> Result<Value> {
    json_at(json, 0)
}

fn json_at(json: &serde_json::Value, depth: usize) -> Result<Value> {
    if depth > MAX_JSON_DEPTH {
        return Err(fail(format!("the variables are nested more than {MAX_JSON_DEPTH} deep")));
    }
    Ok(match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(items) => {
            list(items.iter().map(|item| json_at(item, depth + 1)).collect::<Result<_>>()?)?
        }
        serde_json::Value::Object(map) => {
            let pair = |(key, item): (&String, _)| Ok((Value::from(key.as_str()), json_at(item, depth + 1)?));
            dict(map.iter().map(pair).collect::<Result<Vec<_>>>()?)?
        }
    })
}

/// Whether this is a float.
pub(super) fn is_float(value: &Value) -> bool {
    value.kind() == ValueKind::Number && !value.is_integer()
}

/// An int or a bool as an integer.
pub(super) fn as_int(value: &Value) -> Option<i128> {
    let integral = value.kind() == ValueKind::Bool || value.is_integer();
    if integral { i128::try_from(value.clone()).ok() } else { None }
}

/// An int, a bool or a float as a float.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    if is_float(value) { f64::try_from(value.clone()).ok() } else { as_int(value).map(|n| n as f64) }
}

/// Python's name of the type, for messages.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Seq if is_tuple(value) => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Map if is_dict(value) => "dict",
        ValueKind::Iterable => "generator",
        _ => "object",
    }
}

/// The pairs of a dict.
pub(super) fn pairs(value: &Value) -> Vec<(Value, Value)> {
    value.as_object().and_then(|object| object.try_iter_pairs()).map(Iterator::collect).unwrap_or_default()
}

/// All items, as Python's `list()` gives them: characters of strings, keys of dicts, nothing of undefined values.
pub(super) fn items(value: &Value) -> Result<Vec<Value>> {
    if let Some(text) = value.as_str() {
        budget::items(text.len())?;
        return Ok(text.chars().map(|c| Value::from(c.to_string())).collect());
    }
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            budget::items(value.len().unwrap_or(0))?;
            value.try_iter()?.checked().collect()
        }
        _ => Err(fail(format!("'{}' object is not iterable", type_name(value)))),
    }
}

/// Python's `len()`.
pub(super) fn length(value: &Value) -> Result<usize> {
    match value.kind() {
        ValueKind::Undefined => Ok(0),
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            budget::read(value)?;
            value.len().map_or_else(|| items(value).map(|items| items.len()), Ok)
        }
        _ => Err(fail(format!("object of type '{}' has no len()", type_name(value)))),
    }
}

/// As [`to_str`], paid for.
pub(super) fn text(value: &Value) -> Result<String> {
    let text = to_str(value);
    budget::bytes(text.len()).map(|()| text)
}

/// Python's `str()`.
pub(super) fn to_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        ValueKind::Undefined => String::new(),
        _ => {
            let mut out = String::new();
            repr_into(value, &mut out);
            out
        }
    }
}

/// Python's `repr()`.
pub(super) fn repr(value: &Value) -> String {
    let mut out = String::new();
    repr_into(value, &mut out);
    out
}

fn repr_into(value: &Value, out: &mut String) {
    if budget::items(1).is_err() {
        return;
    }
    match value.kind() {
        ValueKind::Undefined => *out += "Undefined",
        ValueKind::Number if is_float(value) => *out += &float_repr(as_float(value).unwrap_or(f64::NAN)),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            if budget::bytes(text.len()).is_ok() {
                quote_into(text, out);
            }
        }
        ValueKind::Seq => {
            let items = items(value).unwrap_or_default();
            *out += if is_tuple(value) { "(" } else { "[" };
            join_repr(&items, out);
            if is_tuple(value) {
                *out += if items.len() == 1 { ",)" } else { ")" };
            } else {
                *out += "]";
            }
        }
        ValueKind::Map if is_dict(value) => {
            *out += "{";
            for (i, (key, item)) in pairs(value).iter().enumerate() {
                if i > 0 {
                    *out += ", ";
                }
                repr_into(key, out);
                *out += ": ";
                repr_into(item, out);
            }
            *out += "}";
        }
        ValueKind::Iterable => match value.downcast_object_ref::<View>() {
            Some(view) => {
                *out += &format!("dict_{}([", view.name);
                join_repr(&view.items, out);
                *out += "])";
            }
            None => *out += "<generator object>",
        },
        _ => *out += &value.to_string(),
    }
}

fn join_repr(items: &[Value], out: &mut String) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            *out += ", ";
        }
        repr_into(item, out);
    }
}

/// A string literal as Python prints it.
fn quote_into(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => *out += "\\\\",
            '\n' => *out += "\\n",
            '\r' => *out += "\\r",
            '\t' => *out += "\\t",
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => *out += &format!("\\x{:02x}", c as u32),
            c if (c as u32) < 0x10000 => *out += &format!("\\u{:04x}", c as u32),
            c => *out += &format!("\\U{:08x}", c as u32),
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` for one character: separators and format, private and control characters are not.
fn is_printable(c: char) -> bool {
    !(c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c as u32,
            0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e
            | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xfffe | 0xffff
            | 0xe0000..=0xe0fff | 0xf0000..=0x10ffff))
}

/// A float as Python prints it: the shortest digits that read back, in exponent form below 1e-4 and from 1e16 on.
pub(super) fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}
