//! Bounds that concern a whole request: each is refused with its number.

use crate::config::{LOGPROBS_MAX, STOP_BYTES_MAX, STOP_MAX};
use crate::error::ApiError;
use crate::fields::Fields;
use serde_json::Value;

/// The field `stop`: a text or a list of texts.
///
/// # Errors
/// Another type, too many, too long or empty.
pub(crate) fn take_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if STOP_MAX < list.len() {
        let message = format!("stop has {} strings and may have {STOP_MAX}", list.len());
        return Err(ApiError::invalid("stop", message));
    }
    let text = |value: Value| match value {
        Value::String(text) if text.is_empty() => Err(ApiError::invalid("stop", "stop has an empty string")),
        Value::String(text) if STOP_BYTES_MAX < text.len() => {
            let message = format!("stop has a string of {} bytes; at most {STOP_BYTES_MAX} are allowed", text.len());
            Err(ApiError::invalid("stop", message))
        }
        Value::String(text) => Ok(text),
        other => Err(fields.wrong("stop", "a string or a list of strings", &other)),
    };
    list.into_iter().map(text).collect()
}

/// Refuses a response that would hold too many log-probabilities; `what` names the product.
///
/// # Errors
/// It is above [`LOGPROBS_MAX`].
pub(crate) fn check_logprobs(param: &str, what: &str, factors: &[usize]) -> Result<(), ApiError> {
    let product = factors.iter().try_fold(1usize, |product, factor| product.checked_mul(*factor));
    if product.is_some_and(|product| product <= LOGPROBS_MAX) {
        return Ok(());
    }
    let product = factors.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
    let message = format!("{what} = {product} log-probabilities in one response, and {LOGPROBS_MAX} are the most");
    Err(ApiError::invalid(param, message))
}
