//! `POST /v1/completions`.

use crate::answer::completion::CompletionStyle;
use crate::answer::{Job, answer};
use crate::app::App;
use crate::config::{CHOICES_MAX, TOP_LOGPROBS_MAX};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::params::{self, Params, Stream};
use crate::request::prompt::{self, Prompt};
use crate::request::{take_model, unsupported};
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use std::sync::Arc;
use std::time::Instant;

/// Continues prompts.
pub(crate) async fn completions(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    answer(&app, request, job).await
}

fn job(mut fields: Fields, app: &App) -> Result<Job, ApiError> {
    let model = take_model(&mut fields, app)?;
    unsupported::check_completion(&mut fields)?;
    let logprobs = take_logprobs(&mut fields)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let best_of = fields.count("best_of", 1..=CHOICES_MAX)?;
    let mut params = params::take(&mut fields, app, logprobs)?;
    if let Some(best_of) = best_of {
        if best_of < params.choices {
            let message = format!("best_of is {best_of} and n is {}: best_of is n or more", params.choices);
            return Err(ApiError::invalid("best_of", message));
        }
        if params.choices < best_of && params.stream != Stream::No {
            return Err(ApiError::unsupported("best_of", "best_of above n cannot be streamed: leave stream out"));
        }
        params.drawn = best_of;
    }
    let prompts = prompt::take(&mut fields, app)?;
    let prompt_top = params.prompt_logprobs;
    if let (true, Some(top)) = (echo, logprobs) {
        // The echoed prompt has log-probabilities like the completion.
        params.prompt_logprobs = params.prompt_logprobs.max(Some(top));
    }
    let tokens = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    params.check_logprobs(prompts.len(), tokens, logprobs)?;
    let together = app.config.max_queue + app.config.max_lanes / params.drawn.max(1);
    if together < prompts.len() {
        let message = format!(
            "prompt has {} prompts, and this server can have {together} of them waiting and running: send them in turn",
            prompts.len()
        );
        return Err(ApiError::invalid("prompt", message));
    }
    let echoes = if echo { echoes(&prompts, app)? } else { Vec::new() };
    let warning = app.vocabulary_warning(prompts.iter().map(|prompt| &prompt.tokens[..]));
    let requests = prompts.into_iter().map(|prompt| continued(prompt, &params, app)).collect();
    let style = CompletionStyle::new(app.opened.clone(), params.choices, logprobs, echoes, prompt_top);
    let ignored = [fields.rest(), std::mem::take(&mut params.ignored)].concat();
    Ok(Job {
        model,
        requests,
        prompt_param: "prompt",
        params,
        style: Box::new(style),
        ignored,
        warning,
        parsed: Instant::now(),
    })
}

/// A completion goes on with its prompt's text.
fn continued(prompt: Prompt, params: &Params, app: &App) -> engine::Request {
    engine::Request { joins_prompt: true, ..params.request(prompt.tokens, app) }
}

/// The number of alternatives; `false`, as some clients write it, wants none.
fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.take("logprobs") {
        None | Some(serde_json::Value::Bool(false)) => Ok(None),
        Some(value) => {
            let top = crate::fields::whole(&value).filter(|top| *top <= TOP_LOGPROBS_MAX);
            let expected = format!("a whole number from 0 to {TOP_LOGPROBS_MAX}");
            top.map(|top| Some(top as usize)).ok_or_else(|| fields.wrong("logprobs", &expected, &value))
        }
    }
}

/// Each prompt's text: as it was sent, or that of its tokens.
fn echoes(prompts: &[Prompt], app: &App) -> Result<Vec<String>, ApiError> {
    let text = |prompt: &Prompt| match &prompt.text {
        Some(text) => Ok(text.clone()),
        None => app.opened.tokenizer.decode(&prompt.tokens, false).map_err(|e| ApiError::internal(e.to_string())),
    };
    prompts.iter().map(text).collect()
}
