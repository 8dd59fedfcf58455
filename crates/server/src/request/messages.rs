//! The field `messages`: checked, and brought to the form that chat templates read.

use crate::config::MESSAGES_MAX;
use crate::error::ApiError;
use crate::fields::{Fields, shown};
use model::Message;
use serde_json::{Map, Value};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The messages of a chat, oldest first.
///
/// # Errors
/// There is none, or one is not of a form that a text model reads; the message says which.
pub(crate) fn take(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let list = fields.list("messages", MESSAGES_MAX)?;
    let list = list.filter(|list| !list.is_empty());
    let list = list.ok_or_else(|| ApiError::invalid("messages", "messages is missing or empty: give at least one"))?;
    list.into_iter().enumerate().map(|(i, message)| one(message, &format!("messages[{i}]"))).collect()
}

fn one(value: Value, at: &str) -> Result<Message, ApiError> {
    let Value::Object(mut map) = value else {
        return Err(ApiError::invalid(at, format!("{at} must be an object; it is {}", shown(&value))));
    };
    let role = match map.remove("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role,
        other => {
            let given = other.map_or("missing".into(), |value| shown(&value));
            let message = format!("{at}.role must be one of {}; it is {given}", ROLES.join(", "));
            return Err(ApiError::invalid(format!("{at}.role"), message));
        }
    };
    // Templates know the older name.
    let role = if role == "developer" { "system".into() } else { role };
    map.retain(|_, value| !value.is_null());
    if let Some(calls) = map.get_mut("tool_calls") {
        check_calls(calls, &format!("{at}.tool_calls"))?;
    }
    let may_be_absent = role == "assistant";
    let content = content(map.remove("content"), may_be_absent, at)?;
    Ok(Message { role, content: Value::String(content), other: map })
}

/// A text, or text parts joined by line ends.
fn content(value: Option<Value>, may_be_absent: bool, at: &str) -> Result<String, ApiError> {
    let at = format!("{at}.content");
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let part = |(i, part): (usize, Value)| text_of(part, &format!("{at}[{i}]"));
            Ok(parts.into_iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        None if may_be_absent => Ok(String::new()),
        other => {
            let given = other.map_or("missing".into(), |value| shown(&value));
            Err(ApiError::invalid(at.clone(), format!("{at} must be a string or a list of text parts; it is {given}")))
        }
    }
}

fn text_of(part: Value, at: &str) -> Result<String, ApiError> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("nothing");
    let field = if kind == "refusal" { "refusal" } else { "text" };
    match (kind, part.get(field)) {
        ("text" | "input_text" | "refusal", Some(Value::String(text))) => Ok(text.clone()),
        ("text" | "input_text" | "refusal", _) => Err(ApiError::invalid(at, format!("{at}.{field} must be a string"))),
        (kind, _) => {
            Err(ApiError::unsupported(at, format!("{at}.type is {kind}: the model reads text only (type \"text\")")))
        }
    }
}

/// Arguments come as JSON in a string; templates read the value.
fn check_calls(calls: &mut Value, at: &str) -> Result<(), ApiError> {
    let Value::Array(list) = calls else {
        return Err(ApiError::invalid(at, format!("{at} must be a list; it is {}", shown(calls))));
    };
    for (i, call) in list.iter_mut().enumerate() {
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let named = function.filter(|function| function.get("name").is_some_and(Value::is_string));
        let Some(function) = named else {
            return Err(ApiError::invalid(at, format!("{at}[{i}].function.name is missing")));
        };
        if let Some(Value::String(text)) = function.get("arguments") {
            let parsed =
                if text.trim().is_empty() { Ok(Value::Object(Map::new())) } else { serde_json::from_str(text) };
            let parsed = parsed.map_err(|error| {
                ApiError::invalid(at, format!("{at}[{i}].function.arguments is not valid JSON: {error}"))
            })?;
            function.insert("arguments".into(), parsed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(messages: Value, expected: &str) {
        let mut fields = Fields::of(json!({"messages": messages})).expect("an object");
        let text = match take(&mut fields) {
            Ok(messages) => serde_json::to_string(&messages).expect("plain data"),
            Err(error) => format!("{}: {}", error.param.unwrap_or_default(), error.message),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn messages_take_the_form_that_templates_read() {
        check(json!([{"role": "developer", "content": "Be brief."}]), r#"[{"role":"system","content":"Be brief."}]"#);
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        check(
            json!([{"role": "user", "content": parts, "name": "x"}]),
            r#"[{"role":"user","content":"a\nb","name":"x"}]"#,
        );
        let calls = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]);
        check(
            json!([{"role": "assistant", "content": null, "tool_calls": calls}]),
            concat!(
                r#"[{"role":"assistant","content":"","tool_calls":[{"id":"c","type":"function","#,
                r#""function":{"name":"f","arguments":{"a":1}}}]}]"#
            ),
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        check(json!([]), "messages: messages is missing or empty: give at least one");
        check(json!("hello"), "messages: messages must be a list; it is \"hello\"");
        check(json!([7]), "messages[0]: messages[0] must be an object; it is 7");
        let roles = "must be one of system, developer, user, assistant, tool";
        check(
            json!([{"role": "robot", "content": ""}]),
            &format!("messages[0].role: messages[0].role {roles}; it is \"robot\""),
        );
        check(
            json!([{"role": "user"}]),
            "messages[0].content: messages[0].content must be a string or a list of text parts; it is missing",
        );
        check(
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "messages[0].content[0]: messages[0].content[0].type is image_url: the model reads text only \
             (type \"text\")",
        );
        let calls = json!([{"function": {"name": "f", "arguments": "{"}}]);
        check(
            json!([{"role": "assistant", "tool_calls": calls}]),
            "messages[0].tool_calls: messages[0].tool_calls[0].function.arguments is not valid JSON: \
             EOF while parsing an object at line 1 column 1",
        );
    }
}
