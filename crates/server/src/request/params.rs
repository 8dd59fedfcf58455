//! The parameters that completions and chats share.

use super::attention;
use super::limits::{check_logprobs, take_stop};
use super::prompt::token_ids;
use crate::app::App;
use crate::config::{CHOICES_MAX, COUNT_MAX, LOGIT_BIAS_MAX, MAX_TOKENS_DEFAULT, STOP_TOKENS_MAX, TOP_LOGPROBS_MAX};
use crate::error::ApiError;
use crate::fields::{Fields, shown, whole};
use backend::{BIAS_MOST, PENALTY_MOST, Sampling, TEMPERATURE_MOST};
use engine::{Attention, Request, Source};
use kv::TokenId;
use serde_json::Value;
use std::hash::{BuildHasher, RandomState};

/// Everything but the prompt.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) attention: Attention,
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: usize,
    /// Completions that are returned, of each prompt.
    pub(crate) choices: usize,
    /// Completions that are drawn: `best_of`, or as many as are returned.
    pub(crate) drawn: usize,
    pub(crate) stop_strings: Vec<String>,
    pub(crate) stop_tokens: Vec<TokenId>,
    pub(crate) ignore_eos: bool,
    pub(crate) skip_special: bool,
    /// Report the prompt's log-probabilities, with so many alternatives.
    pub(crate) prompt_logprobs: Option<usize>,
    pub(crate) stream: Stream,
    /// Full names of fields inside of fields that nobody knows.
    pub(crate) ignored: Vec<String>,
}

/// How the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// In one piece.
    No,
    /// As events, and whether usage is the last.
    Yes { usage: bool },
}

/// Reads them; `logprobs` (the number of alternatives, where log-probabilities are wanted) is read by the caller, since
/// the two endpoints spell it differently.
///
/// # Errors
/// A value of a wrong type or out of its range.
pub(crate) fn take(fields: &mut Fields, app: &App, logprobs: Option<usize>) -> Result<Params, ApiError> {
    let longest = app.config.max_model_len as u64;
    let most_tokens = fields.count("max_completion_tokens", 0..=COUNT_MAX)?;
    let max_tokens = fields.count("max_tokens", 0..=COUNT_MAX)?;
    let max_tokens = most_tokens.or(max_tokens).unwrap_or(MAX_TOKENS_DEFAULT).min(longest as usize);
    let choices = fields.count("n", 1..=CHOICES_MAX)?.unwrap_or(1);
    let stop_tokens = fields.list("stop_token_ids", STOP_TOKENS_MAX)?.unwrap_or_default();
    let stop_tokens = token_ids(&stop_tokens, fields, "stop_token_ids")?;
    let prompt_logprobs = fields.count("prompt_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    let mut ignored = Vec::new();
    let mut params = Params {
        attention: attention::take(fields, app)?,
        sampling: take_sampling(fields, app, logprobs)?,
        max_tokens,
        choices,
        drawn: choices,
        stop_strings: take_stop(fields)?,
        stop_tokens,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        skip_special: fields.flag("skip_special_tokens")?.unwrap_or(true),
        prompt_logprobs,
        stream: take_stream(fields, &mut ignored)?,
        ignored,
    };
    if 0 < params.sampling.min_tokens {
        let ends = if params.ignore_eos { &[][..] } else { &app.opened.generation.end_tokens };
        params.sampling.suppressed = [ends, &params.stop_tokens].concat();
    }
    if prompt_logprobs.is_some() && params.stream != Stream::No {
        let message = "prompt_logprobs cannot be streamed: leave stream out";
        return Err(ApiError::unsupported("prompt_logprobs", message));
    }
    Ok(params)
}

impl Params {
    /// Refuses a response to so many prompts of so many tokens that would hold too many log-probabilities.
    ///
    /// # Errors
    /// Their number is above its bound.
    pub(crate) fn check_logprobs(
        &self,
        prompts: usize,
        tokens: usize,
        logprobs: Option<usize>,
    ) -> Result<(), ApiError> {
        if let Some(top) = logprobs {
            let factors = [prompts, self.drawn, self.max_tokens, 1 + top];
            check_logprobs("logprobs", "prompts x completions x max_tokens x (1 + alternatives)", &factors)?;
        }
        if let Some(top) = self.prompt_logprobs {
            let factors = [tokens, self.choices, 1 + top];
            check_logprobs("prompt_logprobs", "prompt tokens x n x (1 + alternatives)", &factors)?;
        }
        Ok(())
    }

    /// What the engine is asked for one prompt.
    pub(crate) fn request(&self, tokens: Vec<TokenId>, app: &App) -> Request {
        Request {
            sampling: self.sampling.clone(),
            choices: self.drawn,
            stop_strings: self.stop_strings.clone(),
            stop_tokens: self.stop_tokens.clone(),
            end_tokens: app.opened.generation.end_tokens.clone(),
            ignore_eos: self.ignore_eos,
            skip_special: self.skip_special,
            prompt_logprobs: self.prompt_logprobs,
            ..Request::new(Source::Prompt(tokens), self.attention, self.max_tokens)
        }
    }
}

/// What neither the request nor the model says is OpenAI's default: a temperature of 1, no filters.
fn take_sampling(fields: &mut Fields, app: &App, logprobs: Option<usize>) -> Result<Sampling, ApiError> {
    let (model, off) = (&app.opened.generation, Sampling::default());
    let vocab = app.opened.config().vocab_size as u64;
    let mut number = |field: &str, low: f32, high: f32| -> Result<Option<f32>, ApiError> {
        Ok(fields.number(field, f64::from(low)..=f64::from(high))?.map(|x| x as f32))
    };
    let temperature = number("temperature", 0.0, TEMPERATURE_MOST)?;
    let top_p = number("top_p", 0.0, 1.0)?;
    let min_p = number("min_p", 0.0, 1.0)?;
    let repetition_penalty = number("repetition_penalty", 0.01, 100.0)?;
    let presence_penalty = number("presence_penalty", -PENALTY_MOST, PENALTY_MOST)?;
    let frequency_penalty = number("frequency_penalty", -PENALTY_MOST, PENALTY_MOST)?;
    if top_p == Some(0.0) {
        return Err(ApiError::invalid("top_p", "top_p must lie above 0 and at most at 1"));
    }
    Ok(Sampling {
        temperature: temperature.or(model.temperature).unwrap_or(1.0),
        top_k: take_top_k(fields, vocab)?.or(model.top_k.map(|k| k as usize)).unwrap_or(off.top_k),
        top_p: top_p.or(model.top_p).unwrap_or(off.top_p),
        min_p: min_p.or(model.min_p).unwrap_or(off.min_p),
        repetition_penalty: repetition_penalty.or(model.repetition_penalty).unwrap_or(off.repetition_penalty),
        presence_penalty: presence_penalty.unwrap_or(off.presence_penalty),
        frequency_penalty: frequency_penalty.unwrap_or(off.frequency_penalty),
        logit_bias: take_logit_bias(fields)?,
        min_tokens: fields.count("min_tokens", 0..=COUNT_MAX)?.unwrap_or(off.min_tokens),
        seed: take_seed(fields)?,
        top_logprobs: logprobs.unwrap_or(0),
        ..off
    })
}

/// -1, as vLLM writes it, and 0 keep all.
fn take_top_k(fields: &mut Fields, vocab: u64) -> Result<Option<usize>, ApiError> {
    match fields.take("top_k") {
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(0)),
        Some(value) => {
            let k = whole(&value).filter(|k| *k <= COUNT_MAX);
            let k = k.ok_or_else(|| fields.wrong("top_k", "-1 or a whole number from 0 to 2147483648", &value))?;
            Ok(Some(k.min(vocab) as usize))
        }
        None => Ok(None),
    }
}

