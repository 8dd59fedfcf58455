//! Sequences, the scheduler (plans are plain data), the step loop and metrics.

pub mod forward;

pub use forward::{AlgorithmSpec, Forward, PASSES_MAX, PassView};
