//! The `tojson` filter: Python's `json.dumps` with the options that transformers passes on.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::args::{Args, Given, str_of};
use super::budget;
use super::containers::{is_dict, is_sequence};
use super::ops::compare;
use super::values::{Result, as_float, as_int, fail, float_repr, is_float, items, pairs, to_str, type_name};

/// `value|tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
pub(super) fn tojson(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("tojson", &args.into_values(), &["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = args.some("indent").map(indent_of).transpose()?;
    let (item_separator, key_separator) = match args.some("separators") {
        Some(given) => match items(given)?.as_slice() {
            [item, key] => (str_of(item, "separators")?.to_string(), str_of(key, "separators")?.to_string()),
            _ => return Err(fail("separators must be a pair of strings")),
        },
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut writer = Writer {
        ascii: args.flag("ensure_ascii"),
        sorted: args.flag("sort_keys"),
        indent,
        item_separator,
        key_separator,
        out: String::new(),
        charged: 0,
    };
    writer.value(&value, 0)?;
    Ok(Value::from(writer.out))
}

/// One level of indentation, from a number of spaces or a string.
fn indent_of(value: &Value) -> Result<String> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_string());
    }
    let n = as_int(value).ok_or_else(|| fail("indent must be a number or a string"))?;
    usize::try_from(n.max(0))
        .ok()
        .filter(|n| *n <= 1000)
        .map(|n| " ".repeat(n))
        .ok_or_else(|| fail("indent is too large"))
}

struct Writer {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    out: String,
    /// Bytes of `out` already counted against the budget.
    charged: usize,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        budget::bytes(self.out.len() - self.charged)?;
        budget::items(1)?;
        self.charged = self.out.len();
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq if is_sequence(value) => {
                let items = items(value)?;
                self.out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.value(item, depth + 1)?;
                }
                self.close(items.is_empty(), depth, ']');
            }
            ValueKind::Map if is_dict(value) => {
                let mut pairs = pairs(value);
                if self.sorted {
                    sort_by_key(&mut pairs)?;
                }
                self.out.push('{');
                for (i, (key, item)) in pairs.iter().enumerate() {
                    self.separate(i, depth + 1);
                    let key = key_text(key)?;
                    self.string(&key);
                    self.out += &self.key_separator;
                    self.value(item, depth + 1)?;
                }
                self.close(pairs.is_empty(), depth, '}');
            }
            _ => self.out += &scalar(value)?,
        }
        Ok(())
    }

    fn separate(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out += &self.item_separator;
        }
        self.new_line(depth);
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out += &indent.repeat(depth);
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out += "\\\"",
                '\\' => self.out += "\\\\",
                '\n' => self.out += "\\n",
                '\r' => self.out += "\\r",
                '\t' => self.out += "\\t",
                '\x08' => self.out += "\\b",
                '\x0c' => self.out += "\\f",
                c if c < ' ' || (self.ascii && !matches!(c, ' '..='~')) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out += &format!("\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn scalar(value: &Value) -> Result<String> {
    match value.kind() {
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number if is_float(value) => {
            let x = as_float(value).unwrap_or(f64::NAN);
            Ok(match x {
                x if x.is_nan() => "NaN".into(),
                x if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
                x => float_repr(x),
            })
        }
        ValueKind::Number => Ok(to_str(value)),
        _ => Err(fail(format!("Object of type {} is not JSON serializable", type_name(value)))),
    }
}

fn key_text(key: &Value) -> Result<String> {
    match key.as_str() {
        Some(text) => Ok(text.to_string()),
        None => scalar(key).map_err(|_| fail("keys must be str, int, float, bool or None")),
    }
}

fn sort_by_key(pairs: &mut [(Value, Value)]) -> Result<()> {
    let mut failed = None;
    pairs.sort_by(|(a, _), (b, _)| match compare("<", a, b) {
        Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
        Err(error) => {
            failed = Some(error);
            std::cmp::Ordering::Equal
        }
    });
    failed.map_or(Ok(()), Err)
}
