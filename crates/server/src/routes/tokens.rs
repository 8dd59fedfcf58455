//! `POST /tokenize` and `/detokenize`, as vLLM has them.

use super::chat::{render, take_variables};
use super::models::json_response;
use crate::answer::ignored_header;
use crate::app::App;
use crate::body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::prompt::token_ids;
use crate::request::{messages, take_model};
use crate::tools::choice::TOOLS_MAX;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// The tokens of a text or a chat.
pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    answer(&app, request, tokens_of).await
}

/// The text of tokens.
pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    answer(&app, request, text_of).await
}

/// Runs `work` on a request's fields; those that it leaves are named in a header.
async fn answer(
    app: &Arc<App>,
    request: Request<Body>,
    work: impl FnOnce(&mut Fields, &App) -> Result<Value, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    app.admit()?;
    let received = body::read(app, request).await?;
    let work = move |app: &App| {
        let mut fields = body::parse(&received)?;
        Ok((work(&mut fields, app)?, fields.rest()))
    };
    let (answer, ignored) = app.prepare(work).await?;
    Ok((ignored_header(&ignored), json_response(&answer)).into_response())
}

fn tokens_of(fields: &mut Fields, app: &App) -> Result<Value, ApiError> {
    take_model(fields, app)?;
    let tokenizer = &app.opened.tokenizer;
    let add_special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let with_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let tokens = match fields.text("prompt")? {
        Some(text) => tokenizer.encode(&text, add_special).map_err(|error| ApiError::internal(error.to_string()))?,
        None => {
            let tools = fields.list("tools", TOOLS_MAX)?.unwrap_or_default();
            let generate = fields.flag("add_generation_prompt")?.unwrap_or(true);
            render(&messages::take(fields)?, &tools, take_variables(fields)?, generate, app)?
        }
    };
    let texts = with_texts.then(|| tokens.iter().map(|token| tokenizer.token_text(*token)).collect::<Vec<_>>());
    Ok(json!({
        "count": tokens.len(), "max_model_len": app.config.max_model_len, "tokens": tokens, "token_strs": texts,
    }))
}

fn text_of(fields: &mut Fields, app: &App) -> Result<Value, ApiError> {
    take_model(fields, app)?;
    let list = fields.list("tokens", app.config.max_model_len)?;
    let list = list.ok_or_else(|| ApiError::invalid("tokens", "tokens is missing: give a list of token ids"))?;
    let tokens = token_ids(&list, fields, "tokens")?;
    let vocab = app.opened.config().vocab_size;
    if let Some(token) = tokens.iter().find(|token| vocab <= **token as usize) {
        let message = format!("tokens has {token} and the vocabulary has {vocab} tokens");
        return Err(ApiError::invalid("tokens", message));
    }
    let text = app.opened.tokenizer.decode(&tokens, false).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(json!({"prompt": text}))
}
