//! Who may ask, and how many were refused.

use crate::app::App;
use crate::error::ApiError;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Lets a request pass that carries one of the keys, as `Authorization: Bearer KEY`.
///
/// # Errors
/// 401 without one.
pub(crate) async fn check_key(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    let keys = &app.config.api_keys;
    if !keys.is_empty() {
        let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(|value| value.split_first_chunk::<7>());
        let is_bearer = |scheme: &[u8; 7]| scheme.eq_ignore_ascii_case(b"bearer ");
        match given.filter(|(scheme, _)| is_bearer(scheme)) {
            None => return Err(unauthorized("no API key: send Authorization: Bearer KEY")),
            Some((_, key)) if !keys.iter().any(|known| is_same(known.as_bytes(), key)) => {
                return Err(unauthorized("this API key is not known here"));
            }
            Some(_) => {}
        }
    }
    Ok(next.run(request).await)
}

/// Counts answers with an error status.
pub(crate) async fn count_errors(State(app): State<Arc<App>>, request: Request<Body>, next: Next) -> Response {
    let response = next.run(request).await;
    if 400 <= response.status().as_u16() {
        app.measures.errors.fetch_add(1, Ordering::Relaxed);
    }
    response
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key").header(header::WWW_AUTHENTICATE, "Bearer")
}

/// Compares all bytes whatever they are, so that the time tells nothing about a key.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}
