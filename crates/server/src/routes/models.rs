//! `GET /v1/models` and `/v1/models/{id}`.

use crate::app::App;
use crate::error::ApiError;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use std::sync::Arc;

/// All names.
pub(crate) async fn list(State(app): State<Arc<App>>) -> impl IntoResponse {
    let data: Vec<Value> = app.config.names.iter().map(|name| describe(&app, name)).collect();
    json_response(&json!({"object": "list", "data": data}))
}

/// One of them.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let names = &app.config.names;
    let id = id.map_or_else(|_| "a name that is no text".to_string(), |Path(id)| id);
    match names.contains(&id) {
        true => Ok(json_response(&describe(&app, &id))),
        false => Err(ApiError::unknown_model(&id, names)),
    }
}

fn describe(app: &App, name: &str) -> Value {
    let mut model = json!({
        "id": name, "object": "model", "created": app.created, "owned_by": "spindle",
        "root": app.opened.config().name, "parent": null, "max_model_len": app.config.max_model_len,
        "attention": app.config.specs.names(), "meta": {"n_vocab": app.opened.config().vocab_size},
    });
    if app.opened.checkpoint.is_random() {
        model["meta"]["weights"] = json!("random: answers mean nothing");
    }
    model
}

/// A JSON body.
pub(crate) fn json_response(value: &Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string())
}
