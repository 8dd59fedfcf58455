//! Reading a JSON object field by field: types and ranges are checked where a field is taken, every message names the
//! field, and what nobody took is known at the end. A field that is null counts as absent.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Characters of a wrong value that a message repeats.
const SHOWN_CHARS_MAX: usize = 40;

/// An object whose fields are taken one by one.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Where the object is in the request, as `stream_options.`; empty for the request itself.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The request's own object.
    ///
    /// # Errors
    /// It is another kind of value.
    pub(crate) fn of(value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { path: String::new(), map }),
            other => Err(ApiError::new(
                axum::http::StatusCode::BAD_REQUEST,
                format!("the request must be a JSON object; it is {}", shown(&other)),
            )),
        }
    }

    /// A field's full name, for messages.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    pub(crate) fn flag(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        self.take(field)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(field, "true or false", &value)))
            .transpose()
    }

    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, "a string", &other)),
        }
    }

    /// A number within `range`.
    pub(crate) fn number(&mut self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_f64().filter(|x| range.contains(x)) {
            Some(x) => Ok(Some(x)),
            None => Err(self.wrong(field, &format!("a number from {} to {}", range.start(), range.end()), &value)),
        }
    }

    /// A whole number within `range`.
    pub(crate) fn count(&mut self, field: &str, range: RangeInclusive<u64>) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match whole(&value).filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n as usize)),
            None => {
                Err(self.wrong(field, &format!("a whole number from {} to {}", range.start(), range.end()), &value))
            }
        }
    }

    /// A list of at most `most` entries.
    pub(crate) fn list(&mut self, field: &str, most: usize) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(list)) if list.len() <= most => Ok(Some(list)),
            Some(Value::Array(list)) => {
                let message = format!("{} has {} entries and may have {most}", self.name(field), list.len());
                Err(ApiError::invalid(self.name(field), message))
            }
            Some(other) => Err(self.wrong(field, "a list", &other)),
        }
    }

    pub(crate) fn object(&mut self, field: &str) -> Result<Option<Fields>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { path: format!("{}{field}.", self.path), map })),
            Some(other) => Err(self.wrong(field, "an object", &other)),
        }
    }

    /// The error of a field that should be something else.
    pub(crate) fn wrong(&self, field: &str, expected: &str, value: &Value) -> ApiError {
        let name = self.name(field);
        let message = format!("{name} must be {expected}; it is {}", shown(value));
        ApiError::invalid(name, message)
    }

    /// Full names of the fields that nobody took.
    pub(crate) fn rest(&self) -> Vec<String> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(field, _)| self.name(field)).collect()
    }
}

/// A whole number, written as one or as `5.0`.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    let as_float = || value.as_f64().filter(|x| 0.0 <= *x && x.fract() == 0.0 && *x < 9e15).map(|x| x as u64);
    value.as_u64().or_else(as_float)
}

/// A value as messages repeat it.
pub(crate) fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(_) => return "a list".into(),
        Value::Object(_) => return "an object".into(),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
