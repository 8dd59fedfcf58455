//! What the server measures itself: durations and sizes of requests. Counts of the engine's state come from the engine.

use crate::histogram::Histogram;
use engine::{FinishReason, Finished};
use std::sync::atomic::{AtomicU64, Ordering};

const SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0];
const FAST_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const TOKENS: &[f64] = &[
    1.0, 8.0, 32.0, 128.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131072.0, 262144.0,
    1048576.0,
];

/// How completions end, as a label.
pub(crate) const FINISHED: [&str; 3] = ["stop", "length", "abort"];

/// Durations and sizes since the start.
pub(crate) struct Measures {
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) time_per_output_token: Histogram,
    pub(crate) end_to_end: Histogram,
    pub(crate) queued: Histogram,
    pub(crate) prefill: Histogram,
    pub(crate) decode: Histogram,
    pub(crate) prompt_tokens: Histogram,
    pub(crate) generation_tokens: Histogram,
    /// What HTTP adds: first byte handed out minus request parsed, minus the engine's own time to its first token.
    pub(crate) http_overhead: Histogram,
    /// Completions by [`FINISHED`].
    finished: [AtomicU64; 3],
    /// Requests answered with an error status.
    pub(crate) errors: AtomicU64,
    /// Streams that ended because nobody read them in time.
    pub(crate) slow_readers: AtomicU64,
}

impl Default for Measures {
    fn default() -> Self {
        Measures {
            time_to_first_token: Histogram::new(SECONDS),
            inter_token: Histogram::new(FAST_SECONDS),
            time_per_output_token: Histogram::new(FAST_SECONDS),
            end_to_end: Histogram::new(SECONDS),
            queued: Histogram::new(SECONDS),
            prefill: Histogram::new(SECONDS),
            decode: Histogram::new(SECONDS),
            prompt_tokens: Histogram::new(TOKENS),
            generation_tokens: Histogram::new(TOKENS),
            http_overhead: Histogram::new(FAST_SECONDS),
            finished: Default::default(),
            errors: AtomicU64::new(0),
            slow_readers: AtomicU64::new(0),
        }
    }
}

impl Measures {
    /// A completion has ended.
    pub(crate) fn finish(&self, finished: &Finished) {
        let label = match finished.reason {
            FinishReason::Stop | FinishReason::StopString => 0,
            FinishReason::Length => 1,
            FinishReason::Aborted(_) => 2,
        };
        self.finished[label].fetch_add(1, Ordering::Relaxed);
        if label == 2 {
            return;
        }
        let (times, usage) = (finished.timings, finished.usage);
        self.queued.observe(times.queued);
        self.prefill.observe(times.prefill);
        self.decode.observe(times.decode);
        self.end_to_end.observe(times.queued + times.prefill + times.decode);
        self.prompt_tokens.observe(usage.prompt_tokens as f64);
        self.generation_tokens.observe(usage.completion_tokens as f64);
        if 0 < times.decode_steps {
            self.time_per_output_token.observe(times.decode / times.decode_steps as f64);
        }
    }

    /// Completions that ended, by [`FINISHED`].
    pub(crate) fn finished(&self) -> [u64; 3] {
        std::array::from_fn(|i| self.finished[i].load(Ordering::Relaxed))
    }
}
