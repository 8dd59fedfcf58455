//! One run: requests are sent as their arrivals say, until there are no more, the time is over, or somebody stops it.
//!
//! One loop owns the run; requests are its tasks. Bodies are made by a thread of their own, a few ahead, because a
//! prompt of 100K ids takes milliseconds that would falsify the times of the streams.

use crate::body::BodyTemplate;
use crate::client::Client;
use crate::exchange::{Call, Measured, exchange};
use crate::failure::Failure;
use crate::prompt::PromptSource;
use crate::random::Random;
use crate::workload::{Arrival, Load, Workload};
use serde::Serialize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// Bodies that are made ahead; the thread waits at it.
const AHEAD_MAX: usize = 16;
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Where a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// After so many requests.
    pub requests: Option<u64>,
    /// Nothing is sent after so long; what runs then is waited for.
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub duration: Option<Duration>,
    /// No more requests run at once; an open loop that reaches it waits.
    pub max_concurrency: usize,
}

fn seconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All requests were sent and have ended.
    Requests,
    /// Its time was over.
    Duration,
    /// Somebody stopped it; what ran then was aborted.
    Stopped,
}

/// Which run it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is measured yet.
    WarmUp,
    /// The run of this load, from 0.
    Run(usize),
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Which run.
    pub stage: Stage,
    /// Of this run.
    pub load: Load,
    /// Requests that have ended, failed ones included.
    pub ended: u64,
    /// Of those.
    pub failed: u64,
    /// Requests that were sent and have not ended.
    pub running: u64,
    /// Chunks with tokens so far: tokens, where the server sends them one by one.
    pub chunks: u64,
    /// Since the run's start.
    pub elapsed: Duration,
}

/// One request that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// From 0, in order of arrival.
    pub index: u64,
    /// Tokens that the prompt was made for.
    pub prompt_tokens: usize,
    /// Tokens that were asked for.
    pub max_tokens: usize,
    /// Seconds from the run's start to sending.
    pub sent: f64,
    /// Seconds that it was sent after its arrival; zero in a closed loop.
    pub late: f64,
    /// Seconds from the run's start to its end.
    pub ended: f64,
    /// What came of it.
    pub outcome: Result<Measured, Failure>,
}

/// What a run has found.
#[derive(Clone, Debug)]
pub(crate) struct RunOutcome {
    /// In the order in which they ended.
    pub(crate) records: Vec<Record>,
    /// Requests that the end of the run cut off.
    pub(crate) aborted: u64,
    /// Requests that waited at `max_concurrency`.
    pub(crate) held_back: u64,
    pub(crate) ended: Ended,
}

/// What all runs of a benchmark have in common.
pub(crate) struct Calls {
    pub(crate) template: BodyTemplate,
    pub(crate) source: PromptSource,
    pub(crate) shared_tokens: usize,
    pub(crate) prompt_seed: u64,
}

impl Calls {
    /// The call of an arrival; no two stages share a prompt.
    fn call(&self, stage: Stage, arrival: &Arrival) -> Call {
        let run = match stage {
            Stage::WarmUp => 0,
            Stage::Run(number) => 1 + number as u64,
        };
        let group = Random::new(&[self.prompt_seed, run, 0, arrival.group]);
        let own = Random::new(&[self.prompt_seed, run, 1, arrival.index]);
        let prompt = self.source.prompt(arrival.prompt_tokens, self.shared_tokens, group, own);
        let wanted_tokens = self.template.is_exact().then_some(arrival.max_tokens as u64);
        let body = self.template.stream(&prompt, arrival.max_tokens);
        Call { path: self.template.endpoint.path(), body, wanted_tokens }
    }
}

/// A request that waits for its time.
struct Waiting {
    arrival: Arrival,
    call: Call,
}

/// A run that is under way.
struct Run<'a> {
    client: &'a Client,
    stage: Stage,
    load: Load,
    limits: Limits,
    start: Instant,
    running: JoinSet<Record>,
    waiting: Option<Waiting>,
    /// When the last place became free that somebody may have waited for.
    full_until: Option<Instant>,
    chunks: Arc<AtomicU64>,
    outcome: RunOutcome,
}

