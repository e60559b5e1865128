//! The filters of jinja2 on text and numbers, as Python computes them.

use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::args::{Args, Given, split_kwargs, str_of};
use super::budget;
use super::containers::{dict, tuple};
use super::format::percent;
use super::json::tojson;
use super::methods;
use super::ops::int;
use super::strings;
use super::values::{Result, as_float, as_int, fail, is_float, repr, text, to_str, type_name};

/// Makes the filters of text and numbers known to the environment.
pub(super) fn register(env: &mut Environment<'_>) {
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: Value| text(&value));
    env.add_filter("upper", |value: Value| text(&value).map(|text| text.to_uppercase()));
    env.add_filter("lower", |value: Value| text(&value).map(|text| text.to_lowercase()));
    env.add_filter("capitalize", |value: Value| text(&value).map(|text| strings::capitalize(&text)));
    env.add_filter("title", |value: Value| text(&value).map(|text| title(&text)));
    env.add_filter("trim", trim);
    env.add_filter("replace", replace);
    env.add_filter("indent", indent);
    env.add_filter("truncate", truncate);
    env.add_filter("wordcount", |value: Value| text(&value).map(|text| word_count(&text)));
    env.add_filter("center", center);
    env.add_filter("format", format);
    // Text is never escaped here, so there is nothing to mark.
    env.add_filter("urlencode", |value: Value| text(&value).map(|text| url_encode(&text)));
    env.add_filter("pprint", |value: Value| repr(&value));
    env.add_filter("safe", |value: Value| text(&value));
    register_numbers(env);
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

fn replace(value: Value, args: Given) -> Result<String> {
    let args = Args::bind("replace", &args.into_values(), &["old", "new", "count"])?;
    let (old, new) = (to_str(args.required("old")?), to_str(args.required("new")?));
    strings::replace(&to_str(&value), &old, &new, args.int("count")?)
}

fn indent(value: Value, args: Given) -> Result<String> {
    let args = Args::bind("indent", &args.into_values(), &["width", "first", "blank"])?;
    let text = str_of(&value, "indent")?.to_string() + "\n";
    let lines = strings::split_lines(&text, false);
    let margin = match args.get("width") {
        None => "    ".to_string(),
        Some(width) => match (width.as_str(), as_int(width)) {
            (Some(text), _) => text.to_string(),
            (None, Some(n)) => {
                let n = usize::try_from(n).unwrap_or(0);
                budget::bytes(n)?;
                " ".repeat(n)
            }
            _ => return Err(fail("the width of an indent must be a number or a string")),
        },
    };
    budget::bytes(text.len() + margin.len().saturating_mul(lines.len()))?;
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

fn format(value: Value, args: Given) -> Result<String> {
    let args = args.into_values();
    let (positional, keywords) = split_kwargs(&args);
    let values = if keywords.is_empty() { tuple(positional.to_vec())? } else { dict(keywords)? };
    percent(&to_str(&value), &values)
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
    budget::read(&value)?;
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
    budget::read(&value)?;
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