/// A request without a seed draws differently each time.
fn take_seed(fields: &mut Fields) -> Result<u64, ApiError> {
    match fields.take("seed") {
        None => Ok(RandomState::new().hash_one(0)),
        Some(value) => {
            let seed = value.as_u64().or(value.as_i64().map(|seed| seed as u64));
            seed.ok_or_else(|| fields.wrong("seed", "a whole number of 64 bits", &value))
        }
    }
}

/// `{"42": -100}`: token ids are written as strings.
fn take_logit_bias(fields: &mut Fields) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.wrong("logit_bias", "an object of token ids and numbers", &other)),
    };
    if LOGIT_BIAS_MAX < map.len() {
        let message = format!("logit_bias has {} entries and may have {LOGIT_BIAS_MAX}", map.len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    let entry = |(id, bias): (String, Value)| {
        let token: Option<TokenId> = id.parse().ok();
        let token = token.ok_or_else(|| {
            ApiError::invalid("logit_bias", format!("logit_bias has the key '{id}', which is no token id"))
        })?;
        let bias = bias.as_f64().map(|bias| bias as f32).filter(|bias| bias.abs() <= BIAS_MOST).ok_or_else(|| {
            let message = format!("logit_bias.{id} must be a number within +-{BIAS_MOST}; it is {}", shown(&bias));
            ApiError::invalid("logit_bias", message)
        })?;
        Ok((token, bias))
    };
    map.into_iter().map(entry).collect()
}

fn take_stream(fields: &mut Fields, ignored: &mut Vec<String>) -> Result<Stream, ApiError> {
    let streams = fields.flag("stream")?.unwrap_or(false);
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(if streams { Stream::Yes { usage: false } } else { Stream::No });
    };
    if !streams {
        return Err(ApiError::invalid("stream_options", "stream_options is only allowed with stream: true"));
    }
    let usage = options.flag("include_usage")?.unwrap_or(false);
    let each = options.flag("continuous_usage_stats")?.unwrap_or(false);
    // Noise against tracing by packet sizes: there is none to switch off.
    options.flag("include_obfuscation")?;
    if each {
        let name = "stream_options.continuous_usage_stats";
        return Err(ApiError::unsupported(name, format!("{name} is not supported: usage is the last event")));
    }
    ignored.extend(options.rest());
    Ok(Stream::Yes { usage })
}
