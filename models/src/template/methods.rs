//! The methods of Python's `str`, `list`, `tuple` and `dict`.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::format::str_format;
use super::ops::equal;
use super::strings;
use super::values::{
    Args, Result, View, as_int, charge, fail, is_dict, is_sequence, items, list, pairs, split_kwargs, str_of, tuple,
    type_name,
};

const STR_METHODS: [&str; 42] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
];
const MORE_STR_METHODS: [&str; 5] = ["title", "upper", "zfill", "translate", "maketrans"];
const DICT_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
const LIST_METHODS: [&str; 11] =
    ["append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"];
/// What the immutable sandbox refuses.
const MUTATING: [&str; 13] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "add",
    "discard",
];

/// Whether some type has a method of this name, so that an attribute of this name may mean the method.
pub(super) fn is_method_name(name: &str) -> bool {
    is_str_method(name) || DICT_METHODS.contains(&name) || LIST_METHODS.contains(&name)
}

fn is_str_method(name: &str) -> bool {
    STR_METHODS.contains(&name) || MORE_STR_METHODS.contains(&name)
}

/// Whether the type of `value` has this method.
pub(super) fn has_method(value: &Value, name: &str) -> bool {
    match value.kind() {
        ValueKind::String => is_str_method(name),
        ValueKind::Seq if value.is_tuple() => name == "count" || name == "index",
        ValueKind::Seq => LIST_METHODS.contains(&name),
        ValueKind::Map if is_dict(value) => DICT_METHODS.contains(&name),
        _ => false,
    }
}

/// A method that was read but not called, as in `{% if x.items %}`.
#[derive(Debug)]
pub(super) struct BoundMethod {
    receiver: Value,
    name: String,
}

impl BoundMethod {
    pub(super) fn value(receiver: Value, name: &str) -> Value {
        if MUTATING.contains(&name) {
            // The sandbox answers with an undefined value that fails when called.
            return Value::UNDEFINED;
        }
        Value::from_object(BoundMethod { receiver, name: name.to_string() })
    }
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value> {
        call(state, &self.receiver, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<built-in method {} of {} object>", self.name, type_name(&self.receiver))
    }
}

/// Calls a method of a value; `UnknownMethod` where the type has none of that name.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if !has_method(value, name) {
        if value.is_undefined() {
            return Err(Error::new(ErrorKind::UndefinedError, format!("cannot call '{name}' of an undefined value")));
        }
        return Err(Error::new(
            ErrorKind::UnknownMethod,
            format!("'{}' object has no attribute '{name}'", type_name(value)),
        ));
    }
    if MUTATING.contains(&name) {
        return Err(fail(format!("access to attribute '{name}' of '{}' object is unsafe.", type_name(value))));
    }
    match value.as_str() {
        Some(text) => str_method(state, text, name, args),
        None if is_sequence(value) => list_method(value, name, args),
        None => dict_method(value, name, args),
    }
}

fn list_method(value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if name == "copy" {
        return items(value).map(list);
    }
    let args = Args::bind(name, args, &["value"])?;
    let wanted = args.required("value")?;
    let items = items(value)?;
    let mut matches = items.iter().enumerate().filter(|(_, item)| equal(item, wanted));
    match name {
        "count" => Ok(Value::from(matches.count())),
        _ => match matches.next() {
            Some((index, _)) => Ok(Value::from(index)),
            None => Err(fail(format!("{wanted} is not in list"))),
        },
    }
}

fn dict_method(value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    let view = |name, items| Value::from_object(View { name, items });
    match name {
        "get" => {
            let args = Args::bind(name, args, &["key", "default"])?;
            let found = value.as_object().and_then(|object| args.get("key").and_then(|key| object.get_value(key)));
            args.required("key")?;
            Ok(found.unwrap_or_else(|| args.get("default").cloned().unwrap_or(Value::from(()))))
        }
        "copy" => Ok(value.clone()),
        "keys" => Ok(view("keys", pairs(value).into_iter().map(|(key, _)| key).collect())),
        "values" => Ok(view("values", pairs(value).into_iter().map(|(_, item)| item).collect())),
        "items" => Ok(view("items", pairs(value).into_iter().map(|(key, item)| tuple(vec![key, item])).collect())),
        _ => Err(fail(format!("dict.{name} is not supported"))),
    }
}

