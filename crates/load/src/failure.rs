//! Why a request has no answer, or not the whole one.

use std::time::Duration;

/// One request's failure. The kinds are counted apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server cannot be reached.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke before the answer began.
    #[error("the connection broke before an answer: {0}")]
    Broken(String),
    /// An HTTP status that is no success, with what the body says.
    #[error("status {code}: {message}")]
    Status {
        /// HTTP's number.
        code: u16,
        /// The body's message, or its start.
        message: String,
    },
    /// The whole answer took longer than allowed.
    #[error("not finished within {0:?}")]
    Timeout(Duration),
    /// The stream ended without `[DONE]` and without a finish reason.
    #[error("the stream was cut: {0}")]
    Cut(String),
    /// The stream has an error object.
    #[error("error in the stream: {0}")]
    InStream(String),
    /// What came is not what the endpoint promises.
    #[error("not understood: {0}")]
    Malformed(String),
    /// The answer has fewer tokens than were asked for with `ignore_eos`.
    #[error("{tokens} tokens instead of {wanted}")]
    Short {
        /// By the server's usage.
        tokens: u64,
        /// `max_tokens`.
        wanted: u64,
    },
    /// A stream that finished without a token.
    #[error("the answer has no token")]
    Empty,
}

impl Failure {
    /// The kind, in a word for tables and JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Connect(_) => "connect",
            Failure::Broken(_) => "broken",
            Failure::Status { .. } => "status",
            Failure::Timeout(_) => "timeout",
            Failure::Cut(_) => "cut",
            Failure::InStream(_) => "in_stream",
            Failure::Malformed(_) => "malformed",
            Failure::Short { .. } => "short",
            Failure::Empty => "empty",
        }
    }
}
