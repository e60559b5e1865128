//! Python's operators, as the functions that rewritten expressions call (see `rewrite`).

use std::cmp::Ordering;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::budget;
use super::containers::{
    View, bound_method, check_storable, dict, is_dict, is_sequence, is_tuple, list, list_like, lookup, tuple,
};
use super::format::percent;
use super::methods::has_method;
use super::values::{Result, as_float, as_int, fail, is_float, items, pairs, to_str, type_name};

/// Makes the operators known to the environment.
pub(super) fn register(env: &mut Environment<'_>) {
    env.add_function("__add", add);
    env.add_function("__sub", |a: Value, b: Value| arithmetic("-", &a, &b, i128::checked_sub, |a, b| a - b));
    env.add_function("__mul", mul);
    env.add_function("__div", div);
    env.add_function("__floordiv", floordiv);
    env.add_function("__mod", modulo);
    env.add_function("__pow", pow);
    env.add_function("__neg", |a: Value| sign("-", &a, -1));
    env.add_function("__pos", |a: Value| sign("+", &a, 1));
    env.add_function("__concat", concat);
    env.add_function("__float", |text: &str| text.parse::<f64>().map_err(|_| fail("bad float literal")));
    env.add_function("__eq", |a: Value, b: Value| equals(&a, &b));
    env.add_function("__lt", |a: Value, b: Value| ordered("<", &a, &b, Ordering::is_lt));
    env.add_function("__le", |a: Value, b: Value| ordered("<=", &a, &b, Ordering::is_le));
    env.add_function("__gt", |a: Value, b: Value| ordered(">", &a, &b, Ordering::is_gt));
    env.add_function("__ge", |a: Value, b: Value| ordered(">=", &a, &b, Ordering::is_ge));
    env.add_function("__chain", chain);
    env.add_function("__in", |a: Value, b: Value| contains(&b, &a));
    env.add_function("__attr", |value: Value, name: &str| attribute(&value, name));
    env.add_function("__item", |value: Value, key: Value| item(&value, &key));
    env.add_function("__slice", slice);
    env.add_function("__iter", iterable);
    env.add_function("__list", |items: Rest<Value>| list(items.0));
    env.add_function("__tuple", |items: Rest<Value>| tuple(items.0));
    env.add_function("__dict", |items: Rest<Value>| dict(items.as_chunks::<2>().0.iter().cloned().map(<(_, _)>::from)));
    env.add_function("__stored", |value: Value| check_storable(&value).map(|()| value));
}

/// An error for an operator that these types do not have; undefined operands are named as such.
fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() || b.is_undefined() {
        return Error::new(ErrorKind::UndefinedError, format!("an operand of '{op}' is undefined"));
    }
    fail(format!("unsupported operand type(s) for {op}: '{}' and '{}'", type_name(a), type_name(b)))
}

fn arithmetic(
    op: &str,
    a: &Value,
    b: &Value,
    ints: fn(i128, i128) -> Option<i128>,
    floats: fn(f64, f64) -> f64,
) -> Result<Value> {
    if let (Some(x), Some(y)) = (as_int(a), as_int(b)) {
        return ints(x, y).map(int).ok_or_else(|| fail(format!("the result of '{op}' is too large")));
    }
    match (as_float(a), as_float(b)) {
        (Some(x), Some(y)) => Ok(Value::from(floats(x, y))),
        _ => Err(unsupported(op, a, b)),
    }
}

/// An integer in its narrowest representation.
pub(super) fn int(n: i128) -> Value {
    i64::try_from(n).map_or_else(|_| Value::from(n), Value::from)
}

