//! The filters and tests of jinja2 where minijinja's own differ from Python's.

use std::cmp::Ordering;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::format::percent;
use super::json::tojson;
use super::methods::{self, BoundMethod, has_method};
use super::ops::{compare, contains, equal, int, item, ordered};
use super::strings;
use super::values::{
    Args, Generator, Result, as_float, as_int, charge, dict, fail, is_dict, is_float, is_sequence, items, length, list,
    pairs, repr, split_kwargs, str_of, to_str, tuple, type_name,
};

/// The arguments after the filtered value, keywords included.
pub(super) type Given = Rest<ValueOrKwargs>;

/// Makes the filters and tests known to the environment.
pub(super) fn register(env: &mut Environment<'_>) {
    register_text(env);
    register_numbers(env);
    register_sequences(env);
    register_tests(env);
}

fn register_text(env: &mut Environment<'_>) {
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: Value| to_str(&value));
    env.add_filter("upper", |value: Value| to_str(&value).to_uppercase());
    env.add_filter("lower", |value: Value| to_str(&value).to_lowercase());
    env.add_filter("capitalize", |value: Value| strings::capitalize(&to_str(&value)));
    env.add_filter("title", |value: Value| title(&to_str(&value)));
    env.add_filter("trim", trim);
    env.add_filter("replace", replace);
    env.add_filter("indent", indent);
    env.add_filter("truncate", truncate);
    env.add_filter("wordcount", |value: Value| word_count(&to_str(&value)));
    env.add_filter("center", center);
    env.add_filter("format", format);
    env.add_filter("join", join);
    // Text is never escaped here, so there is nothing to mark.
    env.add_filter("urlencode", |value: Value| url_encode(&to_str(&value)));
    env.add_filter("pprint", |value: Value| repr(&value));
    env.add_filter("safe", |value: Value| to_str(&value));
}

fn register_numbers(env: &mut Environment<'_>) {
    env.add_filter("int", to_int);
    env.add_filter("float", to_float);
    env.add_filter("abs", |value: Value| match (as_int(&value), as_float(&value)) {
        (Some(n), _) => Ok(int(n.abs())),
        (None, Some(x)) => Ok(Value::from(x.abs())),
        _ => Err(fail(format!("bad operand type for abs(): '{}'", type_name(&value)))),
    });
    env.add_filter("round", round);
    env.add_filter("sum", sum);
}

fn register_sequences(env: &mut Environment<'_>) {
    for name in ["default", "d"] {
        env.add_filter(name, |value: Value, args: Given| {
            let args = Args::bind("default", &args.into_values(), &["default_value", "boolean"])?;
            let missing = value.is_undefined() || (args.flag("boolean") && !value.is_true());
            Ok::<_, Error>(if missing { args.get("default_value").cloned().unwrap_or(Value::from("")) } else { value })
        });
    }
    env.add_filter("length", |value: Value| length(&value));
    env.add_filter("count", |value: Value| length(&value));
    env.add_filter("list", |value: Value| items(&value).map(list));
    env.add_filter("first", |value: Value| items(&value).map(|all| all.into_iter().next().unwrap_or_default()));
    env.add_filter("last", |value: Value| items(&value).map(|all| all.into_iter().next_back().unwrap_or_default()));
    env.add_filter("reverse", reverse);
    env.add_filter("items", dict_items);
    env.add_filter("dictsort", dictsort);
    env.add_filter("sort", sort);
    env.add_filter("unique", unique);
    env.add_filter("min", |value: Value, args: Given| extreme(&value, &args.into_values(), Ordering::Less));
    env.add_filter("max", |value: Value, args: Given| extreme(&value, &args.into_values(), Ordering::Greater));
    env.add_filter("attr", |value: Value, name: &str| {
        if is_dict(&value) || is_sequence(&value) || value.kind() == ValueKind::String {
            return Ok(if has_method(&value, name) { BoundMethod::value(value, name) } else { Value::UNDEFINED });
        }
        value.get_attr(name)
    });
    env.add_filter("map", map);
    env.add_filter("select", |state: &mut State<'_, '_>, value: Value, args: Given| {
        select(state, &value, &args.into_values(), false, true)
    });
    env.add_filter("reject", |state: &mut State<'_, '_>, value: Value, args: Given| {
        select(state, &value, &args.into_values(), false, false)
    });
    env.add_filter("selectattr", |state: &mut State<'_, '_>, value: Value, args: Given| {
        select(state, &value, &args.into_values(), true, true)
    });
    env.add_filter("rejectattr", |state: &mut State<'_, '_>, value: Value, args: Given| {
        select(state, &value, &args.into_values(), true, false)
    });
}

