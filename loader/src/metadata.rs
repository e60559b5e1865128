//! The typed key-value section of a file.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use crate::cursor::{Cursor, shown};
use crate::error::{Error, Result};
use crate::source::Source;

/// The type of a metadata value. Discriminants are the format's ids.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    fn from_id(id: u32) -> Option<ValueType> {
        ValueType::ALL.get(id as usize).copied()
    }

    /// Bytes of one value, or `None` for strings and arrays.
    fn size(self) -> Option<u64> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

/// A metadata value.
#[allow(missing_docs)]
#[derive(Debug, Clone)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(ArrayValue),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value as an integer, if it is one of any width.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        }
    }

    /// The value as a float, if it is one.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    fn parse(cursor: &mut Cursor<'_>, ty: ValueType, field: &str, source: &Source) -> Result<Value> {
        if ty == ValueType::String {
            return Ok(Value::String(cursor.text(field)?));
        }
        let Some(size) = ty.size() else {
            return Ok(Value::Array(ArrayValue::parse(cursor, field, source)?));
        };
        Ok(scalar(ty, cursor.take(size, field)?))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => f.write_str(v),
            Value::Array(v) => write!(f, "[{} x {}]", v.element_type(), v.len()),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
        }
    }
}

/// A fixed-size value from its little-endian bytes (whose length is `ty.size()`).
fn scalar(ty: ValueType, bytes: &[u8]) -> Value {
    let mut wide = [0u8; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let raw = u64::from_le_bytes(wide);
    match ty {
        ValueType::U8 => Value::U8(raw as u8),
        ValueType::I8 => Value::I8(raw as i8),
        ValueType::U16 => Value::U16(raw as u16),
        ValueType::I16 => Value::I16(raw as i16),
        ValueType::U32 => Value::U32(raw as u32),
        ValueType::I32 => Value::I32(raw as i32),
        ValueType::F32 => Value::F32(f32::from_bits(raw as u32)),
        ValueType::Bool => Value::Bool(raw != 0),
        ValueType::U64 => Value::U64(raw),
        ValueType::I64 => Value::I64(raw as i64),
        ValueType::F64 => Value::F64(f64::from_bits(raw)),
        ValueType::String | ValueType::Array => unreachable!("not of fixed size"),
    }
}

/// Most elements an array may have: far more than any vocabulary, and little enough to walk and to copy.
const MAX_ARRAY: u64 = 64 << 20;

/// An array value. Its elements stay in the mapped file and are decoded as they are asked for, so that a vocabulary of
/// hundreds of thousands of strings costs nothing to open.
#[derive(Debug, Clone)]
pub struct ArrayValue {
    element: ValueType,
    len: usize,
    source: Source,
    bytes: Range<usize>,
}

impl ArrayValue {
    fn parse(cursor: &mut Cursor<'_>, field: &str, source: &Source) -> Result<ArrayValue> {
        let offset = cursor.offset();
        let id = cursor.u32(field)?;
        let element = match ValueType::from_id(id) {
            Some(ValueType::Array) => {
                return Err(cursor.malformed(field, offset, "arrays of arrays are not supported"));
            }
            Some(ty) => ty,
            None => return Err(cursor.malformed(field, offset, format!("unknown array element type {id}"))),
        };
        let len_offset = cursor.offset();
        let len = cursor.u64(field)?;
        // The least an element can take: its size, or a string's 8-byte length.
        let least = element.size().unwrap_or(8);
        let left = cursor.remaining() as u64;
        match len.checked_mul(least) {
            Some(bytes) if bytes <= left && len <= MAX_ARRAY => {}
            Some(bytes) if bytes <= left => {
                let message = format!("array of {len} {element} (at most {MAX_ARRAY} elements are read)");
                return Err(cursor.malformed(field, len_offset, message));
            }
            _ => {
                let message = format!("array of {len} {element} does not fit in the {left} bytes left in the file");
                return Err(cursor.malformed(field, len_offset, message));
            }
        }
        let start = cursor.offset();
        match element.size() {
            Some(size) => {
                cursor.take(len * size, field)?;
            }
            None => {
                for _ in 0..len {
                    cursor.string_bytes(field)?;
                }
            }
        }
        let bytes = start..cursor.offset();
        Ok(ArrayValue { element, len: len as usize, source: source.clone(), bytes })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of every element.
    pub fn element_type(&self) -> ValueType {
        self.element
    }

    /// An array made here, of strings.
    pub fn of_strings<T: AsRef<[u8]>>(strings: impl IntoIterator<Item = T>) -> ArrayValue {
        let mut bytes = Vec::new();
        let mut len = 0;
        for text in strings {
            let text = text.as_ref();
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text);
            len += 1;
        }
        ArrayValue { element: ValueType::String, len, bytes: 0..bytes.len(), source: Source::owned(bytes) }
    }

    /// The elements as the file holds them: little-endian numbers, or strings each after its length.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.source.bytes()[self.bytes.clone()]
    }

    /// The elements as byte strings (GGUF strings need not be UTF-8 inside vocabularies), or `None` where they are not
    /// strings.
    pub fn strings(&self) -> Option<impl ExactSizeIterator<Item = &[u8]>> {
        (self.element == ValueType::String).then(|| Strings { bytes: self.raw(), left: self.len })
    }

    /// The elements one by one, decoded; strings that are not UTF-8 are shown with replacement characters.
    pub fn values(&self) -> Box<dyn Iterator<Item = Value> + '_> {
        match self.element.size() {
            Some(size) => Box::new(self.raw().chunks_exact(size as usize).map(|bytes| scalar(self.element, bytes))),
            None => Box::new(
                Strings { bytes: self.raw(), left: self.len }
                    .map(|bytes| Value::String(String::from_utf8_lossy(bytes).into_owned())),
            ),
        }
    }
}

