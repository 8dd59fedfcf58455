//! From a request's body to its fields: content type, size, arrival and syntax.

use crate::app::App;
use crate::config::{BODY_BYTES_MAX, BODY_SECONDS_MAX, DISCARDED_BYTES_MAX};
use crate::error::ApiError;
use crate::fields::Fields;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// A body's bytes, which count among `BODIES_BYTES_MAX` until this is dropped.
pub(crate) struct Received {
    bytes: Vec<u8>,
    _counted: OwnedSemaphorePermit,
}

/// Reads a JSON body.
///
/// # Errors
/// It is not declared as JSON (415), too large (413), late (408) or cut, or the server stops before it is there (503).
pub(crate) async fn read(app: &Arc<App>, request: Request<Body>) -> Result<Received, ApiError> {
    let (head, body) = request.into_parts();
    check_type(&head.headers)?;
    let declared = head.headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    let most = declared.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
    let mut draining = app.draining.subscribe();
    let receive = async {
        let counted = app.bodies.clone().acquire_many_owned(most.div_ceil(1024) as u32).await;
        let counted = counted.map_err(|_| ApiError::draining())?;
        Ok(Received { bytes: collect(body, most).await?, _counted: counted })
    };
    tokio::select! {
        received = tokio::time::timeout(Duration::from_secs(BODY_SECONDS_MAX), receive) => received.unwrap_or_else(|_| {
            let message = format!("the body did not arrive within {BODY_SECONDS_MAX} s");
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }),
        _ = draining.wait_for(|draining| *draining) => Err(ApiError::draining()),
    }
}

/// All bytes of a body. A body that is too large is read on and thrown away for a while: most clients look at an
/// answer only when they have sent everything.
async fn collect(mut body: Body, most: usize) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut received) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body was cut: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        received += data.len();
        if DISCARDED_BYTES_MAX < received {
            break;
        }
        if received <= most {
            bytes.extend_from_slice(data);
        }
    }
    if most < received { Err(too_large()) } else { Ok(bytes) }
}

/// Parses a body's bytes.
///
/// # Errors
/// They are not a JSON object.
pub(crate) fn parse(received: &Received) -> Result<Fields, ApiError> {
    let value = serde_json::from_slice(&received.bytes).map_err(|error| {
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