pub(super) fn add(a: Value, b: Value) -> Result<Value> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        budget::bytes(x.len() + y.len())?;
        return Ok(Value::from([x, y].concat()));
    }
    if is_sequence(&a) && is_sequence(&b) && is_tuple(&a) == is_tuple(&b) {
        let (mut left, right) = (items(&a)?, items(&b)?);
        budget::items(left.len() + right.len())?;
        left.extend(right);
        return list_like(&a, left);
    }
    if a.kind() == ValueKind::String && !b.is_undefined() {
        return Err(fail(format!("can only concatenate str (not \"{}\") to str", type_name(&b))));
    }
    arithmetic("+", &a, &b, i128::checked_add, |x, y| x + y)
}

fn mul(a: Value, b: Value) -> Result<Value> {
    let (value, count) = if as_int(&a).is_some() { (&b, &a) } else { (&a, &b) };
    if let Some(n) = as_int(count) {
        let n = usize::try_from(n.max(0)).unwrap_or(usize::MAX);
        if let Some(text) = value.as_str() {
            budget::bytes(text.len().saturating_mul(n))?;
            return Ok(Value::from(text.repeat(n)));
        }
        if is_sequence(value) {
            let once = items(value)?;
            budget::items(once.len().saturating_mul(n))?;
            let all: Vec<Value> = (0..n).flat_map(|_| once.iter().cloned()).collect();
            return list_like(value, all);
        }
    }
    arithmetic("*", &a, &b, i128::checked_mul, |x, y| x * y)
}

fn div(a: Value, b: Value) -> Result<Value> {
    match (as_float(&a), as_float(&b)) {
        (Some(_), Some(0.0)) => Err(fail("division by zero")),
        (Some(x), Some(y)) => Ok(Value::from(x / y)),
        _ => Err(unsupported("/", &a, &b)),
    }
}

fn floordiv(a: Value, b: Value) -> Result<Value> {
    if as_float(&b) == Some(0.0) {
        return Err(fail("division by zero"));
    }
    arithmetic(
        "//",
        &a,
        &b,
        |x, y| Some((x.checked_sub(x.checked_rem(y)?.checked_add(y)?.checked_rem(y)?)?) / y),
        |x, y| (x / y).floor(),
    )
}

pub(super) fn modulo(a: Value, b: Value) -> Result<Value> {
    if let Some(format) = a.as_str() {
        return percent(format, &b).map(Value::from);
    }
    if as_float(&b) == Some(0.0) && as_float(&a).is_some() {
        return Err(fail("division by zero"));
    }
    arithmetic("%", &a, &b, |x, y| x.checked_rem(y)?.checked_add(y)?.checked_rem(y), |x, y| x - y * (x / y).floor())
}

fn pow(a: Value, b: Value) -> Result<Value> {
    if let (Some(x), Some(y)) = (as_int(&a), as_int(&b))
        && y >= 0
    {
        let power = u32::try_from(y).ok().and_then(|y| x.checked_pow(y));
        return power.map(int).ok_or_else(|| fail("the result of '**' is too large"));
    }
    match (as_float(&a), as_float(&b)) {
        (Some(0.0), Some(y)) if y < 0.0 => Err(fail("0.0 cannot be raised to a negative power")),
        (Some(x), Some(y)) => Ok(Value::from(x.powf(y))),
        _ => Err(unsupported("**", &a, &b)),
    }
}

fn sign(op: &str, value: &Value, factor: i128) -> Result<Value> {
    if let Some(n) = as_int(value) {
        return Ok(int(n.saturating_mul(factor)));
    }
    match as_float(value) {
        Some(x) => Ok(Value::from(if factor < 0 { -x } else { x })),
        None => Err(fail(format!("bad operand type for unary {op}: '{}'", type_name(value)))),
    }
}

fn concat(parts: Rest<Value>) -> Result<Value> {
    let mut out = String::new();
    for part in parts.iter() {
        match part.as_str() {
            Some(text) => {
                budget::bytes(text.len())?;
                out += text;
            }
            None => {
                let text = to_str(part);
                budget::bytes(text.len())?;
                out += &text;
            }
        }
    }
    Ok(Value::from(out))
}