fn register_tests(env: &mut Environment<'_>) {
    env.add_test("sequence", |value: Value| {
        value.is_undefined() || is_dict(&value) || is_sequence(&value) || value.kind() == ValueKind::String
    });
    env.add_test("iterable", |value: Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
    });
    env.add_test("mapping", |value: Value| is_dict(&value));
    env.add_test("string", |value: Value| value.kind() == ValueKind::String);
    env.add_test("number", |value: Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("integer", |value: Value| value.is_integer());
    env.add_test("float", |value: Value| is_float(&value));
    env.add_test("callable", |value: Value| value.kind() == ValueKind::Plain);
    env.add_test("lower", |value: Value| strings::predicate(&to_str(&value), "islower"));
    env.add_test("upper", |value: Value| strings::predicate(&to_str(&value), "isupper"));
    env.add_test("in", |value: Value, container: Value| contains(&container, &value));
    for name in ["==", "eq", "equalto"] {
        env.add_test(name, |a: Value, b: Value| equal(&a, &b));
    }
    for name in ["!=", "ne"] {
        env.add_test(name, |a: Value, b: Value| !equal(&a, &b));
    }
    let comparisons: [(&[&str], fn(Ordering) -> bool); 4] = [
        (&["<", "lt", "lessthan"], Ordering::is_lt),
        (&["<=", "le"], Ordering::is_le),
        (&[">", "gt", "greaterthan"], Ordering::is_gt),
        (&[">=", "ge"], Ordering::is_ge),
    ];
    for (names, holds) in comparisons {
        for name in names {
            env.add_test(*name, move |a: Value, b: Value| ordered(names[0], &a, &b, holds));
        }
    }
}

/// A capital at the start of each word; words end at spaces, dashes and brackets.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        start = c.is_whitespace() || "-({[<".contains(c);
    }
    out
}

fn trim(value: Value, args: Given) -> Result<String> {
    let args = Args::bind("trim", &args.into_values(), &["chars"])?;
    Ok(strings::strip(&to_str(&value), args.str("chars")?, true, true).to_string())
}

fn replace(state: &mut State<'_, '_>, value: Value, args: Given) -> Result<String> {
    let args = Args::bind("replace", &args.into_values(), &["old", "new", "count"])?;
    let (old, new) = (to_str(args.required("old")?), to_str(args.required("new")?));
    strings::replace(state, &to_str(&value), &old, &new, args.int("count")?)
}

fn indent(state: &mut State<'_, '_>, value: Value, args: Given) -> Result<String> {
    let args = Args::bind("indent", &args.into_values(), &["width", "first", "blank"])?;
    let text = str_of(&value, "indent")?.to_string() + "\n";
    let lines = strings::split_lines(&text, false);
    let margin = match args.get("width") {
        None => "    ".to_string(),
        Some(width) => match (width.as_str(), as_int(width)) {
            (Some(text), _) => text.to_string(),
            (None, Some(n)) => {
                let n = usize::try_from(n).unwrap_or(0);
                charge(state, n)?;
                " ".repeat(n)
            }
            _ => return Err(fail("the width of an indent must be a number or a string")),
        },
    };
    charge(state, text.len() + margin.len().saturating_mul(lines.len()))?;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let indented = if i == 0 { args.flag("first") } else { args.flag("blank") || !line.is_empty() };
        if i > 0 {
            out.push('\n');
        }
        if indented {
            out += &margin;
        }
        out += line;
    }
    Ok(out)
}

