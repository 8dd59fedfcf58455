//! The field `response_format`.

use super::GrammarError;
use super::schema::Schema;
use serde_json::Value;

/// What an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ResponseFormat {
    /// Anything.
    Text,
    /// JSON that follows a schema.
    Json(Schema),
}

const FIELD: &str = "response_format";

impl ResponseFormat {
    /// Reads the field. A schema is followed whether or not it says `strict`.
    ///
    /// # Errors
    /// It is of another kind, or the schema is missing or out of its bounds.
    pub(crate) fn read(value: Option<&Value>) -> Result<Self, GrammarError> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(ResponseFormat::Text) };
        match value.get("type").and_then(Value::as_str) {
            Some("text") => Ok(ResponseFormat::Text),
            Some("json_object") => Ok(ResponseFormat::Json(Schema::object(FIELD))),
            Some("json_schema") => read_schema(value.get("json_schema")).map(ResponseFormat::Json),
            _ => Err(GrammarError::new(format!("{FIELD}.type"), "must be one of text, json_object and json_schema")),
        }
    }
}

fn read_schema(named: Option<&Value>) -> Result<Schema, GrammarError> {
    let field = format!("{FIELD}.json_schema");
    let Some(named) = named.and_then(Value::as_object) else {
        return Err(GrammarError::new(field, "must be an object with name and schema"));
    };
    if named.get("name").is_some_and(|name| !name.is_string()) {
        return Err(GrammarError::new(format!("{field}.name"), "must be a string"));
    }
    if named.get("strict").is_some_and(|strict| !strict.is_boolean() && !strict.is_null()) {
        return Err(GrammarError::new(format!("{field}.strict"), "must be true or false"));
    }
    let field = format!("{field}.schema");
    match named.get("schema") {
        Some(schema) => Schema::new(schema, field),
        None => Err(GrammarError::new(field, "is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: Value, expected: &str) {
        let text = match ResponseFormat::read(Some(&value)) {
            Ok(ResponseFormat::Text) => "text".into(),
            Ok(ResponseFormat::Json(schema)) => format!("{} of {} bytes", schema.field, schema.bytes()),
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn the_three_kinds_are_read() {
        assert_eq!(ResponseFormat::read(None), Ok(ResponseFormat::Text));
        check(json!(null), "text");
        check(json!({"type": "text"}), "text");
        check(json!({"type": "json_object"}), "response_format of 17 bytes");
        let named = json!({"name": "a", "strict": true, "schema": {"type": "array"}});
        check(json!({"type": "json_schema", "json_schema": named}), "response_format.json_schema.schema of 16 bytes");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let schema = |named: Value| json!({"type": "json_schema", "json_schema": named});
        check(json!("json"), "response_format.type: must be one of text, json_object and json_schema");
        check(json!({"type": "yaml"}), "response_format.type: must be one of text, json_object and json_schema");
        check(schema(json!(1)), "response_format.json_schema: must be an object with name and schema");
        check(schema(json!({"name": 1})), "response_format.json_schema.name: must be a string");
        check(schema(json!({"name": "a"})), "response_format.json_schema.schema: is missing");
        check(
            schema(json!({"schema": true})),
            "response_format.json_schema.schema: must be a JSON schema, which is an object",
        );
        check(schema(json!({"strict": 1})), "response_format.json_schema.strict: must be true or false");
        let mut deep = json!({});
        for _ in 0..40 {
            deep = json!({"properties": {"a": deep}});
        }
        check(schema(json!({"schema": deep})), "response_format.json_schema.schema: is nested deeper than 64 values");
        let long = json!({"description": "x".repeat(70_000)});
        check(
            schema(json!({"schema": long})),
            "response_format.json_schema.schema: has 70018 bytes and may have 65536",
        );
    }
}