/// As [`equal`]; an error where the budget did not suffice to tell.
pub(super) fn equals(a: &Value, b: &Value) -> Result<bool> {
    let equal = equal(a, b);
    budget::bytes(0).map(|()| equal)
}

/// Python's `==`: numbers and bools by value, tuples never equal lists.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    if budget::items(1).is_err() {
        return false;
    }
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        return x.len() == y.len() && budget::read(a).is_ok() && x == y;
    }
    if is_sequence(a) && is_sequence(b) {
        let (Ok(x), Ok(y)) = (items(a), items(b)) else { return false };
        return is_tuple(a) == is_tuple(b) && x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| equal(x, y));
    }
    if is_dict(a) && is_dict(b) {
        let same = |(key, x): &(Value, Value)| matches!(lookup(b, key), Ok(Some(y)) if equal(x, &y));
        return a.len() == b.len() && pairs(a).iter().all(same);
    }
    a == b
}

/// The order of two values, where Python has one.
pub(super) fn compare(op: &str, a: &Value, b: &Value) -> Result<Option<Ordering>> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        budget::read(if x.len() < y.len() { a } else { b })?;
        return Ok(Some(x.cmp(y)));
    }
    if let (Some(x), Some(y)) = (as_int(a), as_int(b)) {
        return Ok(Some(x.cmp(&y)));
    }
    if let (Some(x), Some(y)) = (as_float(a), as_float(b)) {
        return Ok(x.partial_cmp(&y));
    }
    if is_sequence(a) && is_sequence(b) && is_tuple(a) == is_tuple(b) {
        let (x, y) = (items(a)?, items(b)?);
        return match x.iter().zip(&y).find(|(x, y)| !equal(x, y)) {
            Some((x, y)) => compare(op, x, y),
            None => Ok(Some(x.len().cmp(&y.len()))),
        };
    }
    if a.is_undefined() || b.is_undefined() {
        return Err(unsupported(op, a, b));
    }
    let (a, b) = (type_name(a), type_name(b));
    Err(fail(format!("'{op}' not supported between instances of '{a}' and '{b}'")))
}

pub(super) fn ordered(op: &str, a: &Value, b: &Value, holds: fn(Ordering) -> bool) -> Result<bool> {
    Ok(compare(op, a, b)?.is_some_and(holds))
}

/// `a < b < c`, as the first operand and then an operator, whether it is negated, and an operand each.
fn chain(state: &mut State<'_, '_>, parts: Rest<Value>) -> Result<bool> {
    let Some((first, rest)) = parts.split_first() else { return Ok(true) };
    let mut left = first;
    for link in rest.as_chunks::<3>().0 {
        let [operator, negated, right] = link;
        let function = state.lookup(operator.as_str().unwrap_or_default()).unwrap_or_default();
        if function.call(state, &[left.clone(), right.clone()])?.is_true() == negated.is_true() {
            return Ok(false);
        }
        left = right;
    }
    Ok(true)
}

/// Python's `value in container`.
pub(super) fn contains(container: &Value, value: &Value) -> Result<bool> {
    if let Some(text) = container.as_str() {
        let part = value
            .as_str()
            .ok_or_else(|| fail(format!("'in <string>' requires string as left operand, not {}", type_name(value))))?;
        budget::read(container)?;
        return Ok(text.contains(part));
    }
    match container.kind() {
        ValueKind::Map => Ok(lookup(container, value)?.is_some()),
        ValueKind::Undefined | ValueKind::Seq | ValueKind::Iterable => {
            let found = items(container)?.iter().any(|item| equal(item, value));
            budget::bytes(0).map(|()| found)
        }
        _ => Err(fail(format!("argument of type '{}' is not iterable", type_name(container)))),
    }
}

/// `value.name`, where `name` may be a method of the value's type.
pub(super) fn attribute(value: &Value, name: &str) -> Result<Value> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, format!("cannot read '{name}' of an undefined value")));
    }
    if has_method(value, name) {
        return Ok(bound_method(value, name));
    }
    value.get_attr(name)
}

