//! OpenAI-compatible HTTP over the engine; the only crate that knows JSON requests.
//!
//! ```text
//! connection -> route -> request: JSON, checked -> answer: events -> JSON or server-sent events
//!                          |                        ^
//!                          +-------> engine --------+
//! ```
//!
//! Concurrency: async threads serve connections; what takes time (templates, tokenising) runs on blocking threads, one
//! a core; the engine has a thread of its own, which never waits for a reader. Every queue between them has a bound in
//! [`config`].

pub mod config;

mod serve;
mod stall;

mod access;
mod page;
mod routes;

mod body;
mod fields;
mod request;

mod grammar;
mod tools;

mod answer;
mod reader;

mod app;
mod error;

mod histogram;
mod live;
mod measures;
mod prometheus;

#[cfg(test)]
mod noise;

pub use config::ServerConfig;
pub use serve::{Ended, serve};
