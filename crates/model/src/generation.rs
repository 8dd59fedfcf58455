//! How a model wants to be sampled: `generation_config.json`, or what a GGUF file says about its tokens.

use crate::json::Fields;
use crate::{Error, ModelConfig};

/// The defaults of requests that do not say otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// A sequence ends after any of these; ascending, no duplicates.
    pub end_tokens: Vec<u32>,
    /// `None`: the model says nothing. `Some(0.0)`: greedy.
    pub temperature: Option<f32>,
    /// Keep the k most likely tokens.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens with this probability.
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the best one's probability.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens already seen; 1 is neutral.
    pub repetition_penalty: Option<f32>,
    /// Tokens of one answer.
    pub max_new_tokens: Option<usize>,
}

impl Generation {
    /// Parses the text of a `generation_config.json`; end tokens that it does not name come from `config`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not a JSON object, [`Error::Field`] for values outside their range.
    pub fn from_hugging_face(json: &[u8], file: &str, config: &ModelConfig) -> Result<Self, Error> {
        let fields = Fields::parse(json, file)?;
        let named = fields.token_ids("eos_token_id")?;
        let greedy = fields.bool_opt("do_sample")? == Some(false);
        let ranged = |field: &str, low: f64, high: f64| match fields.f64_opt(field)? {
            Some(value) if !(low..=high).contains(&value) => {
                Err(fields.wrong(field, format!("is {value}, expected {low} to {high}")))
            }
            value => Ok(value.map(|value| value as f32)),
        };
        let temperature = ranged("temperature", 0.0, 100.0)?;
        Ok(Self {
            end_tokens: ascending(if named.is_empty() { config.eos.clone() } else { named }),
            temperature: if greedy { Some(0.0) } else { temperature },
            top_k: fields.usize_opt("top_k")?.and_then(|k| u32::try_from(k).ok()).filter(|k| 0 < *k),
            top_p: ranged("top_p", 0.0, 1.0)?,
            min_p: ranged("min_p", 0.0, 1.0)?,
            repetition_penalty: ranged("repetition_penalty", 0.01, 100.0)?,
            max_new_tokens: fields.usize_opt("max_new_tokens")?,
        })
    }

    /// The defaults of a model that has no `generation_config.json`.
    pub fn from_end_tokens(end_tokens: Vec<u32>) -> Self {
        Self { end_tokens: ascending(end_tokens), ..Self::default() }
    }
}

fn ascending(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}
