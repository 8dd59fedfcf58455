//! The field `prompt`: a text, tokens, or a list of either.

use crate::app::App;
use crate::config::PROMPTS_MAX;
use crate::error::ApiError;
use crate::fields::{Fields, whole};
use kv::TokenId;
use serde_json::Value;

/// One prompt's tokens, and its text where it came as text.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) text: Option<String>,
}

/// All prompts of a completion request.
///
/// # Errors
/// There is none, it is of another type, or there are too many.
pub(crate) fn take(fields: &mut Fields, app: &App) -> Result<Vec<Prompt>, ApiError> {
    let add_special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let value = fields.take("prompt");
    let value = value.ok_or_else(|| ApiError::invalid("prompt", "prompt is missing: give a text or token ids"))?;
    let list = match value {
        Value::Array(list) if list.first().is_none_or(|first| whole(first).is_none()) => list,
        one => vec![one],
    };
    if PROMPTS_MAX < list.len() {
        let message = format!("prompt has {} prompts and may have {PROMPTS_MAX}: send them in turn", list.len());
        return Err(ApiError::invalid("prompt", message));
    }
    let prompts = list.into_iter().map(|value| one(value, app, add_special, fields)).collect::<Result<Vec<_>, _>>()?;
    match prompts.is_empty() || prompts.iter().any(|prompt| prompt.tokens.is_empty()) {
        true => Err(ApiError::invalid("prompt", "prompt is empty: give at least one token")),
        false => Ok(prompts),
    }
}

/// A text, or token ids.
fn one(value: Value, app: &App, add_special: bool, fields: &Fields) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => {
            let encoded = app.opened.tokenizer.encode(&text, add_special);
            let tokens = encoded.map_err(|error| ApiError::internal(error.to_string()))?;
            Ok(Prompt { tokens, text: Some(text) })
        }
        Value::Array(list) => Ok(Prompt { tokens: token_ids(&list, fields, "prompt")?, text: None }),
        other => Err(fields.wrong("prompt", "a string, a list of strings, token ids or a list of those", &other)),
    }
}

/// A list of token ids; whether the model knows them is the engine's affair.
///
/// # Errors
/// An entry is no id.
pub(crate) fn token_ids(list: &[Value], fields: &Fields, field: &str) -> Result<Vec<TokenId>, ApiError> {
    let id = |value: &Value| whole(value).and_then(|id| TokenId::try_from(id).ok());
    list.iter().map(|value| id(value).ok_or_else(|| fields.wrong(field, "a list of token ids", value))).collect()
}
