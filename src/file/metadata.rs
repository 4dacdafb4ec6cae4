//! The key and value entries at the head of a GGUF file.

use std::collections::HashMap;

use crate::Result;
use crate::bail;
use crate::error::Error;

/// A metadata value; the variants are GGUF's value types.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each variant is the type it names")]
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
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array: elements of one type, never arrays again.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each variant is the type it names")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// As in the specification: `u32`, `string`, `array of i32`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::F32(_) => "f32",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(array) => array.type_name(),
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F64(_) => "f64",
        }
    }

    /// An integer of any width, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        self.as_i128().and_then(|value| u64::try_from(value).ok())
    }

    /// An integer of any width, if it is one and fits.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_i128().and_then(|value| i64::try_from(value).ok())
    }

    /// A float of either width, if it is one.
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Value::F32(value) => Some(*value),
            Value::F64(value) => Some(*value as f32),
            _ => None,
        }
    }

    /// A truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(value) => Some(value),
            _ => None,
        }
    }

    /// An array, if it is one.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(value) => Some(value),
            _ => None,
        }
    }

    fn as_i128(&self) -> Option<i128> {
        match *self {
            Value::U8(value) => Some(value.into()),
            Value::I8(value) => Some(value.into()),
            Value::U16(value) => Some(value.into()),
            Value::I16(value) => Some(value.into()),
            Value::U32(value) => Some(value.into()),
            Value::I32(value) => Some(value.into()),
            Value::U64(value) => Some(value.into()),
            Value::I64(value) => Some(value.into()),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => {
                None
            }
        }
    }
}

impl Array {
    /// `array of i32`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "array of u8",
            Array::I8(_) => "array of i8",
            Array::U16(_) => "array of u16",
            Array::I16(_) => "array of i16",
            Array::U32(_) => "array of u32",
            Array::I32(_) => "array of i32",
            Array::F32(_) => "array of f32",
            Array::Bool(_) => "array of bool",
            Array::String(_) => "array of string",
            Array::U64(_) => "array of u64",
            Array::I64(_) => "array of i64",
            Array::F64(_) => "array of f64",
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(values) => values.len(),
            Array::I8(values) => values.len(),
            Array::U16(values) => values.len(),
            Array::I16(values) => values.len(),
            Array::U32(values) => values.len(),
            Array::I32(values) => values.len(),
            Array::F32(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::String(values) => values.len(),
            Array::U64(values) => values.len(),
            Array::I64(values) => values.len(),
            Array::F64(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One element as a value of its own, to print it.
    pub fn get(&self, index: usize) -> Option<Value> {
        Some(match self {
            Array::U8(values) => Value::U8(*values.get(index)?),
            Array::I8(values) => Value::I8(*values.get(index)?),
            Array::U16(values) => Value::U16(*values.get(index)?),
            Array::I16(values) => Value::I16(*values.get(index)?),
            Array::U32(values) => Value::U32(*values.get(index)?),
            Array::I32(values) => Value::I32(*values.get(index)?),
            Array::F32(values) => Value::F32(*values.get(index)?),
            Array::Bool(values) => Value::Bool(*values.get(index)?),
            Array::String(values) => Value::String(values.get(index)?.clone()),
            Array::U64(values) => Value::U64(*values.get(index)?),
            Array::I64(values) => Value::I64(*values.get(index)?),
            Array::F64(values) => Value::F64(*values.get(index)?),
        })
    }

    /// Every element through `convert`, or `None` as soon as one does not fit.
    fn collect<T>(&self, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        (0..self.len()).map(|index| self.get(index).as_ref().and_then(&convert)).collect()
    }
}

/// Entries in file order, each key once.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Metadata) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// No entries.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// Sets a key: in its place if it is there, else at the end.
    pub fn set(&mut self, key: impl Into<String>, value: Value) {
        let key = key.into();
        if let Some(&at) = self.index.get(&key) {
            self.entries[at].1 = value;
        } else {
            self.index.insert(key.clone(), self.entries.len());
            self.entries.push((key, value));
        }
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.index.remove(key)?;
        let (_, value) = self.entries.remove(at);
        self.index.values_mut().filter(|index| **index > at).for_each(|index| *index -= 1);
        Some(value)
    }

    /// Takes out every key that begins so.
    pub fn remove_prefix(&mut self, prefix: &str) {
        self.entries.retain(|(key, _)| !key.starts_with(prefix));
        let keys = self.entries.iter().enumerate();
        self.index = keys.map(|(at, (key, _))| (key.clone(), at)).collect();
    }

    /// An integer of any width.
    ///
    /// # Errors
    /// If the key is there with another type, or negative.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer that is not negative", Value::as_u64)
    }

    /// An integer of any width that fits 32 bits.
    ///
    /// # Errors
    /// If the key is there with another type, negative, or larger.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 4294967295", |value| {
            value.as_u64().and_then(|value| u32::try_from(value).ok())
        })
    }

    /// A float of either width.
    ///
    /// # Errors
    /// If the key is there with another type.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", Value::as_f32)
    }

    /// A truth value.
    ///
    /// # Errors
    /// If the key is there with another type.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", Value::as_bool)
    }

    /// A text.
    ///
    /// # Errors
    /// If the key is there with another type.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of texts.
    ///
    /// # Errors
    /// If the key is there with another type.
    pub fn get_strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of string", |value| match value {
            Value::Array(Array::String(values)) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of truth values.
    ///
    /// # Errors
    /// If the key is there with another type.
    pub fn get_bools(&self, key: &str) -> Result<Option<&[bool]>> {
        self.typed(key, "an array of bool", |value| match value {
            Value::Array(Array::Bool(values)) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any width that fit 32 bits with a sign.
    ///
    /// # Errors
    /// If the key is there with another type, or an element does not fit.
    pub fn get_i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.typed(key, "an array of 32-bit integers", |value| {
            value.as_array()?.collect(|value| i32::try_from(value.as_i64()?).ok())
        })
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// If the key is there with another type, or an element is negative.
    pub fn get_u64s(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.typed(key, "an array of integers that are not negative", |value| {
            value.as_array()?.collect(Value::as_u64)
        })
    }

    /// An array of floats of either width.
    ///
    /// # Errors
    /// If the key is there with another type.
    pub fn get_f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.typed(key, "an array of floats", |value| value.as_array()?.collect(Value::as_f32))
    }

    /// [`Metadata::get_u64`] of a key that must be there.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn require_u64(&self, key: &str) -> Result<u64> {
        self.get_u64(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::get_u32`] of a key that must be there.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        self.get_u32(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::get_f32`] of a key that must be there.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        self.get_f32(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::get_str`] of a key that must be there.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.get_str(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::get_strings`] of a key that must be there.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn require_strings(&self, key: &str) -> Result<&[String]> {
        self.get_strings(key)?.ok_or_else(|| missing(key))
    }

    /// [`Metadata::get_u64s`] of a key that must be there.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn require_u64s(&self, key: &str) -> Result<Vec<u64>> {
        self.get_u64s(key)?.ok_or_else(|| missing(key))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        if let Some(converted) = convert(value) {
            return Ok(Some(converted));
        }
        match value {
            Value::String(_) | Value::Array(_) | Value::Bool(_) => {
                bail!("metadata key `{key}`: expected {expected}, found {}", value.type_name())
            }
            number => {
                bail!("metadata key `{key}`: expected {expected}, found {number:?}")
            }
        }
    }
}

fn missing(key: &str) -> Error {
    Error::new(format!("metadata key `{key}` is missing"))
}
