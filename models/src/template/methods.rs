//! The methods of Python's `str`, `list`, `tuple` and `dict`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::args::{Args, split_kwargs, str_of};
use super::budget;
use super::containers::{is_dict, is_sequence, is_tuple, list, lookup, tuple, view};
use super::format::str_format;
use super::ops::equal;
use super::strings;
use super::values::{Result, as_int, fail, items, pairs, type_name};

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
        ValueKind::Seq if is_tuple(value) => name == "count" || name == "index",
        ValueKind::Seq => LIST_METHODS.contains(&name),
        ValueKind::Map if is_dict(value) => DICT_METHODS.contains(&name),
        _ => false,
    }
}

/// Whether the immutable sandbox refuses this method.
pub(super) fn is_mutating(name: &str) -> bool {
    MUTATING.contains(&name)
}

/// Calls a method of a value; `UnknownMethod` where the type has none of that name.
pub(super) fn call(_: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if !has_method(value, name) {
        if value.is_undefined() {
            return Err(Error::new(ErrorKind::UndefinedError, format!("cannot call '{name}' of an undefined value")));
        }
        return Err(Error::new(
            ErrorKind::UnknownMethod,
            format!("'{}' object has no attribute '{name}'", type_name(value)),
        ));
    }
    if is_mutating(name) {
        return Err(fail(format!("access to attribute '{name}' of '{}' object is unsafe.", type_name(value))));
    }
    budget::read(value)?;
    match value.as_str() {
        Some(text) => str_method(text, name, args),
        None if is_sequence(value) => list_method(value, name, args),
        None => dict_method(value, name, args),
    }
}

fn list_method(value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if name == "copy" {
        return items(value).and_then(list);
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

/// The pairs of a dict as tuples.
pub(super) fn tuples(dict: &Value) -> Result<Vec<Value>> {
    let pairs = pairs(dict);
    budget::items(2 * pairs.len())?;
    pairs.into_iter().map(|(key, item)| tuple(vec![key, item])).collect()
}

fn dict_method(value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    match name {
        "get" => {
            let args = Args::bind(name, args, &["key", "default"])?;
            let found = lookup(value, args.required("key")?)?;
            Ok(found.unwrap_or_else(|| args.get("default").cloned().unwrap_or(Value::from(()))))
        }
        "copy" => Ok(value.clone()),
        "keys" => view("keys", pairs(value).into_iter().map(|(key, _)| key).collect()),
        "values" => view("values", pairs(value).into_iter().map(|(_, item)| item).collect()),
        "items" => view("items", tuples(value)?),
        _ => Err(fail(format!("dict.{name} is not supported"))),
    }
}

fn str_method(text: &str, name: &str, args: &[Value]) -> Result<Value> {
    budget::bytes(text.len())?;
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
            strings::split(text, args.str("sep")?, args.int("maxsplit")?, name == "rsplit").and_then(strings::list_of)
        }
        "splitlines" => {
            let args = Args::bind(name, args, &["keepends"])?;
            strings::list_of(strings::split_lines(text, args.flag("keepends")))
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
            strings::replace(text, old, new, args.int("count")?).map(Value::from)
        }
        "join" => {
            let args = Args::bind(name, args, &["iterable"])?;
            join(text, args.required("iterable")?)
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(text, name, args),
        "expandtabs" => {
            let args = Args::bind(name, args, &["tabsize"])?;
            strings::expand_tabs(text, args.int("tabsize")?.unwrap_or(8)).map(Value::from)
        }
        "format" => {
            let (positional, keywords) = split_kwargs(args);
            let formatted = str_format(text, positional, &keywords)?;
            budget::bytes(formatted.len())?;
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
    if !is_tuple(wanted) {
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

fn join(separator: &str, values: &Value) -> Result<Value> {
    let mut out = String::new();
    for (i, item) in items(values)?.iter().enumerate() {
        let text = item
            .as_str()
            .ok_or_else(|| fail(format!("sequence item {i}: expected str instance, {} found", type_name(item))))?;
        budget::bytes(separator.len() + text.len())?;
        if i > 0 {
            out += separator;
        }
        out += text;
    }
    Ok(Value::from(out))
}

fn pad(text: &str, name: &str, args: &[Value]) -> Result<Value> {
    let args = Args::bind(name, args, &["width", "fillchar"])?;
    let width = as_int(args.required("width")?).ok_or_else(|| fail("'width' must be int"))?;
    let mut fill_chars = args.str("fillchar")?.unwrap_or(" ").chars();
    let (Some(mut fill), None) = (fill_chars.next(), fill_chars.next()) else {
        return Err(fail("The fill character must be exactly one character long"));
    };
    let length = text.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    budget::bytes(missing.saturating_mul(fill.len_utf8()))?;
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