/// Iterator over length-prefixed strings whose bounds were checked when the file was opened.
struct Strings<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.bytes.split_first_chunk::<8>()?;
        let (text, rest) = rest.split_at_checked(u64::from_le_bytes(*len) as usize)?;
        self.bytes = rest;
        self.left -= 1;
        Some(text)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// The key-value section of a file, in file order.
#[derive(Debug, Default, Clone)]
pub struct Metadata {
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
}

#[derive(Debug, Clone)]
struct Entry {
    key: String,
    value: Value,
    /// Byte offset of the key in the file; 0 for one set here.
    offset: usize,
}

impl Metadata {
    pub(crate) fn parse(cursor: &mut Cursor<'_>, n_kv: u64, source: &Source) -> Result<Metadata> {
        let mut meta = Metadata::default();
        for i in 0..n_kv {
            let offset = cursor.offset();
            let key = cursor.name(&format!("metadata key {i}"))?;
            let field = format!("metadata key `{}`", shown(&key));
            let type_offset = cursor.offset();
            let id = cursor.u32(&field)?;
            let Some(ty) = ValueType::from_id(id) else {
                return Err(cursor.malformed(&field, type_offset, format!("unknown value type {id} (known: 0 to 12)")));
            };
            let value = Value::parse(cursor, ty, &field, source)?;
            if meta.index.insert(key.clone(), meta.entries.len()).is_some() {
                return Err(cursor.malformed(&field, offset, "appears twice"));
            }
            meta.entries.push(Entry { key, value, offset });
        }
        Ok(meta)
    }

    /// Sets `key`: in its place where it is there, at the end otherwise.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.index.get(key) {
            Some(&i) => self.entries[i] = Entry { key: key.to_owned(), value, offset: 0 },
            None => {
                self.index.insert(key.to_owned(), self.entries.len());
                self.entries.push(Entry { key: key.to_owned(), value, offset: 0 });
            }
        }
    }

    /// Removes `key`, if it is there. The order of the others stays.
    pub fn remove(&mut self, key: &str) {
        if let Some(at) = self.index.remove(key) {
            self.entries.remove(at);
            self.index.values_mut().filter(|i| **i > at).for_each(|i| *i -= 1);
        }
    }

    /// All entries, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|e| (e.key.as_str(), &e.value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].value)
    }

    /// Byte offset of `key` in the (first) file, for messages.
    pub fn offset(&self, key: &str) -> Option<usize> {
        self.index.get(key).map(|&i| self.entries[i].offset)
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => {
                let found = match value {
                    Value::Array(_) => value.to_string(),
                    _ => format!("{} {:.40}", value.value_type(), shown(&value.to_string())),
                };
                let offset = self.offset(key).unwrap_or(0);
                let message = format!("expected {expected}, found {found} (at byte {offset})");
                Err(Error::Metadata { key: key.to_owned(), message })
            }
        }
    }

    /// A string, if the key is there; an error if it is something else.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::String(text) => Ok(Some(text)),
            _ => self.typed(key, "a string", |_| None::<&str>),
        }
    }

    /// An integer of any width that fits 32 bits unsigned, if the key is there.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an unsigned 32-bit integer", |v| v.as_integer().and_then(|i| u32::try_from(i).ok()))
    }

    /// An integer of any width that fits 64 bits unsigned, if the key is there.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an unsigned integer", |v| v.as_integer().and_then(|i| u64::try_from(i).ok()))
    }

    /// A float, if the key is there.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", |v| v.as_float().map(|f| f as f32))
    }

    /// A bool, if the key is there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    /// An array, if the key is there.
    pub fn array(&self, key: &str) -> Result<Option<&ArrayValue>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Array(array) => Ok(Some(array)),
            _ => self.typed(key, "an array", |_| None::<&ArrayValue>),
        }
    }

    /// An array of strings, if the key is there.
    pub fn string_array(&self, key: &str) -> Result<Option<&ArrayValue>> {
        match self.array(key)? {
            Some(array) if array.element_type() != ValueType::String => {
                self.typed(key, "an array of strings", |_| None::<&ArrayValue>)
            }
            other => Ok(other),
        }
    }

    /// An array of floats, if the key is there.
    pub fn f32_array(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.numbers(key, "an array of floats", |v| v.as_float().map(|f| f as f32))
    }

    /// An array of integers that fit 32 bits signed (bools count as 0 and 1), if the key is there.
    pub fn i32_array(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.numbers(key, "an array of integers", |v| match v {
            Value::Bool(b) => Some(i32::from(*b)),
            _ => v.as_integer().and_then(|i| i32::try_from(i).ok()),
        })
    }

    fn numbers<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        self.typed(key, expected, |value| match value {
            Value::Array(array) if array.element_type() != ValueType::String => {
                array.values().map(|v| read(&v)).collect()
            }
            _ => None,
        })
    }

    /// The error for a key that must be there and is not.
    pub fn missing(key: &str) -> Error {
        Error::Metadata { key: key.to_owned(), message: "is missing; the model cannot be used without it".to_owned() }
    }
}