fn truncate(value: Value, args: Given) -> Result<String> {
    let args = Args::bind("truncate", &args.into_values(), &["length", "killwords", "end", "leeway"])?;
    let text = to_str(&value);
    let end = args.str("end")?.unwrap_or("...");
    let limit = usize::try_from(args.int("length")?.unwrap_or(255)).unwrap_or(0);
    let leeway = usize::try_from(args.int("leeway")?.unwrap_or(5)).unwrap_or(0);
    let kept =
        limit.checked_sub(end.chars().count()).ok_or_else(|| fail("truncate: the end is longer than the length"))?;
    if text.chars().count() <= limit.saturating_add(leeway) {
        return Ok(text);
    }
    let cut: String = text.chars().take(kept).collect();
    let cut = match cut.rsplit_once(' ') {
        Some((before, _)) if !args.flag("killwords") => before.to_string(),
        _ => cut,
    };
    Ok(cut + end)
}

fn word_count(text: &str) -> usize {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
}

/// Percent-encodes all but letters, digits and `_.-~/`.
fn url_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

fn center(state: &mut State<'_, '_>, value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("center", &args.into_values(), &["width"])?;
    let width = args.int("width")?.unwrap_or(80);
    methods::call(state, &Value::from(to_str(&value)), "center", &[int(width)])
}

fn format(state: &mut State<'_, '_>, value: Value, args: Given) -> Result<String> {
    let args = args.into_values();
    let (positional, keywords) = split_kwargs(&args);
    let values = if keywords.is_empty() { tuple(positional.to_vec()) } else { dict(keywords.into_iter()) };
    let text = percent(&to_str(&value), &values)?;
    charge(state, text.len())?;
    Ok(text)
}

fn join(state: &mut State<'_, '_>, value: Value, args: Given) -> Result<String> {
    let args = Args::bind("join", &args.into_values(), &["d", "attribute"])?;
    let separator = args.get("d").map(to_str).unwrap_or_default();
    let mut out = String::new();
    for (i, part) in items(&value)?.iter().enumerate() {
        let text = match args.some("attribute") {
            Some(path) => to_str(&path_item(part, path)?),
            None => to_str(part),
        };
        charge(state, separator.len() + text.len())?;
        if i > 0 {
            out += &separator;
        }
        out += &text;
    }
    Ok(out)
}

fn to_int(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("int", &args.into_values(), &["default", "base"])?;
    let default = || args.get("default").cloned().unwrap_or(Value::from(0));
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value has no integer"));
    }
    if let Some(n) = as_int(&value) {
        return Ok(int(n));
    }
    let truncated = |x: f64| if x.is_finite() { int(x.trunc() as i128) } else { default() };
    if let Some(x) = as_float(&value) {
        return Ok(truncated(x));
    }
    let Some(text) = value.as_str() else { return Ok(default()) };
    let base = u32::try_from(args.int("base")?.unwrap_or(10)).unwrap_or(10);
    let text = text.trim().replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(&text)),
    };
    let lower = digits.to_lowercase();
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    if (2..=36).contains(&base)
        && let Ok(n) = i128::from_str_radix(&format!("{sign}{digits}"), base)
    {
        return Ok(int(n));
    }
    Ok(parse_float(&text).map_or_else(default, truncated))
}

/// Python's `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}

fn to_float(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("float", &args.into_values(), &["default"])?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value has no number"));
    }
    let x = as_float(&value).or_else(|| value.as_str().and_then(parse_float));
    Ok(x.map_or_else(|| args.get("default").cloned().unwrap_or(Value::from(0.0)), Value::from))
}

