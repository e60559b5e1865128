//! Values as Python sees them: type names, `str()`, `repr()`, iteration, and the budget on what a render may build.

use std::sync::{Arc, Mutex};

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

pub(super) type Result<T> = std::result::Result<T, Error>;

/// Bytes that one render may build in strings and lists, intermediate values included. Real chat templates stay far
/// below: a conversation of 1 MB built up message by message in 200 steps takes 100 MB.
const MAX_BYTES: usize = 1 << 29;

/// Nesting of lists and dicts that `repr` and `tojson` follow.
pub(super) const MAX_NESTING: usize = 200;

/// An error in the manner of Python's TypeError and ValueError.
pub(super) fn fail(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The bytes a render has built so far.
#[derive(Default)]
struct Built(usize);

/// Counts `bytes` against the budget of this render; to be called before they are allocated.
pub(super) fn charge(state: &mut State<'_, '_>, bytes: usize) -> Result<()> {
    let built = state.get_or_insert_extension_with(Built::default);
    built.0 = built.0.saturating_add(bytes);
    if built.0 > MAX_BYTES {
        return Err(Error::new(
            ErrorKind::OutOfFuel,
            format!("the template built more than {} MiB of text", MAX_BYTES >> 20),
        ));
    }
    Ok(())
}

/// The value as a template value; objects keep their key order.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(items) => list(items.iter().map(from_json).collect()),
        serde_json::Value::Object(map) => dict(map.iter().map(|(k, v)| (Value::from(k.as_str()), from_json(v)))),
    }
}

/// A Python list.
pub(super) fn list(items: Vec<Value>) -> Value {
    Value::from_object(items)
}

/// A Python tuple.
pub(super) fn tuple(items: Vec<Value>) -> Value {
    Value::from(Tuple::from(items))
}

/// A Python dict.
pub(super) fn dict(pairs: impl Iterator<Item = (Value, Value)>) -> Value {
    Value::from_object(pairs.collect::<IndexMap<Value, Value>>())
}

/// Whether this is a dict; namespaces and loops look like maps too, but have no methods.
pub(super) fn is_dict(value: &Value) -> bool {
    value.is_kwargs() || value.downcast_object_ref::<IndexMap<Value, Value>>().is_some()
}

/// Whether this is a list or a tuple.
pub(super) fn is_sequence(value: &Value) -> bool {
    value.kind() == ValueKind::Seq
}

/// Whether this is a list, not a tuple.
pub(super) fn is_list(value: &Value) -> bool {
    is_sequence(value) && !value.is_tuple()
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
        ValueKind::Seq if value.is_tuple() => "tuple",
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
        return Ok(text.chars().map(|c| Value::from(c.to_string())).collect());
    }
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => value.try_iter()?.checked().collect(),
        _ => Err(fail(format!("'{}' object is not iterable", type_name(value)))),
    }
}

/// Python's `len()`.
pub(super) fn length(value: &Value) -> Result<usize> {
    match value.kind() {
        ValueKind::Undefined => Ok(0),
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            value.len().map_or_else(|| items(value).map(|items| items.len()), Ok)
        }
        _ => Err(fail(format!("object of type '{}' has no len()", type_name(value)))),
    }
}

/// Python's `str()`.
pub(super) fn to_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        ValueKind::Undefined => String::new(),
        _ => {
            let mut out = String::new();
            repr_into(value, 0, &mut out);
            out
        }
    }
}

/// Python's `repr()`.
pub(super) fn repr(value: &Value) -> String {
    let mut out = String::new();
    repr_into(value, 0, &mut out);
    out
}

fn repr_into(value: &Value, depth: usize, out: &mut String) {
    if depth > MAX_NESTING {
        *out += "...";
        return;
    }
    match value.kind() {
        ValueKind::Undefined => *out += "Undefined",
        ValueKind::Number if is_float(value) => *out += &float_repr(as_float(value).unwrap_or(f64::NAN)),
        ValueKind::String => quote_into(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let items = items(value).unwrap_or_default();
            *out += if value.is_tuple() { "(" } else { "[" };
            join_repr(&items, depth, out);
            if value.is_tuple() {
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
                repr_into(key, depth + 1, out);
                *out += ": ";
                repr_into(item, depth + 1, out);
            }
            *out += "}";
        }
        ValueKind::Iterable => match value.downcast_object_ref::<View>() {
            Some(view) => {
                *out += &format!("dict_{}([", view.name);
                join_repr(&view.items, depth, out);
                *out += "])";
            }
            None => *out += "<generator object>",
        },
        _ => *out += &value.to_string(),
    }
}

fn join_repr(items: &[Value], depth: usize, out: &mut String) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            *out += ", ";
        }
        repr_into(item, depth + 1, out);
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

/// What `dict.keys()`, `.values()` and `.items()` give.
#[derive(Debug)]
pub(super) struct View {
    pub(super) name: &'static str,
    pub(super) items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }
}

/// A Python generator: true whatever it holds, and empty once it was read.
#[derive(Debug)]
pub(super) struct Generator(Mutex<Vec<Value>>);

impl Generator {
    pub(super) fn value(items: Vec<Value>) -> Value {
        Value::from_object(Generator(Mutex::new(items)))
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let mut items = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Enumerator::Values(std::mem::take(&mut *items))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// Positional and keyword arguments of a call, bound to parameter names as Python binds them.
pub(super) struct Args {
    bound: Vec<(&'static str, Value)>,
}

impl Args {
    /// Binds `args` to `names`, in order.
    pub(super) fn bind(function: &str, args: &[Value], names: &[&'static str]) -> Result<Args> {
        let (positional, keywords) = split_kwargs(args);
        if positional.len() > names.len() {
            return Err(fail(format!(
                "{function}() takes at most {} arguments ({} given)",
                names.len(),
                positional.len()
            )));
        }
        let mut bound: Vec<_> = names.iter().copied().zip(positional.iter().cloned()).collect();
        for (key, value) in keywords {
            match names.iter().find(|name| Some(**name) == key.as_str()) {
                Some(name) => bound.push((name, value)),
                None => return Err(fail(format!("{function}() got an unexpected keyword argument '{key}'"))),
            }
        }
        Ok(Args { bound })
    }

    /// The argument, if it was given.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.bound.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// The argument, unless it is missing or None.
    pub(super) fn some(&self, name: &str) -> Option<&Value> {
        self.get(name).filter(|value| !value.is_none())
    }

    pub(super) fn required(&self, name: &str) -> Result<&Value> {
        self.get(name).ok_or_else(|| fail(format!("missing required argument '{name}'")))
    }

    pub(super) fn str(&self, name: &str) -> Result<Option<&str>> {
        self.some(name).map(|value| str_of(value, name)).transpose()
    }

    pub(super) fn int(&self, name: &str) -> Result<Option<i128>> {
        let int = |value: &Value| {
            as_int(value).ok_or_else(|| fail(format!("'{name}' must be int, not {}", type_name(value))))
        };
        self.some(name).map(int).transpose()
    }

    /// Whether a flag was given and is true.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(Value::is_true)
    }
}

/// The argument as a string, or a type error.
pub(super) fn str_of<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value.as_str().ok_or_else(|| fail(format!("'{name}' must be str, not {}", type_name(value))))
}

/// Separates trailing keyword arguments.
pub(super) fn split_kwargs(args: &[Value]) -> (&[Value], Vec<(Value, Value)>) {
    match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, pairs(last)),
        _ => (args, Vec::new()),
    }
}
