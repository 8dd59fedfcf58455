//! One piece of a streamed answer, read leniently: servers agree on little beyond the first choice's text.

use crate::failure::Failure;
use serde_json::Value;

/// A `data:` object of a completion or chat stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    value: Value,
}

/// What the server counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, its template included.
    pub prompt_tokens: u64,
    /// Tokens of all choices.
    pub completion_tokens: u64,
    /// Prompt tokens that the server had in a cache, where it says so.
    pub cached_tokens: Option<u64>,
}

impl Chunk {
    /// Reads it.
    ///
    /// # Errors
    /// No JSON object, or one that carries an error.
    pub fn parse(data: &str) -> Result<Self, Failure> {
        let value: Value =
            serde_json::from_str(data).map_err(|error| Failure::Malformed(format!("{error} in: {}", start(data))))?;
        if !value.is_object() {
            return Err(Failure::Malformed(format!("no object: {}", start(data))));
        }
        match error_of(&value) {
            Some(message) => Err(Failure::InStream(message)),
            None => Ok(Chunk { value }),
        }
    }

    /// The first choice's text: a completion's, or a chat's content.
    #[must_use]
    pub fn text(&self) -> &str {
        let choice = &self.value["choices"][0];
        choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or("")
    }

    /// Whether it brings tokens of the answer: text, reasoning, tool calls or ids, and not only a role or usage.
    #[must_use]
    pub fn has_tokens(&self) -> bool {
        const FIELDS: [&str; 6] = ["text", "content", "reasoning_content", "reasoning", "tool_calls", "token_ids"];
        let filled = |value: &Value| match value {
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => false,
        };
        let brings = |object: &Value| FIELDS.iter().any(|field| filled(&object[field]));
        self.choices().any(|choice| brings(choice) || brings(&choice["delta"]))
    }

    /// Whether a choice says why it ended.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.choices().any(|choice| choice["finish_reason"].is_string())
    }

    /// What the server counted, where this chunk says so.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        Usage::of(&self.value)
    }

    /// The whole object, for fields that only some servers have.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    fn choices(&self) -> impl Iterator<Item = &Value> {
        self.value["choices"].as_array().into_iter().flatten()
    }
}

impl Usage {
    /// Of an answer or a chunk.
    pub(crate) fn of(value: &Value) -> Option<Self> {
        let usage = &value["usage"];
        Some(Usage {
            prompt_tokens: usage["prompt_tokens"].as_u64()?,
            // An answer of no token may leave it out.
            completion_tokens: usage["completion_tokens"].as_u64().unwrap_or(0),
            cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
        })
    }
}

/// The message of an error object, in the shapes of OpenAI, vLLM and FastAPI.
pub(crate) fn error_of(value: &Value) -> Option<String> {
    let said = |value: &Value| value.as_str().map(str::to_string).or_else(|| Some(value["message"].as_str()?.into()));
    let error = &value["error"];
    if !error.is_null() {
        return Some(said(error).unwrap_or_else(|| start(&error.to_string()).to_string()));
    }
    if value["object"] == "error" { said(value) } else { None }
}

/// As much of a text as a message can bear.
pub(crate) fn start(text: &str) -> &str {
    let end = text.char_indices().nth(300).map_or(text.len(), |(end, _)| end);
    text[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_tokens() {
        let check = |data: &str, text: &str, tokens: bool, last: bool| {
            let chunk = Chunk::parse(data).expect(data);
            assert_eq!((chunk.text(), chunk.has_tokens(), chunk.is_last()), (text, tokens, last), "{data}");
        };
        check(r#"{"choices":[{"text":"hi","finish_reason":null}]}"#, "hi", true, false);
        check(r#"{"choices":[{"delta":{"content":"hi"}}]}"#, "hi", true, false);
        check(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, "", false, false);
        check(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, "", true, false);
        check(r#"{"choices":[{"text":"","token_ids":[7]}]}"#, "", true, false);
        check(r#"{"choices":[{"text":"","finish_reason":"length"}]}"#, "", false, true);
        check(r#"{"choices":[],"usage":{"prompt_tokens":3}}"#, "", false, false);
        check(r#"{"error":null,"choices":[{"text":"x"},{"text":"y"}]}"#, "x", true, false);
    }

    #[test]
    fn usage_is_read_where_it_is() {
        let data = r#"{"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}}"#;
        let usage = Usage { prompt_tokens: 9, completion_tokens: 4, cached_tokens: Some(8) };
        assert_eq!(Chunk::parse(data).expect("a chunk").usage(), Some(usage));
        assert_eq!(Chunk::parse(r#"{"usage":null}"#).expect("a chunk").usage(), None);
    }

    #[test]
    fn errors_are_errors_in_any_shape() {
        let check = |data: &str, wanted: Failure| assert_eq!(Chunk::parse(data), Err(wanted));
        check(r#"{"error":{"message":"too long","code":400}}"#, Failure::InStream("too long".into()));
        check(r#"{"error":"too long"}"#, Failure::InStream("too long".into()));
        check(r#"{"error":{"code":5}}"#, Failure::InStream(r#"{"code":5}"#.into()));
        check(r#"{"object":"error","message":"too long"}"#, Failure::InStream("too long".into()));
        check("[1]", Failure::Malformed("no object: [1]".into()));
        assert!(matches!(Chunk::parse("{"), Err(Failure::Malformed(_))));
    }
}