fn round(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("round", &args.into_values(), &["precision", "method"])?;
    let digits = args.int("precision")?.unwrap_or(0).clamp(-300, 300) as i32;
    let method = args.str("method")?.unwrap_or("common");
    let x = as_float(&value).ok_or_else(|| fail(format!("cannot round '{}'", type_name(&value))))?;
    let scale = 10f64.powi(digits);
    match method {
        "common" if !is_float(&value) && digits >= 0 => Ok(value),
        // Decimal formatting rounds the exact value, half to even, as Python does.
        "common" if digits >= 0 => Ok(Value::from(parse_float(&format!("{x:.*}", digits as usize)).unwrap_or(x))),
        "common" => {
            let rounded = (x * scale).round_ties_even() / scale;
            Ok(if is_float(&value) { Value::from(rounded) } else { int(rounded as i128) })
        }
        "ceil" => Ok(Value::from((x * scale).ceil() / scale)),
        "floor" => Ok(Value::from((x * scale).floor() / scale)),
        _ => Err(fail("method must be common, ceil or floor")),
    }
}

fn sum(state: &mut State<'_, '_>, value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("sum", &args.into_values(), &["attribute", "start"])?;
    let add = state.lookup("__add").unwrap_or_default();
    let mut total = args.get("start").cloned().unwrap_or(Value::from(0));
    for part in items(&value)? {
        let part = match args.some("attribute") {
            Some(path) => path_item(&part, path)?,
            None => part,
        };
        total = add.call(state, &[total, part])?;
    }
    Ok(total)
}

/// `value[a][b]` for the path `a.b`; numbers index.
fn path_item(value: &Value, path: &Value) -> Result<Value> {
    let Some(text) = path.as_str() else { return item(value, path) };
    text.split('.').try_fold(value.clone(), |value, part| {
        item(&value, &part.parse::<i64>().map_or_else(|_| Value::from(part), Value::from))
    })
}

