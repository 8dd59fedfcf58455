//! The JSON body of a request.

use crate::prompt::Prompt;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Which of OpenAI's endpoints is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

impl Endpoint {
    /// Below the server's address.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Completions => "/v1/completions",
            Endpoint::Chat => "/v1/chat/completions",
        }
    }
}

/// What all bodies of a benchmark have in common.
#[derive(Clone, Debug)]
pub(crate) struct BodyTemplate {
    pub(crate) endpoint: Endpoint,
    pub(crate) model: String,
    /// Merged over everything else; null removes a member.
    pub(crate) extra: Map<String, Value>,
}

impl BodyTemplate {
    /// A streamed request for exactly `max_tokens` tokens.
    pub(crate) fn stream(&self, prompt: &Prompt, max_tokens: usize) -> Bytes {
        let more = json!({"stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true});
        self.bytes(prompt, max_tokens, more)
    }

    /// A request for one token, answered in one piece.
    pub(crate) fn single(&self, prompt: &Prompt) -> Bytes {
        self.bytes(prompt, 1, json!({"stream": false}))
    }

    /// Whether the server is asked to go on until the last token: only then are fewer a failure.
    pub(crate) fn is_exact(&self) -> bool {
        self.extra.get("ignore_eos").is_none_or(|value| *value == Value::Bool(true))
    }

    fn bytes(&self, prompt: &Prompt, max_tokens: usize, more: Value) -> Bytes {
        let prompt = match (self.endpoint, prompt) {
            (Endpoint::Chat, Prompt::Text(text)) => ("messages", json!([{"role": "user", "content": text}])),
            (_, prompt) => ("prompt", json!(prompt)),
        };
        let mut body = Map::new();
        body.insert("model".into(), json!(self.model));
        body.insert(prompt.0.into(), prompt.1);
        body.insert("max_tokens".into(), json!(max_tokens));
        body.insert("temperature".into(), json!(0));
        body.extend(more.as_object().cloned().unwrap_or_default());
        for (name, value) in &self.extra {
            match value {
                // Not `remove`, which would move another member to its place.
                Value::Null => drop(body.shift_remove(name)),
                value => drop(body.insert(name.clone(), value.clone())),
            }
        }
        Bytes::from(Value::Object(body).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(endpoint: Endpoint, prompt: Prompt, extra: Value, wanted: &str, exact: bool) {
        let extra = extra.as_object().cloned().expect("an object");
        let template = BodyTemplate { endpoint, model: "m".into(), extra };
        assert_eq!(template.stream(&prompt, 9), wanted);
        assert_eq!(template.is_exact(), exact);
    }

    #[test]
    fn bodies_say_what_was_asked() {
        check(
            Endpoint::Completions,
            Prompt::Ids(vec![1, 2]),
            json!({"attention": {"algorithm": "sketch"}}),
            concat!(
                r#"{"model":"m","prompt":[1,2],"max_tokens":9,"temperature":0,"stream":true,"#,
                r#""stream_options":{"include_usage":true},"ignore_eos":true,"attention":{"algorithm":"sketch"}}"#,
            ),
            true,
        );
        check(
            Endpoint::Chat,
            Prompt::Text("a b".into()),
            json!({"ignore_eos": null, "temperature": 1}),
            concat!(
                r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"max_tokens":9,"temperature":1,"#,
                r#""stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            false,
        );
    }
}
