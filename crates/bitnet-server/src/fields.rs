//! Reads the fields of a JSON object one by one, and says by name which of them is wrong.

use serde_json::{Map, Value};

use crate::error::{ApiError, shown};

/// An object whose fields are taken out one after another; what is left at the end is not known. `null` counts as not there.
#[derive(Debug)]
pub struct Fields {
    left: Map<String, Value>,
    /// What stands before the names of fields: `messages[2].`, say.
    path: String,
}

/// A value's type in words.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The text in a value that has the place `path`.
pub fn string(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(ApiError::field_type(path, "a string", type_of(&other))),
    }
}

/// The token ids in an array that has the place `path`.
pub fn ids(values: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    let id = |(index, value): (usize, &Value)| match value {
        Value::Number(number) if !number.is_f64() => {
            number.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                let path = format!("{path}[{index}]");
                let message =
                    format!("Invalid '{path}': {number}; it should be a token id, from 0 up.");
                ApiError::value(path, message)
            })
        }
        other => {
            let path = format!("{path}[{index}]");
            Err(ApiError::field_type(path, "a token id", type_of(other)))
        }
    };
    values.iter().enumerate().map(id).collect()
}

impl Fields {
    /// The fields of a body.
    pub fn body(value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(left) => Ok(Self { left, path: String::new() }),
            other => Err(ApiError::field_type("body", "an object", type_of(&other))),
        }
    }

    /// The fields of an object that has the place `path`.
    pub fn at(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(left) => Ok(Self { left, path: format!("{path}.") }),
            other => Err(ApiError::field_type(path, "an object", type_of(&other))),
        }
    }

    /// A field's full name.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The names of all fields that are left.
    pub fn names(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }

    /// A field of any type.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// A text.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.take(name).map(|value| string(value, &self.path(name))).transpose()
    }

    /// A text of so many bytes at most.
    pub fn short_string(&mut self, name: &str, most: usize) -> Result<Option<String>, ApiError> {
        let text = self.string(name)?;
        match &text {
            Some(text) if text.len() > most => {
                let path = self.path(name);
                let message =
                    format!("Invalid '{path}': {} bytes; it may have {most}.", text.len());
                Err(ApiError::value(path, message))
            }
            _ => Ok(text),
        }
    }

    /// Yes or no.
    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(ApiError::field_type(self.path(name), "a boolean", type_of(&other))),
        }
    }

    /// A number; of those that f32 does not have, the nearest.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => {
                Ok(Some(number.as_f64().unwrap_or(f64::INFINITY) as f32))
            }
            Some(other) => Err(ApiError::field_type(self.path(name), "a number", type_of(&other))),
        }
    }

    /// A whole number from `least` to `most`.
    pub fn integer(&mut self, name: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path(name);
        let number = match &value {
            Value::Number(number) if !number.is_f64() => number,
            other => return Err(ApiError::field_type(path, "an integer", type_of(other))),
        };
        match number.as_i64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let message =
                    format!("Invalid '{path}': {number}; it should be from {least} to {most}.");
                Err(ApiError::value(path, message))
            }
        }
    }

    /// A count, which may be as large as it likes.
    pub fn count(&mut self, name: &str, least: usize) -> Result<Option<usize>, ApiError> {
        let count = self.integer(name, least as i64, i64::MAX)?;
        Ok(count.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    /// An array, and its place.
    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(ApiError::field_type(self.path(name), "an array", type_of(&other))),
        }
    }

    /// An object's fields.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        self.take(name).map(|value| Self::at(value, &self.path(name))).transpose()
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), ApiError> {
        match self.left.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(ApiError::unknown(format!("{}{}", self.path, shown(name)))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::body(value).unwrap()
    }

    #[track_caller]
    fn check<T: std::fmt::Debug>(found: Result<T, ApiError>, expected: &str) {
        let object: Value = serde_json::from_str(&found.unwrap_err().object()).unwrap();
        let error = &object["error"];
        let text = format!("{}: {}", error["param"].as_str().unwrap(), error["message"]);
        assert_eq!(text, expected);
    }

    #[test]
    fn an_error_names_field_and_types() {
        check(
            fields(json!({"stop": 1})).string("stop"),
            r#"stop: "Invalid type for 'stop': expected a string, but got an integer instead.""#,
        );
        check(
            fields(json!({"n": 1.5})).integer("n", 1, 4),
            r#"n: "Invalid type for 'n': expected an integer, but got a decimal instead.""#,
        );
        check(
            fields(json!({"n": 5})).integer("n", 1, 4),
            r#"n: "Invalid 'n': 5; it should be from 1 to 4.""#,
        );
        check(
            Fields::body(json!([])),
            r#"body: "Invalid type for 'body': expected an object, but got an array instead.""#,
        );
    }

    #[test]
    fn what_is_left_is_not_known() {
        let mut fields = fields(json!({"a": true, "b": null, "c": {"d": 1}}));
        assert_eq!(fields.bool("a"), Ok(Some(true)));
        check(fields.object("c").unwrap().unwrap().end(), r#"c.d: "Unknown parameter: 'c.d'.""#);
        assert_eq!(fields.end(), Ok(()));
    }

    #[test]
    fn numbers_beyond_all_bounds_are_no_panic() {
        let mut fields = fields(json!({"a": 1e300, "b": u64::MAX, "c": -1}));
        assert_eq!(fields.number("a"), Ok(Some(f32::INFINITY)));
        assert!(fields.count("b", 0).is_err() && fields.count("c", 0).is_err());
    }

    #[test]
    fn long_names_are_not_repeated_in_full() {
        check(
            fields(json!({"é".repeat(100): 1})).end(),
            &format!("{0}…: \"Unknown parameter: '{0}…'.\"", "é".repeat(64)),
        );
    }
}
