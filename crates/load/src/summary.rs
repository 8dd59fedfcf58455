//! What a run comes to. Latencies and throughput are those of the requests that succeeded.

use crate::exchange::{CountedBy, Measured};
use crate::percentiles::Percentiles;
use crate::run::{Ended, Record, RunOutcome};
use crate::workload::Load;
use serde::Serialize;
use std::collections::BTreeMap;

/// A promise about latency, by which requests are counted that kept it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Slo {
    /// Longest TTFT.
    pub ttft_ms: Option<f64>,
    /// Longest TPOT.
    pub tpot_ms: Option<f64>,
}

/// Failures that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// [`crate::Failure::kind`].
    pub kind: &'static str,
    /// The first one's words.
    pub example: String,
    /// How many.
    pub count: u64,
}

/// One run in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How requests arrived.
    pub load: Load,
    /// Why it ended.
    pub ended: Ended,
    /// Requests with a whole answer.
    pub succeeded: u64,
    /// Requests without.
    pub failed: u64,
    /// Requests that were cut off when somebody stopped the run; in no other number.
    pub aborted: u64,
    /// Requests that arrived while `max_concurrency` requests ran, and were sent later.
    pub held_back: u64,
    /// The longest time from an arrival to its sending.
    pub late_ms_max: f64,
    /// The longest time until a connection stood; a part of that request's TTFT.
    pub connect_ms_max: f64,
    /// From the first sending to the last end.
    pub window_seconds: f64,
    /// Successes a second.
    pub requests_per_second: f64,
    /// Tokens of completions a second, of all streams together.
    pub completion_tokens_per_second: f64,
    /// Tokens of prompts and completions a second.
    pub total_tokens_per_second: f64,
    /// Successes a second that kept the promise, where there is one.
    pub goodput: Option<f64>,
    /// Mean tokens of a prompt: the server's count, or where it gives none what the prompts were made for.
    pub prompt_tokens_mean: f64,
    /// Mean tokens of a completion.
    pub completion_tokens_mean: f64,
    /// Share of the prompts' tokens that the server had in a cache, where it says so.
    pub cached_share: Option<f64>,
    /// Who counted the tokens; chunks as soon as one answer has no usage.
    pub tokens_counted_by: CountedBy,
    /// Time to the first token.
    pub ttft_ms: Option<Percentiles>,
    /// Time per token after the first, one sample a request.
    pub tpot_ms: Option<Percentiles>,
    /// Time between chunks with tokens, of all requests together.
    pub gap_ms: Option<Percentiles>,
    /// Time to the end of the answer.
    pub end_to_end_ms: Option<Percentiles>,
    /// Failures by kind.
    pub failures: Vec<FailureCount>,
}

impl Slo {
    fn is_empty(&self) -> bool {
        *self == Slo::default()
    }

    fn is_kept(&self, measured: &Measured) -> bool {
        let within = |seconds: f64, most: Option<f64>| most.is_none_or(|most| 1e3 * seconds <= most);
        within(measured.ttft, self.ttft_ms) && within(measured.tpot().unwrap_or(0.0), self.tpot_ms)
    }
}

impl Summary {
    pub(crate) fn new(load: Load, outcome: &RunOutcome, slo: Slo) -> Self {
        let records = &outcome.records;
        let good: Vec<(&Record, &Measured)> =
            records.iter().filter_map(|record| Some((record, record.outcome.as_ref().ok()?))).collect();
        let first = records.iter().map(|record| record.sent).fold(f64::INFINITY, f64::min);
        let window_seconds = records.iter().map(|record| record.ended - first).fold(0.0, f64::max);
        let per_second = |count: f64| if 0.0 < window_seconds { count / window_seconds } else { 0.0 };
        let succeeded = good.len() as f64;
        let mean = |sum: f64| if good.is_empty() { 0.0 } else { sum / succeeded };
        let prompt = |(record, measured): &(&Record, &Measured)| {
            measured.prompt_tokens.unwrap_or(record.prompt_tokens as u64) as f64
        };
        let prompt_tokens: f64 = good.iter().map(prompt).sum();
        let completion_tokens: f64 = good.iter().map(|(_, measured)| measured.tokens as f64).sum();
        let cached: Option<u64> = good.iter().map(|(_, measured)| measured.cached_tokens).sum();
        let by_chunks = good.iter().any(|(_, measured)| measured.counted_by == CountedBy::Chunks);
        let kept = good.iter().filter(|(_, measured)| slo.is_kept(measured)).count() as f64;
        let seconds = |of: fn(&Measured) -> Option<f64>| {
            Percentiles::of_seconds(good.iter().filter_map(|(_, measured)| of(measured)).collect())
        };
        let gaps = good.iter().flat_map(|(_, measured)| measured.gaps.iter().map(|gap| f64::from(*gap)));
        Summary {
            load,
            ended: outcome.ended,
            succeeded: good.len() as u64,
            failed: (records.len() - good.len()) as u64,
            aborted: outcome.aborted,
            held_back: outcome.held_back,
            late_ms_max: 1e3 * records.iter().map(|record| record.late).fold(0.0, f64::max),
            connect_ms_max: 1e3 * good.iter().map(|(_, measured)| measured.connect).fold(0.0, f64::max),
            window_seconds,
            requests_per_second: per_second(succeeded),
            completion_tokens_per_second: per_second(completion_tokens),
            total_tokens_per_second: per_second(prompt_tokens + completion_tokens),
            goodput: (!slo.is_empty()).then(|| per_second(kept)),
            prompt_tokens_mean: mean(prompt_tokens),
            completion_tokens_mean: mean(completion_tokens),
            cached_share: cached.filter(|_| 0.0 < prompt_tokens).map(|cached| cached as f64 / prompt_tokens),
            tokens_counted_by: if by_chunks { CountedBy::Chunks } else { CountedBy::Usage },
            ttft_ms: seconds(|measured| Some(measured.ttft)),
            tpot_ms: seconds(Measured::tpot),
            gap_ms: Percentiles::of_seconds(gaps.collect()),
            end_to_end_ms: seconds(|measured| Some(measured.end_to_end)),
            failures: failures(records),
        }
    }
}

