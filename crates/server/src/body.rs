//! From a request's body to its fields: content type, size, arrival and syntax.

use crate::config::{BODY_BYTES_MAX, BODY_SECONDS_MAX};
use crate::error::ApiError;
use crate::fields::Fields;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::time::Duration;

/// Reads a JSON body's bytes.
///
/// # Errors
/// It is not declared as JSON (415), too large (413), late (408) or cut.
pub(crate) async fn read(request: Request<Body>) -> Result<Vec<u8>, ApiError> {
    let (head, body) = request.into_parts();
    check_type(&head.headers)?;
    let declared = head.headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|bytes| BODY_BYTES_MAX < bytes) {
        return Err(too_large());
    }
    let read =
        tokio::time::timeout(Duration::from_secs(BODY_SECONDS_MAX), Limited::new(body, BODY_BYTES_MAX).collect());
    match read.await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::new(StatusCode::BAD_REQUEST, format!("the body was cut: {error}"))),
        Err(_) => {
            let message = format!("the body did not arrive within {BODY_SECONDS_MAX} s");
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// Parses a body's bytes.
///
/// # Errors
/// They are not a JSON object.
pub(crate) fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
    let value = serde_json::from_slice(bytes).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not valid JSON: {error}")).code("invalid_json")
    })?;
    Fields::of(value)
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("something unreadable"));
    let kind = given.unwrap_or("nothing").split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || kind.ends_with("+json") {
        return Ok(());
    }
    let message = format!("send the body as content type application/json; it says {}", given.unwrap_or("nothing"));
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

fn too_large() -> ApiError {
    let message = format!("the body is larger than {} MiB", BODY_BYTES_MAX >> 20);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large")
}