/// Runs it. `progress` is called about five times a second; the run stops when `stop` is ready.
pub(crate) async fn run<S: Future<Output = ()>>(
    client: &Client,
    calls: &Arc<Calls>,
    stage: Stage,
    workload: Workload,
    limits: Limits,
    progress: &mut dyn FnMut(Progress),
    mut stop: Pin<&mut S>,
) -> RunOutcome {
    let load = workload.load();
    let mut ready = make_calls(calls.clone(), stage, workload, limits.requests);
    let mut run = Run::new(client, stage, load, limits);
    let time_over = sleep_until(run.start + limits.duration.unwrap_or_default());
    tokio::pin!(time_over);
    let mut show = interval(PROGRESS_EVERY);
    show.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut more = true;
    while more || run.waiting.is_some() || !run.running.is_empty() {
        let due = sleep_until(run.due());
        let can_send = run.waiting.is_some() && run.has_place();
        tokio::select! {
            biased;
            () = stop.as_mut() => {
                run.abort();
                break;
            }
            () = &mut time_over, if limits.duration.is_some() && (more || run.waiting.is_some()) => {
                run.outcome.ended = Ended::Duration;
                (run.waiting, more) = (None, false);
            }
            Some(joined) = run.running.join_next() => run.take(joined),
            call = ready.recv(), if more && run.waiting.is_none() => match call {
                Some(call) => run.waiting = Some(call),
                None => more = false,
            },
            () = due, if can_send => run.send(),
            _ = show.tick() => progress(run.progress()),
        }
    }
    progress(run.progress());
    run.outcome
}

/// Makes calls on a thread that ends with the workload, or when nobody takes them any more.
fn make_calls(calls: Arc<Calls>, stage: Stage, workload: Workload, requests: Option<u64>) -> mpsc::Receiver<Waiting> {
    let (sender, receiver) = mpsc::channel(AHEAD_MAX);
    std::thread::spawn(move || {
        let is_wanted = |arrival: &Arrival| requests.is_none_or(|requests| arrival.index < requests);
        for arrival in workload.take_while(is_wanted) {
            let call = calls.call(stage, &arrival);
            if sender.blocking_send(Waiting { arrival, call }).is_err() {
                return;
            }
        }
    });
    receiver
}

impl<'a> Run<'a> {
    fn new(client: &'a Client, stage: Stage, load: Load, limits: Limits) -> Self {
        let outcome = RunOutcome { records: Vec::new(), aborted: 0, held_back: 0, ended: Ended::Requests };
        Run {
            client,
            stage,
            load,
            limits,
            start: Instant::now(),
            running: JoinSet::new(),
            waiting: None,
            full_until: None,
            chunks: Arc::default(),
            outcome,
        }
    }

    fn places(&self) -> usize {
        match self.load {
            Load::Concurrency(concurrency) => concurrency.min(self.limits.max_concurrency),
            Load::Rate(_) => self.limits.max_concurrency,
        }
    }

    fn has_place(&self) -> bool {
        self.running.len() < self.places()
    }

    /// When the waiting request is to be sent.
    fn due(&self) -> Instant {
        self.start + self.waiting.as_ref().map_or(Duration::ZERO, |waiting| waiting.arrival.after)
    }

    fn send(&mut self) {
        let due = self.due();
        let Some(Waiting { arrival, call }) = self.waiting.take() else { return };
        let now = Instant::now();
        let is_open = matches!(self.load, Load::Rate(_));
        if is_open && self.full_until.is_some_and(|until| due < until) {
            self.outcome.held_back += 1;
        }
        let late = if is_open { (now - due).as_secs_f64() } else { 0.0 };
        let (client, chunks, start) = (self.client.clone(), self.chunks.clone(), self.start);
        self.running.spawn(async move {
            let sent = start.elapsed().as_secs_f64();
            let outcome = exchange(&client, call, &chunks).await;
            let Arrival { index, prompt_tokens, max_tokens, .. } = arrival;
            Record { index, prompt_tokens, max_tokens, sent, late, ended: start.elapsed().as_secs_f64(), outcome }
        });
    }

    fn take(&mut self, joined: Result<Record, tokio::task::JoinError>) {
        if self.running.len() + 1 == self.places() {
            self.full_until = Some(Instant::now());
        }
        match joined {
            Ok(record) => self.outcome.records.push(record),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Only `abort` cancels, and nobody joins after it.
            Err(error) => unreachable!("a request was cancelled: {error}"),
        }
    }

    fn abort(&mut self) {
        self.outcome.ended = Ended::Stopped;
        self.outcome.aborted = self.running.len() as u64;
        // A set that is dropped aborts its tasks, which closes their connections.
        self.running = JoinSet::new();
    }

    fn progress(&self) -> Progress {
        let records = &self.outcome.records;
        Progress {
            stage: self.stage,
            load: self.load,
            ended: records.len() as u64,
            failed: records.iter().filter(|record| record.outcome.is_err()).count() as u64,
            running: self.running.len() as u64,
            chunks: self.chunks.load(Ordering::Relaxed),
            elapsed: self.start.elapsed(),
        }
    }
}
