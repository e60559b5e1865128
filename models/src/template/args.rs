//! Arguments of functions, filters and methods.

use minijinja::Value;
use minijinja::value::{Rest, ValueOrKwargs};

use super::values::{Result, as_int, fail, pairs, type_name};

/// The arguments after the filtered value, keywords included.
pub(super) type Given = Rest<ValueOrKwargs>;

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
