//! The filters of jinja2 on lists and dicts, and its tests, where minijinja's own differ from Python's.

use std::cmp::Ordering;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, State, Value};

use super::args::{Args, Given, split_kwargs, str_of};
use super::budget;
use super::containers::{bound_method, generator, is_dict, is_sequence, list, tuple};
use super::methods::{has_method, tuples};
use super::ops::{add, compare, contains, equal, equals, item, modulo, ordered};
use super::strings;
use super::values::{Result, fail, is_float, items, length, pairs, text, to_str, type_name};

/// Whether a comparison holds for an order of its operands.
type Holds = fn(Ordering) -> bool;

/// Filters of minijinja that jinja2 does not have.
const FOREIGN: [&str; 5] = ["chain", "zip", "split", "lines", "bool"];

/// Makes the filters and tests known to the environment.
pub(super) fn register(env: &mut Environment<'_>) {
    for name in FOREIGN {
        env.remove_filter(name);
    }
    env.add_filter("sum", sum);
    env.add_filter("join", join);
    register_sequences(env);
    register_tests(env);
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
    env.add_filter("list", |value: Value| items(&value).and_then(list));
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
            return Ok(if has_method(&value, name) { bound_method(&value, name) } else { Value::UNDEFINED });
        }
        value.get_attr(name)
    });
    env.add_filter("batch", batch);
    env.add_filter("slice", slice);
    env.add_filter("groupby", group_by);
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
    env.add_test("lower", |value: Value| text(&value).map(|text| strings::predicate(&text, "islower")));
    env.add_test("upper", |value: Value| text(&value).map(|text| strings::predicate(&text, "isupper")));
    env.add_test("divisibleby", |value: Value, by: Value| {
        let rest = modulo(value, by)?;
        equals(&rest, &Value::from(0))
    });
    env.add_test("in", |value: Value, container: Value| contains(&container, &value));
    for name in ["==", "eq", "equalto"] {
        env.add_test(name, |a: Value, b: Value| equals(&a, &b));
    }
    for name in ["!=", "ne"] {
        env.add_test(name, |a: Value, b: Value| equals(&a, &b).map(|equal| !equal));
    }
    let comparisons: [(&[&str], Holds); 4] = [
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

fn join(value: Value, args: Given) -> Result<String> {
    let args = Args::bind("join", &args.into_values(), &["d", "attribute"])?;
    let separator = args.get("d").map(to_str).unwrap_or_default();
    let mut out = String::new();
    for (i, part) in items(&value)?.iter().enumerate() {
        let text = match args.some("attribute") {
            Some(path) => to_str(&path_item(part, path)?),
            None => to_str(part),
        };
        budget::bytes(separator.len() + text.len())?;
        if i > 0 {
            out += &separator;
        }
        out += &text;
    }
    Ok(out)
}

fn sum(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("sum", &args.into_values(), &["attribute", "start"])?;
    let mut total = args.get("start").cloned().unwrap_or(Value::from(0));
    for part in items(&value)? {
        let part = match args.some("attribute") {
            Some(path) => path_item(&part, path)?,
            None => part,
        };
        total = add(total, part)?;
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
    items(&value).and_then(|all| generator(all.into_iter().rev().collect()))
}

fn dict_items(value: Value) -> Result<Value> {
    if !value.is_undefined() && !is_dict(&value) {
        return Err(fail("Can only get item pairs from a mapping."));
    }
    tuples(&value).and_then(generator)
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
    let keyed =
        |(key, item): (Value, Value)| Ok((fold(if by_value { &item } else { &key }, case), tuple(vec![key, item])?));
    let mut all = pairs(&value).into_iter().map(keyed).collect::<Result<Vec<_>>>()?;
    sort_by(&mut all, args.flag("reverse"))?;
    list(all.into_iter().map(|(_, pair)| pair).collect())
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
                list(parts?)?
            }
            None => fold(&part, args.flag("case_sensitive")),
        };
        all.push((key, part));
    }
    sort_by(&mut all, args.flag("reverse"))?;
    list(all.into_iter().map(|(_, part)| part).collect())
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
        budget::items(seen.len())?;
        if !seen.iter().any(|old| equal(old, &key)) {
            seen.push(key);
            kept.push(part);
        }
    }
    generator(kept)
}

/// How many columns or rows were asked for, at least one.
fn count_of(args: &Args, name: &str) -> Result<usize> {
    args.int(name)?
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| fail("a count must be positive"))
}

/// Rows of `linecount` items, the last one filled up if there is something to fill with.
fn batch(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("batch", &args.into_values(), &["linecount", "fill_with"])?;
    let n = count_of(&args, "linecount")?;
    let mut rows: Vec<Vec<Value>> = items(&value)?.chunks(n).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (args.some("fill_with"), rows.last_mut()) {
        budget::items(n - last.len())?;
        last.resize(n, fill.clone());
    }
    generator(rows.into_iter().map(list).collect::<Result<_>>()?)
}

/// `slices` columns of nearly equal length.
fn slice(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("slice", &args.into_values(), &["slices", "fill_with"])?;
    let n = count_of(&args, "slices")?;
    budget::items(n)?;
    let all = items(&value)?;
    let (each, longer) = (all.len() / n, all.len() % n);
    let mut rest = all.as_slice();
    let mut columns = Vec::new();
    for i in 0..n {
        let (column, after) = rest.split_at(each + usize::from(i < longer));
        rest = after;
        let mut column = column.to_vec();
        if let Some(fill) = args.some("fill_with").filter(|_| i >= longer) {
            column.push(fill.clone());
        }
        columns.push(list(column)?);
    }
    generator(columns)
}

/// Pairs of a value of an attribute and the items that have it, sorted by that value.
fn group_by(value: Value, args: Given) -> Result<Value> {
    let args = Args::bind("groupby", &args.into_values(), &["attribute", "default", "case_sensitive"])?;
    let mut all = Vec::new();
    for part in items(&value)? {
        let found = path_item(&part, args.required("attribute")?)?;
        let found = if found.is_undefined() { args.get("default").cloned().unwrap_or(found) } else { found };
        all.push((fold(&found, args.flag("case_sensitive")), (found, part)));
    }
    sort_by(&mut all, false)?;
    let groups = all.chunk_by(|(a, _), (b, _)| equal(a, b)).map(|group| {
        let members = group.iter().map(|(_, (_, part))| part.clone()).collect();
        tuple(vec![group[0].1.0.clone(), list(members)?])
    });
    list(groups.collect::<Result<_>>()?)
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
    generator(mapped)
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
    generator(kept)
}
