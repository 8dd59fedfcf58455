//! Typed access to the fields of a JSON object, with errors that name file, field and value.

use serde_json::{Map, Value};

use crate::Error;

/// A JSON object and where it came from. A field that is `null` counts as absent, except for [`Fields::has`].
pub(crate) struct Fields<'a> {
    object: std::borrow::Cow<'a, Map<String, Value>>,
    file: &'a str,
    prefix: String,
}

impl<'a> Fields<'a> {
    pub(crate) fn parse(json: &[u8], file: &'a str) -> Result<Self, Error> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(object)) => {
                Ok(Self { object: std::borrow::Cow::Owned(object), file, prefix: String::new() })
            }
            Ok(_) => Err(Error::corrupt(file, "expected a JSON object")),
            Err(error) => Err(Error::corrupt(file, format!("not valid JSON: {error}"))),
        }
    }

    pub(crate) fn new(object: &'a Map<String, Value>, file: &'a str) -> Self {
        Self { object: std::borrow::Cow::Borrowed(object), file, prefix: String::new() }
    }

    /// The same object, its fields called `outer.field` in messages.
    pub(crate) fn within(mut self, outer: &str) -> Self {
        self.prefix = format!("{outer}.");
        self
    }

    pub(crate) fn file(&self) -> &'a str {
        self.file
    }

    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is written at all, be it as `null`.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    pub(crate) fn usize(&self, field: &str) -> Result<usize, Error> {
        self.usize_opt(field)?.ok_or_else(|| self.missing(field))
    }

    pub(crate) fn usize_opt(&self, field: &str) -> Result<Option<usize>, Error> {
        self.typed(field, "a whole number", |value| value.as_u64().and_then(|value| value.try_into().ok()))
    }

    pub(crate) fn f64_opt(&self, field: &str) -> Result<Option<f64>, Error> {
        self.typed(field, "a number", Value::as_f64)
    }

    pub(crate) fn bool_opt(&self, field: &str) -> Result<Option<bool>, Error> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, field: &str) -> Result<&str, Error> {
        self.str_opt(field)?.ok_or_else(|| self.missing(field))
    }

    pub(crate) fn str_opt(&self, field: &str) -> Result<Option<&str>, Error> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, format!("is {other}, expected a text"))),
        }
    }

    /// A token id, or a list of them; empty where absent.
    pub(crate) fn token_ids(&self, field: &str) -> Result<Vec<u32>, Error> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.typed(field, "a token id or a list of token ids", |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    fn typed<T>(&self, field: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, Error> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.wrong(field, format!("is {}, expected {expected}", shortened(value)))),
            },
        }
    }

    pub(crate) fn missing(&self, field: &str) -> Error {
        self.wrong(field, "is missing")
    }

    pub(crate) fn wrong(&self, field: &str, problem: impl Into<String>) -> Error {
        Error::field(self.file, format!("{}{field}", self.prefix), problem)
    }

    pub(crate) fn unsupported(
        &self,
        field: &str,
        value: impl std::fmt::Display,
        supported: impl Into<String>,
    ) -> Error {
        Error::unsupported(self.file, format!("{}{field}", self.prefix), value, supported)
    }
}

/// A value for a message: a damaged file must not fill the screen.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
