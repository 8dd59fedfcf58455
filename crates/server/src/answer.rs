//! From the engine's events to a response: in one piece or as a stream, in the form of either endpoint.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod logprobs;
pub(crate) mod piece;
pub(crate) mod stream;
pub(crate) mod usage;
pub(crate) mod whole;

use crate::app::{App, now_seconds};
use crate::body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::live::Seat;
use crate::reader::Reader;
use crate::request::params::{Params, Stream};
use axum::body::Body;
use axum::http::{self, HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use engine::{PromptToken, Request};
use piece::Piece;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use whole::Whole;

/// Names the fields of the request that nobody knows.
const IGNORED: HeaderName = HeaderName::from_static("x-spindle-ignored-fields");

/// Says what the client should know about its prompt.
const WARNING: HeaderName = HeaderName::from_static("x-spindle-warning");

/// Bytes of a header of ours.
const HEADER_BYTES_MAX: usize = 1024;

/// How an endpoint writes choices.
pub(crate) trait Style: Send {
    /// The objects' name, streamed or whole, and the prefix of ids.
    fn names(&self) -> Names;

    /// The log-probabilities of a prompt's tokens, which come before its completions.
    fn prompt(&mut self, prompt: usize, tokens: Vec<PromptToken>);

    /// Entries of `choices` for what is new of a completion; none where nothing is to be told.
    fn deltas(&mut self, piece: Piece) -> Vec<Value>;

    /// The entry of `choices` for a whole completion; `index` is its place among those returned.
    fn choice(&mut self, index: usize, whole: Whole) -> Value;

    /// A field of a whole response beside its choices.
    fn extra(&self) -> Option<(&'static str, Value)> {
        None
    }
}

/// See [`Style::names`].
pub(crate) struct Names {
    pub(crate) id: &'static str,
    pub(crate) whole: &'static str,
    pub(crate) chunk: &'static str,
}

/// A request that was read and checked, on its way to the engine.
pub(crate) struct Job {
    /// The name that was asked for.
    pub(crate) model: String,
    /// One a prompt.
    pub(crate) requests: Vec<Request>,
    /// The parameter that carried the prompt.
    pub(crate) prompt_param: &'static str,
    pub(crate) params: Params,
    pub(crate) style: Box<dyn Style>,
    pub(crate) ignored: Vec<String>,
    pub(crate) warning: Option<String>,
    /// When the request was parsed, rendered and tokenised: from here on it is the engine's.
    pub(crate) parsed: Instant,
}

/// What every response says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    id: String,
    created: u64,
    model: String,
}

impl Envelope {
    pub(crate) fn wrap(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }
}

/// Answers a request that `read` makes a job of.
///
/// # Errors
/// It cannot be read, the engine does not take it, or fails before the response has begun.
pub(crate) async fn answer(
    app: &Arc<App>,
    request: http::Request<Body>,
    read: fn(Fields, &App) -> Result<Job, ApiError>,
) -> Result<Response, ApiError> {
    app.admit()?;
    let received = body::read(app, request).await?;
    let job = app.prepare(move |app| read(body::parse(&received)?, app)).await?;
    respond(app, job).await
}

/// Runs a job to its response.
async fn respond(app: &Arc<App>, job: Job) -> Result<Response, ApiError> {
    app.admit()?;
    let id = app.next_id();
    let envelope = Envelope { id: app.public_id(job.style.names().id, id), created: now_seconds(), model: job.model };
    let seats = job.requests.iter().map(|request| seat(app, request)).collect();
    let reader = Reader::submit(app, job.requests, seats, job.prompt_param).await?;
    let (body, kind) = match job.params.stream {
        Stream::Yes { usage } => {
            let frames = stream::Frames::new(app.clone(), reader, job.style, envelope, usage, job.parsed);
            (Body::from_stream(frames.into_stream()), "text/event-stream")
        }
        Stream::No => {
            let answer = whole::collect(reader, job.style, envelope, job.params.choices).await?;
            (Body::from(answer), "application/json")
        }
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // Proxies that gather a response would hold streams back.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    headers.extend(ignored_header(&job.ignored));
    if let Some(value) = job.warning.and_then(|text| header_value(&text)) {
        headers.insert(WARNING, value);
    }
    Ok(response)
}

/// The header that names the fields of a request that nobody knows; empty where there are none.
pub(crate) fn ignored_header(names: &[String]) -> HeaderMap {
    let value = if names.is_empty() { None } else { header_value(&names.join(", ")) };
    value.map(|value| (IGNORED, value)).into_iter().collect()
}

fn seat(app: &App, request: &Request) -> Seat {
    let spec = app.config.specs.get(request.attention.algorithm);
    let label = match spec.is_sparse() {
        true => format!("{} {:.2} %", spec.name, request.attention.selection.budget * 100.0),
        false => spec.name.to_string(),
    };
    app.live.open(app.next_id(), label, request.tokens().len())
}

/// Text of others as a header: visible ASCII only, cut at a bound.
fn header_value(text: &str) -> Option<HeaderValue> {
    let visible = text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
    HeaderValue::from_str(&visible.take(HEADER_BYTES_MAX).collect::<String>()).ok()
}
