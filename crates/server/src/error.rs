//! What a client is told when something is wrong: OpenAI's error body, and one table of statuses.

use crate::fields::shown;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::Refusal;
use serde_json::{Value, json};

/// A refused or failed request. Bad input is never a 5xx.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// What is wrong and what to do.
    pub(crate) message: String,
    /// The parameter that it is about.
    pub(crate) param: Option<String>,
    /// A word for programs.
    pub(crate) code: Option<&'static str>,
    header: Option<(HeaderName, &'static str)>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), param: None, code: None, header: None }
    }

    /// A value that cannot be used: 400.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A known parameter that cannot be honoured: 400.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(param, message).code("unsupported_parameter")
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    pub(crate) fn header(self, name: HeaderName, value: &'static str) -> Self {
        ApiError { header: Some((name, value)), ..self }
    }

    /// No model of that name: 404.
    pub(crate) fn unknown_model(asked: &str, served: &[String]) -> Self {
        let asked = shown(&Value::from(asked));
        let message = format!("the model {asked} is not served here; this server has {}", served.join(", "));
        ApiError { param: Some("model".into()), ..Self::new(StatusCode::NOT_FOUND, message) }.code("model_not_found")
    }

    /// The server shuts down: 503.
    pub(crate) fn draining() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down and takes no new work")
            .code("shutting_down")
    }

    /// The engine cannot go on: 503.
    pub(crate) fn stopped(why: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("the engine has stopped: {why}"))
    }

    /// Too many requests wait: 429.
    pub(crate) fn overloaded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message).code("queue_full").header(header::RETRY_AFTER, "1")
    }

    /// Something of ours broke: 500.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Why the engine did not take a request; `prompt` is the parameter that carried the prompt.
    pub(crate) fn refused(refusal: &Refusal, prompt: &str) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::PromptTooLong { .. } => Self::invalid(prompt, message).code("context_length_exceeded"),
            Refusal::NeverFits { .. } => Self::invalid(prompt, message).code("kv_memory_exceeded"),
            Refusal::NeverFitsDram { .. } => Self::invalid(prompt, message).code("host_memory_exceeded"),
            Refusal::TooManyChoices { .. } => Self::invalid("n", message),
            Refusal::UnknownToken { field, .. } => {
                Self::invalid(if *field == "the prompt" { prompt } else { field }, message)
            }
            Refusal::Invalid(_) => Self { param: None, ..Self::invalid(prompt, message) },
            Refusal::QueueFull { .. } | Refusal::HeldRows { .. } => Self::overloaded(message),
            Refusal::UnknownParent { .. } | Refusal::Stopped(_) => Self::internal(message),
        }
    }

    /// OpenAI's body.
    pub(crate) fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some((name, value)) = self.header {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
