//! OpenAI-compatible HTTP over the engine; the only crate that knows JSON requests.