fn reverse(value: Value) -> Result<Value> {
    if let Some(text) = value.as_str() {
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    items(&value).map(|all| Generator::value(all.into_iter().rev().collect()))
}

fn dict_items(value: Value) -> Result<Value> {
    if !value.is_undefined() && !is_dict(&value) {
        return Err(fail("Can only get item pairs from a mapping."));
    }
    Ok(Generator::value(pairs(&value).into_iter().map(|(key, item)| tuple(vec![key, item])).collect()))
}

/// What strings are compared by: lower case, unless case matters.
fn fold(value: &Value, case_sensitive: bool) -> Value {
    match value.as_str() {
        Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
        _ => value.clone(),
    }
}

/// Sorts by keys, stable; keys without an order are an error.
fn sort_by<T>(all: &mut [(Value, T)], reverse: bool) -> Result<()> {
    let mut failed = None;
    all.sort_by(|(a, _), (b, _)| {
        let order = compare("<", a, b).unwrap_or_else(|error| {
            failed = Some(error);
            None
        });
        let order = order.unwrap_or(Ordering::Equal);
        if reverse { order.reverse() } else { order }
    });
    failed.map_or(Ok(()), Err)
}

fn dictsort(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("dictsort", &args.into_values(), &["case_sensitive", "by", "reverse"])?;
    if !is_dict(&value) {
        return Err(fail(format!("'{}' object has no attribute 'items'", type_name(&value))));
    }
    let by_value = match args.str("by")?.unwrap_or("key") {
        "key" => false,
        "value" => true,
        _ => return Err(fail("You can only sort by either \"key\" or \"value\"")),
    };
    let case = args.flag("case_sensitive");
    let keyed = |(key, item): (Value, Value)| (fold(if by_value { &item } else { &key }, case), tuple(vec![key, item]));
    let mut all: Vec<_> = pairs(&value).into_iter().map(keyed).collect();
    sort_by(&mut all, args.flag("reverse"))?;
    Ok(list(all.into_iter().map(|(_, pair)| pair).collect()))
}

fn sort(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("sort", &args.into_values(), &["reverse", "case_sensitive", "attribute"])?;
    let mut all = Vec::new();
    for part in items(&value)? {
        let key = match args.some("attribute") {
            Some(paths) => {
                let paths =
                    paths.as_str().map_or_else(|| vec![to_str(paths)], |p| p.split(',').map(str::to_string).collect());
                let parts: Result<Vec<_>> = paths
                    .into_iter()
                    .map(|path| Ok(fold(&path_item(&part, &Value::from(path))?, args.flag("case_sensitive"))))
                    .collect();
                list(parts?)
            }
            None => fold(&part, args.flag("case_sensitive")),
        };
        all.push((key, part));
    }
    sort_by(&mut all, args.flag("reverse"))?;
    Ok(list(all.into_iter().map(|(_, part)| part).collect()))
}

fn unique(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("unique", &args.into_values(), &["case_sensitive", "attribute"])?;
    let mut seen: Vec<Value> = Vec::new();
    let mut kept = Vec::new();
    for part in items(&value)? {
        let key = match args.some("attribute") {
            Some(path) => path_item(&part, path)?,
            None => part.clone(),
        };
        let key = fold(&key, args.flag("case_sensitive"));
        if !seen.iter().any(|old| equal(old, &key)) {
            seen.push(key);
            kept.push(part);
        }
    }
    Ok(Generator::value(kept))
}

fn extreme(value: &Value, args: &[Value], wanted: Ordering) -> Result<Value> {
    let args = Args::bind("min/max", args, &["case_sensitive", "attribute"])?;
    let mut best: Option<(Value, Value)> = None;
    for part in items(value)? {
        let key = match args.some("attribute") {
            Some(path) => path_item(&part, path)?,
            None => part.clone(),
        };
        let key = fold(&key, args.flag("case_sensitive"));
        let better = match &best {
            Some((old, _)) => compare("<", &key, old)? == Some(wanted),
            None => true,
        };
        if better {
            best = Some((key, part));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, part)| part))
}

fn map(state: &mut State<'_, '_>, value: Value, args: Given) -> Result<Value> {
    let args = args.into_values();
    let (positional, keywords) = split_kwargs(&args);
    let keyword = |name: &str| keywords.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value);
    let mut mapped = Vec::new();
    for part in items(&value)? {
        mapped.push(match (positional.split_first(), keyword("attribute")) {
            (None, Some(path)) => match (path_item(&part, path)?, keyword("default")) {
                (found, Some(default)) if found.is_undefined() => default.clone(),
                (found, _) => found,
            },
            (Some((filter, _)), _) => {
                let mut call = vec![part];
                call.extend_from_slice(&args[1..]);
                state.apply_filter(str_of(filter, "filter")?, &call)?
            }
            (None, None) => return Err(fail("map requires a filter argument")),
        });
    }
    Ok(Generator::value(mapped))
}

/// `select`, `reject` and their forms that look at an attribute.
fn select(state: &mut State<'_, '_>, value: &Value, args: &[Value], by_attribute: bool, keep: bool) -> Result<Value> {
    let (path, args) = match args.split_first() {
        Some((path, rest)) if by_attribute => (Some(path), rest),
        None if by_attribute => return Err(fail("Missing parameter for attribute name")),
        _ => (None, args),
    };
    let mut kept = Vec::new();
    for part in items(value)? {
        let looked_at = match path {
            Some(path) => path_item(&part, path)?,
            None => part.clone(),
        };
        let holds = match args.split_first() {
            Some((test, rest)) => {
                let mut call = vec![looked_at];
                call.extend_from_slice(rest);
                state.perform_test(str_of(test, "test")?, &call)?
            }
            None => looked_at.is_true(),
        };
        if holds == keep {
            kept.push(part);
        }
    }
    Ok(Generator::value(kept))
}