/// `value[key]`: items come before methods.
pub(super) fn item(value: &Value, key: &Value) -> Result<Value> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, format!("cannot read [{key}] of an undefined value")));
    }
    if let Some(index) = as_int(key)
        && (is_sequence(value) || value.kind() == ValueKind::String)
    {
        return index_into(value, index);
    }
    if is_dict(value) {
        // Unlike "in", jinja2's subscript takes a key that cannot be hashed for one that is missing.
        let found = lookup(value, key).unwrap_or(None);
        return match (found, key.as_str()) {
            (Some(found), _) => Ok(found),
            (None, Some(name)) if has_method(value, name) => Ok(bound_method(value, name)),
            _ => Ok(Value::UNDEFINED),
        };
    }
    match key.as_str() {
        Some(name) => attribute(value, name),
        None if is_float(key) || value.downcast_object_ref::<View>().is_some() => Ok(Value::UNDEFINED),
        None => Ok(value.get_item(key).unwrap_or_default()),
    }
}

/// An item of a sequence or a character of a string; undefined out of range.
fn index_into(value: &Value, index: i128) -> Result<Value> {
    if let Some(text) = value.as_str() {
        budget::read(value)?;
        let found = match usize::try_from(index) {
            Ok(n) => text.chars().nth(n),
            Err(_) => usize::try_from(-1 - index).ok().and_then(|n| text.chars().nth_back(n)),
        };
        return Ok(found.map_or(Value::UNDEFINED, |c| Value::from(c.to_string())));
    }
    let len = value.len().unwrap_or(0) as i128;
    let index = if index < 0 { index + len } else { index };
    match usize::try_from(index) {
        Ok(n) if index < len => value.get_item_by_index(n),
        _ => Ok(Value::UNDEFINED),
    }
}

fn slice(value: Value, start: Value, stop: Value, step: Value) -> Result<Value> {
    let bound = |bound: &Value| match as_int(bound) {
        Some(n) => Ok(Some(n.clamp(i64::MIN.into(), i64::MAX.into()))),
        None if bound.is_none() => Ok(None),
        None => Err(fail("slice indices must be integers or None")),
    };
    let (start, stop, step) = (bound(&start)?, bound(&stop)?, bound(&step)?.unwrap_or(1));
    if step == 0 {
        return Err(fail("slice step cannot be zero"));
    }
    if value.kind() != ValueKind::String && !is_sequence(&value) {
        if value.is_undefined() {
            return Err(Error::new(ErrorKind::UndefinedError, "cannot slice an undefined value"));
        }
        if is_dict(&value) {
            return Err(fail("unhashable type: 'slice'"));
        }
        // jinja2 turns the error of a value that has no slices into an undefined value.
        return Ok(Value::UNDEFINED);
    }
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        budget::bytes(text.len())?;
        let picked: String = slice_indices(chars.len(), start, stop, step).into_iter().map(|i| chars[i]).collect();
        return Ok(Value::from(picked));
    }
    let all = items(&value)?;
    let picked = slice_indices(all.len(), start, stop, step).into_iter().map(|i| all[i].clone()).collect();
    list_like(&value, picked)
}

/// The indices that `[start:stop:step]` picks of `len` items; `step` is not 0.
fn slice_indices(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> Vec<usize> {
    let len = len as i128;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i128| (if bound < 0 { bound + len } else { bound }).clamp(lowest, highest);
    let mut at = start.map_or(if step > 0 { lowest } else { highest }, clamp);
    let stop = stop.map_or(if step > 0 { highest } else { lowest }, clamp);
    let mut picked = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        picked.push(at as usize);
        at += step;
    }
    picked
}

/// What a `for` runs over.
fn iterable(value: Value) -> Result<Value> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => Ok(value),
        _ => items(&value).and_then(list),
    }
}
