//! `GET /debug/residency`: what every sequence has in the pool and in host memory, and how its selected pages fared.

use super::models::json_response;
use crate::app::App;
use crate::error::ApiError;
use axum::extract::State;
use axum::response::IntoResponse;
use engine::{Footprint, Refusal};
use kv::Residence;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Answered by the engine between two steps.
///
/// # Errors
/// 503 where the engine has stopped, 429 where too much waits for it.
pub(crate) async fn residency(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    let (reply, answer) = oneshot::channel();
    // A client that has left needs no answer.
    let asked = app.engine.footprints(Box::new(|all| drop(reply.send(all))));
    let footprints = match asked {
        Ok(()) => answer.await.map_err(|_| stopped(&app)),
        Err(Refusal::Stopped(why)) => Err(ApiError::stopped(&why)),
        Err(refusal) => Err(ApiError::refused(&refusal, "")),
    }?;
    let engine = app.engine.metrics();
    Ok(json_response(&json!({
        "row_bytes": engine.row_bytes, "page_bytes": app.page_bytes(),
        "pool": {
            "rows": engine.pool_rows, "free": engine.free_rows, "reserved": engine.reserved_rows,
            "cached": engine.cached_rows,
        },
        "host": {"rows": engine.dram_rows, "free": engine.dram_free_rows, "reserved": engine.dram_reserved_rows},
        "sequences": footprints.iter().map(entry).collect::<Vec<Value>>(),
    })))
}

fn entry(footprint: &Footprint) -> Value {
    let (rows, retrieved) = (footprint.rows, footprint.retrieved);
    json!({
        "id": footprint.sequence.0, "request": footprint.request.0, "choice": footprint.choice,
        "phase": footprint.stage.name(), "tokens": footprint.tokens, "prompt_tokens": footprint.prompt_tokens,
        "residence": match footprint.residence { Residence::Full => "full", Residence::Sparse => "sparse" },
        "pool_rows": {"kv": rows.kv, "slots": rows.cache, "summary": rows.summary},
        "host_rows": rows.dram, "selected_pages": footprint.selected_pages,
        "page_hits": retrieved.hits, "page_misses": retrieved.misses,
    })
}

fn stopped(app: &App) -> ApiError {
    ApiError::stopped(&app.engine.failure().unwrap_or_else(|| "the server shuts down".to_string()))
}
