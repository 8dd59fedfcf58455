//! Load on any server that speaks OpenAI's HTTP: a seeded workload, a streaming client, and what was measured.
//!
//! The client is of use alone: [`Client::stream`] sends a request and gives its events, each with the time at which it
//! came. [`measure`] drives it: one run per load, requests as the workload says, statistics from exact samples.
//! This crate imports no other crate of Spindle and knows nothing of the server but what HTTP says.
//!
//! The caller runs it inside a tokio runtime; one thread is enough, and prompts are made on another one. It stops by
//! itself, and it reads no flags and no environment.

mod random;

mod lengths;

mod words;

mod prompt;

mod workload;

mod body;

mod target;

mod failure;

mod sse;

#[cfg(test)]
mod sse_fuzz;

mod chunk;

mod client;

mod peer;

mod exchange;

mod run;

mod percentiles;

#[cfg(test)]
mod percentiles_fuzz;

mod summary;

mod report;

mod scale;

mod chart;

pub use body::Endpoint;
pub use chart::chart;
pub use chunk::{Chunk, Usage};
pub use client::{Answer, Client, Event, EventKind};
pub use exchange::{CountedBy, Measured};
pub use failure::Failure;
pub use lengths::{Lengths, LengthsError, WorkloadLengths};
pub use percentiles::Percentiles;
pub use prompt::PromptKind;
pub use report::{LoadError, Report, RunReport, Settings, SharedPrefix, measure};
pub use run::{Ended, Limits, Progress, Record, Stage};
pub use sse::{SseEvent, SseParser};
pub use summary::{FailureCount, Slo, Summary};
pub use target::{Target, TargetError};
pub use workload::Load;
