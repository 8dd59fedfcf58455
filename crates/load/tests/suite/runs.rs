//! Whole runs: how many requests run at once, when they end, and what is counted.

use crate::fake_server::{FakeServer, Request, json_answer, tokens};
use crate::{block_on, client, measure, settings};
use load::{Ended, Limits, Load, LoadError, Progress, Settings, Slo};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn quick(request: &Request) -> Vec<crate::fake_server::Act> {
    tokens(request, Duration::from_millis(5), Duration::from_millis(1))
}

fn slow(request: &Request) -> Vec<crate::fake_server::Act> {
    tokens(request, Duration::from_millis(40), Duration::from_millis(10))
}

fn limits(requests: Option<u64>, duration_ms: Option<u64>, max_concurrency: usize) -> Limits {
    Limits { requests, duration: duration_ms.map(Duration::from_millis), max_concurrency }
}

#[test]
fn a_closed_loop_keeps_so_many_running() {
    for (concurrency, most) in [(3, 3), (9, 4)] {
        let server = FakeServer::start(slow);
        let seen = Arc::new(AtomicUsize::new(0));
        let settings =
            Settings { loads: vec![Load::Concurrency(concurrency)], limits: limits(Some(12), None, 4), ..settings() };
        let client = client(&server.url());
        let watch = seen.clone();
        let mut progress = move |progress: Progress| {
            watch.fetch_max(progress.running as usize, Ordering::Relaxed);
        };
        let report = block_on(load::measure(&client, settings, &mut progress, std::future::pending()));
        let report = report.expect("the server is there");
        let summary = &report.runs[0].summary;
        assert_eq!((summary.succeeded, summary.failed, summary.ended), (12, 0, Ended::Requests));
        assert!(seen.load(Ordering::Relaxed) <= most);
        // By the records: at the time of each sending, so many had been sent and not ended.
        let records = &report.runs[0].records;
        let running = |at: f64| records.iter().filter(|record| record.sent <= at && at < record.ended).count();
        let peak = records.iter().map(|record| running(record.sent)).max();
        assert!(peak == Some(most) || peak == Some(most - 1), "{peak:?} of {most}");
    }
}

#[test]
fn a_rate_is_kept_whatever_the_server_does() {
    let server = FakeServer::start(slow);
    let settings = Settings { loads: vec![Load::Rate(100.0)], limits: limits(Some(40), None, 1000), ..settings() };
    let report = measure(&server, settings);
    let summary = &report.runs[0].summary;
    assert_eq!((summary.succeeded, summary.held_back), (40, 0));
    let last = report.runs[0].records.iter().map(|record| record.sent).fold(0.0, f64::max);
    assert!((0.2..2.0).contains(&last), "40 arrivals at 100 a second take 0.4 s: {last}");
    assert!(report.notes().iter().all(|note| !note.contains("the rate was not kept")));
}

#[test]
fn a_rate_that_reaches_the_bound_says_so() {
    let server = FakeServer::start(slow);
    let settings = Settings { loads: vec![Load::Rate(500.0)], limits: limits(Some(20), None, 2), ..settings() };
    let report = measure(&server, settings);
    let summary = &report.runs[0].summary;
    assert_eq!(summary.succeeded, 20);
    assert!(10 <= summary.held_back && 100.0 < summary.late_ms_max, "{summary:?}");
    assert!(report.notes().iter().any(|note| note.contains("the rate was not kept")), "{:?}", report.notes());
}

#[test]
fn time_ends_a_run_and_what_runs_is_waited_for() {
    let server = FakeServer::start(slow);
    let start = Instant::now();
    let loads = vec![Load::Concurrency(2), Load::Rate(20.0)];
    let report = measure(&server, Settings { loads, limits: limits(None, Some(300), 8), ..settings() });
    assert!(Duration::from_millis(600) <= start.elapsed());
    for run in &report.runs {
        let summary = &run.summary;
        assert_eq!((summary.ended, summary.failed, summary.aborted), (Ended::Duration, 0, 0));
        assert!(0 < summary.succeeded);
        assert!(run.records.iter().all(|record| record.sent < 1.0));
    }
    assert_eq!(report.runs.len(), 2);
}

#[test]
fn a_stopped_run_shows_what_it_has() {
    let server = FakeServer::start(slow);
    let loads = vec![Load::Concurrency(2), Load::Concurrency(3)];
    let settings = Settings { loads, limits: limits(None, None, 8), ..settings() };
    let client = client(&server.url());
    let measured = block_on(async {
        let stop = tokio::time::sleep(Duration::from_millis(500));
        load::measure(&client, settings, &mut |_| (), stop).await
    });
    let report = measured.expect("a report");
    assert_eq!(report.runs.len(), 1, "the second load is left out");
    let summary = &report.runs[0].summary;
    assert_eq!(summary.ended, Ended::Stopped);
    assert!(0 < summary.succeeded && summary.aborted <= 2 && summary.failed == 0, "{summary:?}");
    assert!(report.notes().iter().any(|note| note.contains("stopped early")));
}

#[test]
fn a_stop_at_the_start_leaves_nothing() {
    let server = FakeServer::start(slow);
    let client = client(&server.url());
    let measured = block_on(load::measure(&client, settings(), &mut |_| (), std::future::ready(())));
    assert!(matches!(measured, Err(LoadError::Stopped)));
}

#[test]
fn warm_up_is_in_no_number_and_no_prompt_comes_twice() {
    let server = FakeServer::start(quick);
    let loads = vec![Load::Concurrency(2), Load::Concurrency(4)];
    let report = measure(&server, Settings { loads, warmup: 3, ..settings() });
    assert!(report.runs.iter().all(|run| run.summary.succeeded == 4));
    let prompts: BTreeSet<String> = server.bodies().iter().map(|body| body["prompt"].to_string()).collect();
    assert_eq!((server.bodies().len(), prompts.len()), (11, 11));
}

#[test]
fn a_warm_up_that_fails_ends_it() {
    let server = FakeServer::start(|_| json_answer(500, &json!({"error": "no weights"})));
    let client = client(&server.url());
    let settings = Settings { warmup: 2, ..settings() };
    let measured = block_on(load::measure(&client, settings, &mut |_| (), std::future::pending()));
    let error = measured.expect_err("nothing to measure").to_string();
    assert!(error.contains("status 500: no weights"), "{error}");
}

#[test]
fn failures_are_counted_beside_successes() {
    let count = AtomicUsize::new(0);
    let server = FakeServer::start(move |request| match count.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => json_answer(429, &json!({"error": {"message": "slow down"}})),
        _ => quick(request),
    });
    let settings = Settings { slo: Slo { ttft_ms: Some(60_000.0), tpot_ms: None }, ..settings() };
    let report = measure(&server, settings);
    let summary = &report.runs[0].summary;
    assert_eq!((summary.succeeded, summary.failed, report.succeeded()), (2, 2, 2));
    assert_eq!(summary.failures[0].example, "status 429: slow down");
    assert_eq!((summary.failures[0].kind, summary.failures[0].count), ("status", 2));
    assert_eq!(summary.goodput, Some(summary.requests_per_second));
    let json = report.as_json(true);
    assert_eq!(json["runs"][0]["requests"].as_array().map(Vec::len), Some(4));
    assert_eq!(json["runs"][0]["failed"], 2);
    assert_eq!(json["settings"]["model"], "fake");
    assert_eq!(report.as_json(false)["runs"][0]["requests"], json!(null));
}
