//! Parameters that clients of other servers know and that cannot be honoured here: each is refused by name, unless it
//! says what happens anyway.

use crate::error::ApiError;
use crate::fields::Fields;
use serde_json::{Value, json};

/// A parameter, the values that change nothing, and what to do instead.
type Known = (&'static str, fn(&Value) -> bool, &'static str);

const BOTH: &[Known] = &[
    ("use_beam_search", is_off, "use best_of with a temperature"),
    ("length_penalty", is_one, "there is no beam search"),
    ("early_stopping", is_off, "there is no beam search"),
    ("logits_processors", is_empty, "use logit_bias"),
    ("bad_words", is_empty, "use logit_bias"),
    ("allowed_token_ids", is_empty, "use logit_bias or response_format"),
    ("include_stop_str_in_output", is_off, "stop strings are never part of the answer"),
    ("truncate_prompt_tokens", is_empty, "shorten the prompt; no token of it is dropped in silence"),
    ("spaces_between_special_tokens", is_on, "leave it out"),
    ("guided_json", is_empty, "use response_format"),
    ("guided_regex", is_empty, "use response_format"),
    ("guided_choice", is_empty, "use response_format"),
    ("guided_grammar", is_empty, "use response_format"),
    ("structured_outputs", is_empty, "use response_format"),
    ("priority", is_zero, "requests run in the order of their arrival"),
    ("kv_transfer_params", is_empty, "this server does not share KV with others"),
    ("return_token_ids", is_off, "use logprobs, or /tokenize on the answer"),
];

const COMPLETION: &[Known] = &[
    ("suffix", is_empty, "there is no insertion; write it into the prompt"),
    ("tools", is_empty, "use /v1/chat/completions"),
    ("response_format", |value| value["type"] == "text", "use /v1/chat/completions"),
    ("prompt_embeds", is_empty, "send text or token ids"),
];

const CHAT: &[Known] = &[
    ("functions", is_empty, "use tools"),
    ("function_call", is_no_call, "use tool_choice"),
    ("audio", is_empty, "text only"),
    ("modalities", |value| *value == json!(["text"]), "text only"),
    ("prediction", is_empty, "there is no predicted output"),
    ("web_search_options", is_empty, "there is no web search"),
    ("store", is_off, "nothing is stored"),
    ("service_tier", |value| matches!(value.as_str(), Some("auto" | "default")), "there is one tier"),
    ("continue_final_message", is_off, "use /v1/completions"),
    ("add_generation_prompt", is_on, "use /v1/completions"),
    ("chat_template", is_empty, "the model's own template is used"),
    ("documents", is_empty, "write them into a message"),
    ("echo", is_off, "use /v1/completions"),
    ("best_of", is_one, "use n, or /v1/completions"),
];

/// Hints for others' caches and books, which change no answer.
const ADVISORY: &[&str] =
    &["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "request_id"];

/// Refuses what a completion request cannot have.
///
/// # Errors
/// The first parameter that would change the answer.
pub(crate) fn check_completion(fields: &mut Fields) -> Result<(), ApiError> {
    check(fields, BOTH.iter().chain(COMPLETION))
}

/// Refuses what a chat request cannot have.
///
/// # Errors
/// As [`check_completion`].
pub(crate) fn check_chat(fields: &mut Fields) -> Result<(), ApiError> {
    check(fields, BOTH.iter().chain(CHAT))
}

fn check<'a>(fields: &mut Fields, known: impl Iterator<Item = &'a Known>) -> Result<(), ApiError> {
    for field in ADVISORY {
        fields.take(field);
    }
    for (field, is_neutral, instead) in known {
        if let Some(value) = fields.take(field)
            && !is_neutral(&value)
        {
            return Err(ApiError::unsupported(*field, format!("{field} is not supported: {instead}")));
        }
    }
    Ok(())
}

fn is_off(value: &Value) -> bool {
    *value == json!(false)
}

fn is_on(value: &Value) -> bool {
    *value == json!(true)
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn is_no_call(value: &Value) -> bool {
    matches!(value.as_str(), Some("none" | "auto"))
}
