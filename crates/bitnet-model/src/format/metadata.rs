//! The key-value pairs of a GGUF file.

use std::collections::BTreeMap;

/// A metadata value; all integer widths are widened, all float widths are f64.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer type.
    Int(i128),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// An array of integers.
    Ints(Vec<i128>),
    /// An array of floats.
    Floats(Vec<f64>),
    /// An array of truth values.
    Bools(Vec<bool>),
    /// An array of texts.
    Strings(Vec<String>),
}

/// All pairs of a file, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub BTreeMap<String, Value>);

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// A text.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// A non-negative integer.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Int(value) => (*value).try_into().ok(),
            _ => None,
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A float, or an integer as one.
    pub fn f64(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Float(value) => Some(*value),
            Value::Int(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        match self.get(key)? {
            Value::Strings(values) => Some(values),
            _ => None,
        }
    }

    /// An array of integers.
    pub fn ints(&self, key: &str) -> Option<&[i128]> {
        match self.get(key)? {
            Value::Ints(values) => Some(values),
            _ => None,
        }
    }

    /// An array of floats.
    pub fn floats(&self, key: &str) -> Option<&[f64]> {
        match self.get(key)? {
            Value::Floats(values) => Some(values),
            _ => None,
        }
    }
}

impl std::fmt::Display for Value {
    /// The value itself if it is short, else what it is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::String(text) if text.len() <= 60 => write!(f, "{text:?}"),
            Self::String(text) => write!(f, "a text of {} bytes", text.len()),
            Self::Ints(values) => write!(f, "an array of {} integers", values.len()),
            Self::Floats(values) => write!(f, "an array of {} floats", values.len()),
            Self::Bools(values) => write!(f, "an array of {} truth values", values.len()),
            Self::Strings(values) => write!(f, "an array of {} texts", values.len()),
        }
    }
}