fn failures(records: &[Record]) -> Vec<FailureCount> {
    let mut by_kind: BTreeMap<&'static str, FailureCount> = BTreeMap::new();
    for failure in records.iter().filter_map(|record| record.outcome.as_ref().err()) {
        let kind = failure.kind();
        let first = || FailureCount { kind, example: failure.to_string(), count: 0 };
        by_kind.entry(kind).or_insert_with(first).count += 1;
    }
    by_kind.into_values().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::failure::Failure;

    /// A request sent at `sent`, with its first token after `ttft` and 10 more `tpot` apart, in milliseconds.
    pub(crate) fn record(index: u64, sent: f64, ttft: f64, tpot: f64) -> Record {
        let (sent, ttft, tpot) = (sent / 1e3, ttft / 1e3, tpot / 1e3);
        let end_to_end = ttft + 10.0 * tpot;
        let measured = Measured {
            connect: 0.0,
            ttft,
            gaps: vec![tpot as f32; 10],
            decode: 10.0 * tpot,
            end_to_end,
            tokens: 11,
            counted_by: CountedBy::Usage,
            prompt_tokens: Some(100),
            cached_tokens: Some(25),
        };
        let (prompt_tokens, max_tokens, ended) = (90, 11, sent + end_to_end);
        Record { index, prompt_tokens, max_tokens, sent, late: 0.0, ended, outcome: Ok(measured) }
    }

    pub(crate) fn outcome(records: Vec<Record>) -> RunOutcome {
        RunOutcome { records, aborted: 0, held_back: 0, ended: Ended::Requests }
    }

    #[test]
    fn rates_are_over_the_window_and_of_successes() {
        let mut records = vec![record(0, 500.0, 100.0, 10.0), record(1, 1000.0, 300.0, 20.0)];
        let failed =
            |index, ended, failure| Record { index, ended, outcome: Err(failure), ..record(2, 600.0, 1.0, 1.0) };
        records.push(failed(2, 2.5, Failure::Timeout(std::time::Duration::from_secs(3))));
        records.push(failed(3, 0.7, Failure::Empty));
        records.push(failed(4, 0.8, Failure::Timeout(std::time::Duration::from_secs(4))));
        let slo = Slo { ttft_ms: Some(300.5), tpot_ms: Some(15.0) };
        let summary = Summary::new(Load::Rate(2.0), &outcome(records), slo);
        assert_eq!((summary.succeeded, summary.failed), (2, 3));
        assert_eq!(summary.window_seconds, 2.0);
        assert_eq!(summary.requests_per_second, 1.0);
        assert_eq!(summary.completion_tokens_per_second, 11.0);
        assert_eq!(summary.total_tokens_per_second, 111.0);
        assert_eq!(summary.goodput, Some(0.5));
        assert_eq!((summary.prompt_tokens_mean, summary.completion_tokens_mean), (100.0, 11.0));
        assert_eq!(summary.cached_share, Some(0.25));
        let timeouts = FailureCount { kind: "timeout", example: "not finished within 3s".into(), count: 2 };
        assert_eq!(summary.failures[1], timeouts);
        assert_eq!(summary.ttft_ms.map(|ttft| (ttft.p50, ttft.p99)), Some((100.0, 300.0)));
    }

    #[test]
    fn a_run_without_success_has_no_latency() {
        let failed = Record { outcome: Err(Failure::Empty), ..record(0, 0.0, 1.0, 1.0) };
        for records in [vec![failed], vec![]] {
            let summary = Summary::new(Load::Concurrency(1), &outcome(records), Slo::default());
            assert_eq!((summary.succeeded, summary.ttft_ms, summary.goodput), (0, None, None));
            assert_eq!((summary.requests_per_second, summary.cached_share), (0.0, None));
        }
    }
}