fn str_method(state: &mut State<'_, '_>, text: &str, name: &str, args: &[Value]) -> Result<Value> {
    charge(state, text.len())?;
    if let Some(answer) = strings::predicate(text, name) {
        Args::bind(name, args, &[])?;
        return Ok(Value::from(answer));
    }
    if let Some(changed) = strings::change_case(text, name) {
        Args::bind(name, args, &[])?;
        return Ok(Value::from(changed));
    }
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let args = Args::bind(name, args, &["chars"])?;
            Ok(Value::from(strings::strip(text, args.str("chars")?, name != "rstrip", name != "lstrip")))
        }
        "split" | "rsplit" => {
            let args = Args::bind(name, args, &["sep", "maxsplit"])?;
            strings::split(text, args.str("sep")?, args.int("maxsplit")?, name == "rsplit").map(strings::list_of)
        }
        "splitlines" => {
            let args = Args::bind(name, args, &["keepends"])?;
            Ok(strings::list_of(strings::split_lines(text, args.flag("keepends"))))
        }
        "partition" | "rpartition" => {
            let args = Args::bind(name, args, &["sep"])?;
            strings::partition(text, str_of(args.required("sep")?, "sep")?, name == "rpartition")
        }
        "startswith" | "endswith" => affix(text, name, args),
        "removeprefix" | "removesuffix" => {
            let args = Args::bind(name, args, &["affix"])?;
            let part = str_of(args.required("affix")?, "affix")?;
            let cut = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            Ok(Value::from(cut.unwrap_or(text)))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, args),
        "replace" => {
            let args = Args::bind(name, args, &["old", "new", "count"])?;
            let (old, new) = (str_of(args.required("old")?, "old")?, str_of(args.required("new")?, "new")?);
            strings::replace(state, text, old, new, args.int("count")?).map(Value::from)
        }
        "join" => {
            let args = Args::bind(name, args, &["iterable"])?;
            join(state, text, args.required("iterable")?)
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(state, text, name, args),
        "expandtabs" => {
            let args = Args::bind(name, args, &["tabsize"])?;
            strings::expand_tabs(state, text, args.int("tabsize")?.unwrap_or(8)).map(Value::from)
        }
        "format" => {
            let (positional, keywords) = split_kwargs(args);
            let formatted = str_format(text, positional, &keywords)?;
            charge(state, formatted.len())?;
            Ok(Value::from(formatted))
        }
        "format_map" => {
            let args = Args::bind(name, args, &["mapping"])?;
            Ok(Value::from(str_format(text, &[], &pairs(args.required("mapping")?))?))
        }
        "encode" => Ok(Value::from_bytes(text.as_bytes().to_vec())),
        _ => Err(fail(format!("str.{name} is not supported"))),
    }
}

/// `startswith` and `endswith`, with a string or a tuple of strings.
fn affix(text: &str, name: &str, args: &[Value]) -> Result<Value> {
    let args = Args::bind(name, args, &["affix", "start", "end"])?;
    let (window, _) = strings::window(text, args.int("start")?, args.int("end")?);
    let wanted = args.required("affix")?;
    let holds = |part: &str| if name == "startswith" { window.starts_with(part) } else { window.ends_with(part) };
    let type_error = || fail(format!("{name} first arg must be str or a tuple of str, not {}", type_name(wanted)));
    if let Some(part) = wanted.as_str() {
        return Ok(Value::from(holds(part)));
    }
    if !wanted.is_tuple() {
        return Err(type_error());
    }
    for part in items(wanted)? {
        if holds(part.as_str().ok_or_else(type_error)?) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

/// `find`, `index` and `count`, in characters.
fn search(text: &str, name: &str, args: &[Value]) -> Result<Value> {
    let args = Args::bind(name, args, &["sub", "start", "end"])?;
    let part = str_of(args.required("sub")?, "sub")?;
    let (window, skipped) = strings::window(text, args.int("start")?, args.int("end")?);
    if name == "count" {
        return Ok(Value::from(window.matches(part).count()));
    }
    let found = if name.starts_with('r') { window.rfind(part) } else { window.find(part) };
    match found {
        Some(at) => Ok(Value::from(skipped + window[..at].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(fail("substring not found")),
    }
}

fn join(state: &mut State<'_, '_>, separator: &str, values: &Value) -> Result<Value> {
    let mut out = String::new();
    for (i, item) in items(values)?.iter().enumerate() {
        let text = item
            .as_str()
            .ok_or_else(|| fail(format!("sequence item {i}: expected str instance, {} found", type_name(item))))?;
        charge(state, separator.len() + text.len())?;
        if i > 0 {
            out += separator;
        }
        out += text;
    }
    Ok(Value::from(out))
}

fn pad(state: &mut State<'_, '_>, text: &str, name: &str, args: &[Value]) -> Result<Value> {
    let args = Args::bind(name, args, &["width", "fillchar"])?;
    let width = as_int(args.required("width")?).ok_or_else(|| fail("'width' must be int"))?;
    let mut fill_chars = args.str("fillchar")?.unwrap_or(" ").chars();
    let (Some(mut fill), None) = (fill_chars.next(), fill_chars.next()) else {
        return Err(fail("The fill character must be exactly one character long"));
    };
    let length = text.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    charge(state, missing.saturating_mul(fill.len_utf8()))?;
    let (mut before, mut sign, mut rest) = (0, "", text);
    match name {
        "rjust" => before = missing,
        "zfill" => {
            fill = '0';
            before = missing;
            (sign, rest) = text.split_at(usize::from(text.starts_with(['+', '-'])));
        }
        // Python puts the odd character left when the width is odd.
        "center" => before = missing / 2 + (missing & width.max(0) as usize & 1),
        _ => {}
    }
    let run = |n: usize| fill.to_string().repeat(n);
    Ok(Value::from(format!("{sign}{}{rest}{}", run(before), run(missing - before))))
}
