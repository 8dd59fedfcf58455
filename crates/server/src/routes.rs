//! Which path does what.

mod chat;
mod completions;
mod models;
mod residency;
mod status;
mod tokens;

use crate::app::App;
use crate::error::ApiError;
use crate::{access, page};
use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use std::sync::Arc;

/// The service. What names no secret is open; the rest asks for the key.
pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/live", get(status::live))
        .route("/debug/residency", get(residency::residency))
        .layer(from_fn_with_state(app.clone(), access::check_key));
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(status::health))
        .route("/version", get(status::version))
        .route("/metrics", get(status::metrics))
        .merge(guarded)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), access::count_errors))
        .with_state(app)
}

async fn unknown_path(uri: Uri) -> ApiError {
    let message = format!("there is nothing at {}; the API is below /v1", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, message).code("unknown_url")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not allowed at {}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).code("method_not_allowed")
}
