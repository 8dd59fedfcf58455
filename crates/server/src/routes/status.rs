//! How the server is: health, version, metrics, and what the page shows.

use super::models::json_response;
use crate::app::App;
use crate::error::ApiError;
use crate::prometheus;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::json;
use std::sync::Arc;

/// 200 while new work is taken.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    app.admit()?;
    match app.engine.failure() {
        Some(why) => Err(ApiError::stopped(&why)),
        None => Ok(StatusCode::OK),
    }
}

/// What runs.
pub(crate) async fn version() -> impl IntoResponse {
    json_response(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// Prometheus' text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], prometheus::text(&app))
}

/// Lanes, queue, rows and open requests.
pub(crate) async fn live(State(app): State<Arc<App>>) -> impl IntoResponse {
    let engine = app.engine.metrics();
    json_response(&json!({
        "model": app.config.names[0], "max_model_len": app.config.max_model_len,
        "algorithms": app.config.specs.names(),
        "default": app.config.specs.all()[app.config.default_attention].name,
        "lanes": engine.lanes, "lanes_free": engine.lanes_free, "waiting": engine.waiting_requests,
        "prefilling": engine.prefilling_sequences, "running": engine.running_sequences,
        "parked": engine.parked_sequences, "preemptions_total": engine.preemptions_total,
        "rows": {
            "pool": engine.pool_rows, "free": engine.free_rows, "reserved": engine.reserved_rows,
            "kv": engine.kv_table_rows, "slots": engine.cache_rows, "summary": engine.summary_table_rows,
            "cached": engine.cached_rows,
        },
        "host_rows": {
            "all": engine.dram_rows, "free": engine.dram_free_rows, "reserved": engine.dram_reserved_rows,
            "pages": engine.dram_table_rows,
        },
        "row_bytes": engine.row_bytes, "page_bytes": app.page_bytes(), "sparse": engine.sparse_sequences,
        "page_hits_total": engine.page_hits_total, "page_misses_total": engine.page_misses_total,
        "prefill_tokens_total": engine.prefill_tokens_total, "decode_tokens_total": engine.decode_tokens_total,
        "requests": app.live.list(),
    }))
}
