//! Log-probabilities in the forms of both endpoints.

use engine::{PromptToken, TokenEvent};
use kv::TokenId;
use model::Tokenizer;
use serde_json::{Map, Value, json};

/// JSON has no infinity; this is what vLLM writes.
const LEAST: f32 = -9999.0;

/// A token, its log-probability where there is one, and the most likely tokens in its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scored {
    pub(crate) token: TokenId,
    pub(crate) logprob: Option<f32>,
    pub(crate) top: Vec<(TokenId, f32)>,
}

impl From<TokenEvent> for Scored {
    fn from(event: TokenEvent) -> Self {
        Scored { token: event.token, logprob: event.logprob, top: event.top }
    }
}

impl From<&PromptToken> for Scored {
    fn from(token: &PromptToken) -> Self {
        Scored { token: token.token, logprob: token.logprob, top: token.top.clone() }
    }
}

/// vLLM's `prompt_logprobs`: for each token of the prompt, an object by token id of the token itself and of the most
/// likely `top` in its place; null for the first, before which there is nothing.
pub(crate) fn prompt(tokens: &[PromptToken], top: usize, tokenizer: &Tokenizer) -> Value {
    let entry = |token: TokenId, logprob: f32, rank: u32| {
        let text = spelled(&tokenizer.token_bytes(token).unwrap_or_default());
        json!({"logprob": number(Some(logprob)), "rank": rank, "decoded_token": text})
    };
    let one = |token: &PromptToken| {
        let (Some(logprob), Some(rank)) = (token.logprob, token.rank) else { return Value::Null };
        let mut all = Map::new();
        all.insert(token.token.to_string(), entry(token.token, logprob, rank));
        for (rank, (token, logprob)) in (1..).zip(token.top.iter().take(top)) {
            all.insert(token.to_string(), entry(*token, *logprob, rank));
        }
        Value::Object(all)
    };
    tokens.iter().map(one).collect()
}

/// A chat's form: `{"content": [...]}`.
pub(crate) fn chat(tokens: &[Scored], tokenizer: &Tokenizer) -> Value {
    let entry = |token: TokenId, logprob: Option<f32>| {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        json!({"token": spelled(&bytes), "logprob": number(logprob), "bytes": bytes})
    };
    let content = tokens.iter().map(|scored| {
        let mut value = entry(scored.token, scored.logprob);
        let top = scored.top.iter().map(|(token, logprob)| entry(*token, Some(*logprob)));
        value["top_logprobs"] = Value::Array(top.collect());
        value
    });
    json!({"content": content.collect::<Vec<_>>()})
}

/// A completion's form: four lists. `start` is the position of the first token's text, in characters; the position
/// behind the last is returned beside it.
pub(crate) fn completion(tokens: &[Scored], start: usize, tokenizer: &Tokenizer) -> (Value, usize) {
    let spelled_token = |token: TokenId| spelled(&tokenizer.token_bytes(token).unwrap_or_default());
    let (mut texts, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    let mut position = start;
    for scored in tokens {
        let text = spelled_token(scored.token);
        offsets.push(position);
        position += text.chars().count();
        logprobs.push(number(scored.logprob));
        tops.push(match scored.logprob {
            None => Value::Null,
            Some(own) => {
                let mut top: Map<String, Value> = Map::new();
                for (token, logprob) in &scored.top {
                    // The more likely of two tokens that are spelled alike stays.
                    top.entry(spelled_token(*token)).or_insert(number(Some(*logprob)));
                }
                // The token itself is always among them.
                top.entry(text.clone()).or_insert(number(Some(own)));
                Value::Object(top)
            }
        });
        texts.push(text);
    }
    let value = json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets});
    (value, position)
}

/// A token's text; bytes that are no text of their own are written as OpenAI does.
pub(crate) fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => {
            let hex = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", hex.collect::<String>())
        }
    }
}

fn number(logprob: Option<f32>) -> Value {
    logprob.map_or(Value::Null, |logprob| json!(logprob.max(LEAST)))
}
