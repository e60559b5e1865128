//! Lists, tuples, dicts and what is made from them. Each knows how deep it is nested, so that no template can build
//! a value whose printing, comparing or freeing would need an unbounded stack.

use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{State, Value};

use super::budget;
use super::methods;
use super::values::{Result, fail, type_name};

/// Nesting that values may have.
const MAX_DEPTH: usize = 200;

/// A list or a tuple.
#[derive(Debug)]
pub(super) struct List {
    items: Vec<Value>,
    is_tuple: bool,
    depth: usize,
}

/// A dict, in insertion order.
#[derive(Debug)]
pub(super) struct Dict {
    items: IndexMap<Value, Value>,
    depth: usize,
}

/// What `dict.keys()`, `.values()` and `.items()` give.
#[derive(Debug)]
pub(super) struct View {
    pub(super) name: &'static str,
    pub(super) items: Vec<Value>,
    depth: usize,
}

/// A Python generator: true whatever it holds, and empty once it was read.
#[derive(Debug)]
pub(super) struct Generator {
    items: Mutex<Vec<Value>>,
    depth: usize,
}

/// A method that was read but not called, as in `{% if x.items %}`.
#[derive(Debug)]
pub(super) struct BoundMethod {
    receiver: Value,
    name: String,
}

/// A Python list.
pub(super) fn list(items: Vec<Value>) -> Result<Value> {
    let depth = depth_above(items.iter())?;
    Ok(Value::from_object(List { items, is_tuple: false, depth }))
}

/// A Python tuple.
pub(super) fn tuple(items: Vec<Value>) -> Result<Value> {
    let depth = depth_above(items.iter())?;
    Ok(Value::from_object(List { items, is_tuple: true, depth }))
}

/// A list, or a tuple if `like` is one.
pub(super) fn list_like(like: &Value, items: Vec<Value>) -> Result<Value> {
    if is_tuple(like) { tuple(items) } else { list(items) }
}

/// A Python dict; later values of a key win, at the place of the first.
pub(super) fn dict(pairs: impl IntoIterator<Item = (Value, Value)>) -> Result<Value> {
    let mut items = IndexMap::new();
    for (key, value) in pairs {
        check_key(&key)?;
        items.insert(key, value);
    }
    let depth = depth_above(items.values())?;
    Ok(Value::from_object(Dict { items, depth }))
}

/// A view of a dict.
pub(super) fn view(name: &'static str, items: Vec<Value>) -> Result<Value> {
    let depth = depth_above(items.iter())?;
    Ok(Value::from_object(View { name, items, depth }))
}

/// A generator of these items.
pub(super) fn generator(items: Vec<Value>) -> Result<Value> {
    let depth = depth_above(items.iter())?;
    Ok(Value::from_object(Generator { items: Mutex::new(items), depth }))
}

/// A method as a value. The sandbox answers a mutating one with an undefined value, which fails when called.
pub(super) fn bound_method(receiver: &Value, name: &str) -> Value {
    if methods::is_mutating(name) {
        return Value::UNDEFINED;
    }
    Value::from_object(BoundMethod { receiver: receiver.clone(), name: name.to_string() })
}

/// Whether this is a list or a tuple.
pub(super) fn is_sequence(value: &Value) -> bool {
    value.downcast_object_ref::<List>().is_some()
}

pub(super) fn is_tuple(value: &Value) -> bool {
    value.downcast_object_ref::<List>().is_some_and(|list| list.is_tuple)
}

/// Whether this is a dict; namespaces and loops look like maps too, but have no methods.
pub(super) fn is_dict(value: &Value) -> bool {
    value.is_kwargs() || value.downcast_object_ref::<Dict>().is_some()
}

/// The value of a key in a dict.
pub(super) fn lookup(dict: &Value, key: &Value) -> Result<Option<Value>> {
    check_key(key)?;
    Ok(dict.as_object().and_then(|object| object.get_value(key)))
}

/// Fails for values that Python cannot hash, and for tuples of tuples, whose hash could take forever.
fn check_key(key: &Value) -> Result<()> {
    budget::read(key)?;
    match key.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable if !is_tuple(key) || depth(key)? > 1 => {
            Err(fail(format!("unhashable type: '{}'", type_name(key))))
        }
        _ => Ok(()),
    }
}

/// Fails for values that must not be stored: those that could hold themselves, such as namespaces and loops.
pub(super) fn check_storable(value: &Value) -> Result<()> {
    depth(value).map(|_| ())
}

fn depth_above<'a>(items: impl Iterator<Item = &'a Value>) -> Result<usize> {
    let mut deepest = 0;
    for item in items {
        deepest = deepest.max(depth(item)?);
    }
    if deepest >= MAX_DEPTH {
        return Err(fail(format!("values are nested more than {MAX_DEPTH} deep")));
    }
    Ok(deepest + 1)
}

/// How deep a value is nested; 0 for scalars.
fn depth(value: &Value) -> Result<usize> {
    let known = value.downcast_object_ref::<List>().map(|it| it.depth);
    let known = known.or_else(|| value.downcast_object_ref::<Dict>().map(|it| it.depth));
    let known = known.or_else(|| value.downcast_object_ref::<View>().map(|it| it.depth));
    let known = known.or_else(|| value.downcast_object_ref::<Generator>().map(|it| it.depth));
    if let Some(depth) = known {
        return Ok(depth);
    }
    if let Some(method) = value.downcast_object_ref::<BoundMethod>() {
        return depth(&method.receiver);
    }
    match value.kind() {
        // The only iterables of the engine itself are ranges.
        ValueKind::Iterable => Ok(1),
        ValueKind::Map | ValueKind::Plain | ValueKind::Seq => {
            Err(fail("namespaces, loops and macros cannot be stored in other values"))
        }
        _ => Ok(0),
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.keys().cloned().collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items.len())
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(std::mem::take(&mut *self.items.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value> {
        methods::call(state, &self.receiver, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<built-in method {} of {} object>", self.name, type_name(&self.receiver))
    }
}
