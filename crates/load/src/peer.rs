//! What a server says about itself before the load: its model, its vocabulary, how many tokens a word takes.

use crate::body::BodyTemplate;
use crate::chunk::Usage;
use crate::client::Client;
use crate::failure::Failure;
use crate::prompt::{Prompt, WordSource};
use crate::random::Random;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

/// Words of the text by which tokens per word are measured.
const SAMPLE_WORDS: usize = 256;
/// What a word takes where nobody says: common words are one token in most vocabularies.
const TOKENS_PER_WORD_DEFAULT: f64 = 1.2;

/// A server's first model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Peer {
    pub(crate) model: String,
    /// Number of token ids, where the list of models says so.
    pub(crate) vocab: Option<u32>,
}

/// How many tokens a word takes, and who said so.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct TokensPerWord {
    pub(crate) tokens: f64,
    pub(crate) by: MeasuredBy,
}

/// Where a number of tokens is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MeasuredBy {
    /// The server's `/tokenize`.
    Tokenize,
    /// The usage of an answer of one token.
    Usage,
    /// Nobody: the server says neither.
    Assumed,
}

/// Asks for the list of models; `model` is taken as given.
pub(crate) async fn discover(client: &Client, model: Option<&str>) -> Result<Peer, Failure> {
    let list = match (client.get("/v1/models").await, model) {
        (Ok(list), _) => list,
        // A server need not list models to somebody who names one, but it must be there.
        (Err(Failure::Status { .. } | Failure::Malformed(_)), Some(_)) => Value::Null,
        (Err(failure), _) => return Err(failure),
    };
    let entries = list["data"].as_array().map_or(&[][..], Vec::as_slice);
    let entry = match model {
        Some(model) => entries.iter().find(|entry| entry["id"] == model),
        None => entries.first(),
    };
    let listed = entry.and_then(|entry| entry["id"].as_str());
    let model = model.or(listed).ok_or_else(|| Failure::Malformed("/v1/models lists no model".into()))?;
    Ok(Peer { model: model.to_string(), vocab: entry.and_then(vocab) })
}

/// In llama.cpp's place, or beside the id.
fn vocab(entry: &Value) -> Option<u32> {
    let size = entry["meta"]["n_vocab"].as_u64().or(entry["vocab_size"].as_u64())?;
    u32::try_from(size).ok().filter(|size| 0 < *size)
}

/// Counts the tokens of a sample.
pub(crate) async fn tokens_per_word(
    client: &Client,
    template: &BodyTemplate,
    words: &WordSource,
    seed: u64,
) -> Result<TokensPerWord, Failure> {
    let sample = words.words(SAMPLE_WORDS, Random::new(&[seed])).join(" ");
    // vLLM and SGLang read `prompt`, llama.cpp `content`.
    let body = json!({"model": template.model, "prompt": sample, "content": sample});
    let per_word = |tokens: u64, by| TokensPerWord { tokens: tokens as f64 / SAMPLE_WORDS as f64, by };
    let answer = client.post("/tokenize", Bytes::from(body.to_string())).await;
    if let Some(tokens) = answer.ok().and_then(|answer| token_count(&answer)) {
        return Ok(per_word(tokens, MeasuredBy::Tokenize));
    }
    let answer = client.post(template.endpoint.path(), template.single(&Prompt::Text(sample))).await?;
    Ok(match Usage::of(&answer).filter(|usage| 0 < usage.prompt_tokens) {
        Some(usage) => per_word(usage.prompt_tokens, MeasuredBy::Usage),
        None => TokensPerWord { tokens: TOKENS_PER_WORD_DEFAULT, by: MeasuredBy::Assumed },
    })
}

fn token_count(answer: &Value) -> Option<u64> {
    let listed = || answer["tokens"].as_array().map(|tokens| tokens.len() as u64);
    answer["count"].as_u64().or_else(listed).filter(|count| 0 < *count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_vocabularies_are_found() {
        assert_eq!(token_count(&json!({"count": 3, "tokens": [1]})), Some(3));
        assert_eq!(token_count(&json!({"tokens": [1, 2]})), Some(2));
        assert_eq!(token_count(&json!({"error": "no"})), None);
        assert_eq!(vocab(&json!({"meta": {"n_vocab": 516}})), Some(516));
        assert_eq!(vocab(&json!({"vocab_size": 0})), None);
    }
}
