//! `POST /tokenize` and `/detokenize`, as vLLM has them.

use super::chat::{render, take_variables};
use super::models::json_response;
use crate::app::App;
use crate::body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::prompt::token_ids;
use crate::request::{check_model, messages};
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use std::sync::Arc;

/// The tokens of a text or a chat.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<impl IntoResponse, ApiError> {
    let bytes = body::read(request).await?;
    let answer = app.prepare(move |app| tokens_of(body::parse(&bytes)?, app)).await?;
    Ok(json_response(&answer))
}

/// The text of tokens.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<impl IntoResponse, ApiError> {
    let bytes = body::read(request).await?;
    let answer = app.prepare(move |app| text_of(body::parse(&bytes)?, app)).await?;
    Ok(json_response(&answer))
}

fn tokens_of(mut fields: Fields, app: &App) -> Result<Value, ApiError> {
    check_model(&mut fields, app)?;
    let tokenizer = &app.opened.tokenizer;
    let add_special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let with_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let tokens = match fields.text("prompt")? {
        Some(text) => tokenizer.encode(&text, add_special).map_err(|error| ApiError::internal(error.to_string()))?,
        None => render(&messages::take(&mut fields)?, &[], take_variables(&mut fields)?, app)?,
    };
    let texts = with_texts.then(|| tokens.iter().map(|token| tokenizer.token_text(*token)).collect::<Vec<_>>());
    Ok(json!({
        "count": tokens.len(), "max_model_len": app.config.max_model_len, "tokens": tokens, "token_strs": texts,
    }))
}

fn text_of(mut fields: Fields, app: &App) -> Result<Value, ApiError> {
    check_model(&mut fields, app)?;
    let list = fields.list("tokens", app.config.max_model_len)?;
    let list = list.ok_or_else(|| ApiError::invalid("tokens", "tokens is missing: give a list of token ids"))?;
    let tokens = token_ids(&list, &fields, "tokens")?;
    let vocab = app.opened.config().vocab_size;
    if let Some(token) = tokens.iter().find(|token| vocab <= **token as usize) {
        let message = format!("tokens has {token} and the vocabulary has {vocab} tokens");
        return Err(ApiError::invalid("tokens", message));
    }
    let text = app.opened.tokenizer.decode(&tokens, false).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(json!({"prompt": text}))
}
