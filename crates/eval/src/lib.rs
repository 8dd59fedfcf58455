//! Accuracy measured through the engine: a document is read once, densely, and held; every question under every
//! attention is a fork of it whose tokens are decode steps, so that only the attention in question differs.

pub mod document;

pub mod drain;

pub mod questions;

pub mod perplexity;

pub use document::{Document, EvalError};
pub use drain::{BatchTime, Drained, batch_time, drain};
pub use perplexity::{Score, score};
pub use questions::{Asked, Outcome, Question, ask};
