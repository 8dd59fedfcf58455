//! A JSON schema as a request brings it: bounded before anything works on it.

use super::GrammarError;
use serde_json::{Value, json};

/// Bytes of a schema, written without spaces.
pub(crate) const BYTES_MAX: usize = 64 << 10;

/// Values inside one another.
const DEPTH_MAX: usize = 64;

/// Properties of an object, of which each may be left out: more would not fit llguidance's bound on the ways in which a
/// text may go on.
const PROPERTIES_MAX: usize = 400;

/// White space between two of JSON's tokens: as much as a person indents, so that no completion is white space to its
/// end.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// A schema and the field that it came in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schema {
    value: Value,
    pub(crate) field: String,
}

impl Schema {
    /// Takes a schema of a request's `field`.
    ///
    /// # Errors
    /// It is no object, longer than [`BYTES_MAX`], nested deeper than 64 values, or has an object with more than 400
    /// properties.
    pub(crate) fn new(value: &Value, field: impl Into<String>) -> Result<Self, GrammarError> {
        let field = field.into();
        if !value.is_object() {
            return Err(GrammarError::new(field, "must be a JSON schema, which is an object"));
        }
        if DEPTH_MAX < depth(value) {
            return Err(GrammarError::new(field, format!("is nested deeper than {DEPTH_MAX} values")));
        }
        if PROPERTIES_MAX < properties(value) {
            return Err(GrammarError::new(field, format!("has an object with more than {PROPERTIES_MAX} properties")));
        }
        let bytes = value.to_string().len();
        if BYTES_MAX < bytes {
            return Err(GrammarError::new(field, format!("has {bytes} bytes and may have {BYTES_MAX}")));
        }
        Ok(Schema { value: value.clone(), field })
    }

    /// Any object.
    pub(crate) fn object(field: impl Into<String>) -> Self {
        Schema { value: json!({"type": "object"}), field: field.into() }
    }

    /// The object without members.
    pub(crate) fn empty_object(field: impl Into<String>) -> Self {
        Schema { value: json!({"type": "object", "additionalProperties": false}), field: field.into() }
    }

    /// As the compiler takes it. Its own options are ours: a request's would switch checks off.
    pub(crate) fn to_json(&self) -> Value {
        let mut value = self.value.clone();
        value["x-guidance"] = json!({"whitespace_pattern": WHITE_SPACE});
        value
    }

    /// Bytes, written without spaces.
    pub(crate) fn bytes(&self) -> usize {
        self.value.to_string().len()
    }
}

fn depth(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Of the object that has most.
fn properties(value: &Value) -> usize {
    match value {
        Value::Array(list) => list.iter().map(properties).max().unwrap_or(0),
        Value::Object(map) => {
            let own = map.get("properties").and_then(Value::as_object).map_or(0, |properties| properties.len());
            map.values().map(properties).max().unwrap_or(0).max(own)
        }
        _ => 0,
    }
}
