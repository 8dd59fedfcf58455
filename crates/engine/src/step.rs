//! One engine step: plan -> reserve -> launch -> collect -> commit -> deliver.
//!
//! Owns everything that a step touches and is driven by one thread (or by a simulator without any). A backend with two
//! steps in flight is collected for the step before: outputs of sequences that ended meanwhile are discarded, and their
//! rows and lanes come back only when the step in flight is committed.

use crate::clock::Watch;
use crate::metrics::StepTimes;
use crate::outbox::{EventSink, Feedback, Outbox};
use crate::plan::{Act, Pass, Piece, Plan};
use crate::scheduler::{Notice, Outcome, Scheduler, Span};
use crate::{
    AbortReason, Clock, Event, FinishReason, Forward, Metrics, PassView, Refusal, Request, RequestId, ScoreView,
};
use backend::{BackendError, Runtime, Ticket};
use kv::SequenceId;
use std::collections::VecDeque;
use std::sync::Arc;

/// The step loop without its thread.
pub struct Steps {
    /// Decides.
    pub scheduler: Scheduler,
    /// Tells the readers.
    pub outbox: Outbox,
    runtime: Arc<dyn Runtime>,
    forward: Arc<dyn Forward>,
    clock: Arc<dyn Clock>,
    in_flight: VecDeque<Launched>,
    /// When the last step was collected, in seconds.
    collected_at: f64,
    /// + by every step.
    times: StepTimes,
    /// Sees every plan as one line.
    trace: Option<Trace>,
}

/// Where plans are written to.
pub type Trace = Box<dyn FnMut(&Plan) + Send>;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was launched or collected.
    Worked,
    /// There was nothing to do, but there will be without anybody's doing: host memory is still being made.
    Waiting,
    /// There was nothing to do.
    Idle,
}

/// A step in flight.
struct Launched {
    plan: Plan,
    ticket: Ticket,
    began_at: f64,
    /// When the unit's calls had returned.
    unit_at: f64,
}

impl Steps {
    /// A loop over one runtime.
    pub fn new(
        mut scheduler: Scheduler,
        outbox: Outbox,
        runtime: Arc<dyn Runtime>,
        forward: Arc<dyn Forward>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        scheduler.extend_dram(runtime.dram_rows(), runtime.dram_grows());
        let (in_flight, collected_at) = (VecDeque::new(), clock.seconds());
        let times = StepTimes::default();
        Steps { scheduler, outbox, runtime, forward, clock, in_flight, collected_at, times, trace: None }
    }

    /// Shows every plan to `trace` before it is launched.
    pub fn set_trace(&mut self, trace: Trace) {
        self.trace = Some(trace);
    }

    /// One step.
    ///
    /// # Errors
    /// The device was lost: nothing can go on.
    pub fn step(&mut self) -> Result<Progress, BackendError> {
        let mut watch = Watch::start(self.clock.clone());
        // In this order: what is the last of it must not be missed.
        let grows = self.runtime.dram_grows();
        self.scheduler.extend_dram(self.runtime.dram_rows(), grows);
        let mut plan = self.scheduler.plan();
        self.scheduler.reserve(&mut plan);
        self.times.schedule_us += watch.lap();
        let launched = self.launch(plan);
        let outcome = self.collect(launched)?;
        self.times.device_us += if launched == Progress::Worked { watch.lap() } else { 0 };
        let Some(outcome) = outcome else {
            return Ok(if launched == Progress::Idle { self.rest() } else { launched });
        };
        let notices = self.scheduler.commit(outcome);
        self.times.schedule_us += watch.lap();
        self.deliver(notices);
        self.times.deliver_us += watch.lap();
        Ok(Progress::Worked)
    }

    /// Nothing runs: who waits does so for host memory, which metrics count as it comes, or is told that nobody will
    /// make room.
    fn rest(&mut self) -> Progress {
        if self.scheduler.dram_grows() {
            return Progress::Waiting;
        }
        let notices = self.scheduler.refuse_waiting();
        let progress = if notices.is_empty() { Progress::Idle } else { Progress::Worked };
        self.deliver(notices);
        progress
    }

    /// Counts of the present state, and where time went.
    pub fn metrics(&self) -> Metrics {
        Metrics { times: self.times, ..self.scheduler.metrics() }
    }

    /// Enqueues the prefill unit, then the decode step.
    fn launch(&mut self, plan: Plan) -> Progress {
        if plan.is_idle() {
            return Progress::Idle;
        }
        self.outbox.admitted(&plan.admitted, self.clock.seconds());
        if let Some(trace) = &mut self.trace {
            trace(&plan);
        }
        let began_at = self.clock.seconds();
        plan.pieces.iter().for_each(|piece| self.enqueue(piece));
        let unit_at = self.clock.seconds();
        let (runtime, forward) = (self.runtime.as_ref(), self.forward.as_ref());
        plan.decode.iter().filter(|decode| !decode.copies.is_empty()).for_each(|d| runtime.copy_rows(&d.copies));
        let ticket = plan
            .decode
            .as_ref()
            .map(|decode| runtime.launch(decode.key, &decode.input, &mut || forward.decode(runtime, decode.key)))
            .unwrap_or_else(|| runtime.fence());
        self.in_flight.push_back(Launched { plan, ticket, began_at, unit_at });
        Progress::Worked
    }

    /// Waits for the oldest step, where no more may be in flight or nothing new was launched.
    fn collect(&mut self, launched: Progress) -> Result<Option<Outcome>, BackendError> {
        let room = self.in_flight.len() < self.runtime.steps_in_flight();
        if room && launched == Progress::Worked {
            return Ok(None);
        }
        let Some(Launched { plan, ticket, began_at, unit_at }) = self.in_flight.pop_front() else { return Ok(None) };
        let output = self.runtime.collect(ticket)?;
        let now = self.clock.seconds();
        let (unit, step) = if self.runtime.steps_in_flight() == 1 {
            // Calls return when they are done: each part is measured by itself.
            (unit_at - began_at, now - unit_at)
        } else {
            // Steps run back to back on the device: the time between two collects, split as predicted.
            let (elapsed, shares) = (now - began_at.max(self.collected_at), plan.predicted_shares());
            (elapsed * shares.0, elapsed * shares.1)
        };
        // A step that follows another one begins where that one ends, whenever it was launched.
        let decode_span = Span { began: now - step, ended: now };
        self.collected_at = now;
        let unit_seconds = (!plan.pieces.is_empty()).then_some(unit);
        let decode_seconds = plan.decode.is_some().then_some(step);
        Ok(Some(Outcome { plan, unit_seconds, decode_seconds, decode_span, output }))
    }

    /// Tells the readers; what their texts and their absence mean goes back to the scheduler.
    pub fn deliver(&mut self, notices: Vec<Notice>) {
        let mut notices = notices;
        while !notices.is_empty() {
            let feedback = self.outbox.deliver(notices, self.clock.seconds());
            notices = feedback.into_iter().flat_map(|feedback| self.apply(feedback)).collect();
        }
    }

    /// Takes a request and its reader, or tells the reader why not.
    pub fn submit(&mut self, id: RequestId, request: Request, mut sink: Box<dyn EventSink>) {
        let now = self.clock.seconds();
        let blind = !request.stop_strings.is_empty() && !self.outbox.has_text();
        let taken = if blind {
            Err(Refusal::Invalid("stop strings need a tokenizer".to_string()))
        } else {
            self.scheduler.submit(id, request.clone())
        };
        match taken {
            Ok(()) => self.outbox.open(id, &request, sink, now),
            // A reader that is gone needs no refusal.
            Err(refusal) => drop(sink.send(Event::Refused(Box::new(refusal)))),
        }
    }

    /// Ends a request wherever it is.
    pub fn abort(&mut self, request: RequestId, reason: AbortReason) {
        let notices = self.scheduler.abort(request, reason);
        self.deliver(notices);
    }

    /// Lets a held sequence go.
    pub fn release(&mut self, sequence: SequenceId) {
        let notices = self.scheduler.release(sequence);
        self.deliver(notices);
    }

    /// Collects what is in flight and aborts every request; held sequences go too.
    pub fn shut_down(&mut self) {
        while let Ok(Some(outcome)) = self.collect(Progress::Idle) {
            let notices = self.scheduler.commit(outcome);
            self.deliver(notices);
        }
        for request in self.scheduler.request_ids() {
            self.abort(request, AbortReason::Shutdown);
        }
        self.abandon("the engine has shut down");
    }

    /// The device is lost: every request is told, all rows come back.
    pub fn abandon(&mut self, message: &str) {
        self.outbox.fail_all(message);
        self.in_flight.clear();
        self.scheduler.abandon();
    }

    fn apply(&mut self, feedback: Feedback) -> Vec<Notice> {
        match feedback {
            Feedback::Stopped(sequence) => self.scheduler.finish_sequence(sequence, FinishReason::StopString),
            Feedback::Unread(request, reason) => self.scheduler.abort(request, reason),
        }
    }

    /// Runs one piece of a prefill.
    fn enqueue(&self, piece: &Piece) {
        let (runtime, forward, of) = (self.runtime.as_ref(), self.forward.as_ref(), piece.sequence);
        match &piece.act {
            Act::Copy(copies) => runtime.copy_rows(copies),
            Act::Cache(change) => runtime.change_cache(change),
            Act::Start(start) => runtime.start_lane(start),
            Act::Gather { pass, layer } => {
                let view = self.pass_view(of, pass);
                runtime.enqueue(&mut || forward.prefill_gather(runtime, &view, *layer));
            }
            Act::Layer { pass, layer, tokens, .. } => {
                let view = self.pass_view(of, pass);
                runtime.enqueue(&mut || forward.prefill_layer(runtime, &view, *layer, tokens.clone()));
            }
            Act::Scatter { pass, layer } => {
                let view = self.pass_view(of, pass);
                runtime.enqueue(&mut || forward.prefill_scatter(runtime, &view, *layer));
            }
            Act::Index { owner, algorithm, key, layer, tokens } => {
                let (kv_rows, summary_rows) =
                    (self.scheduler.kv_rows(*owner), self.scheduler.summary_rows(*owner, *key));
                let tokens = (tokens.start, tokens.end);
                runtime.enqueue(&mut || {
                    forward.prefill_index(runtime, *algorithm, *layer, kv_rows, summary_rows, tokens);
                });
            }
            Act::Sample { pass, lanes } => {
                let view = self.pass_view(of, pass);
                runtime.enqueue(&mut || forward.prefill_sample(runtime, &view, lanes));
            }
        }
    }

    fn pass_view(&self, sequence: SequenceId, pass: &Pass) -> PassView<'_> {
        let tokens = self.scheduler.tokens(sequence);
        let targets = &tokens[pass.first + 1..tokens.len().min(pass.end + 1)];
        PassView {
            slot: pass.slot,
            tokens: &tokens[pass.first..pass.end],
            score: pass.scores.map(|top| ScoreView { targets, top }),
            first: pass.first,
            last_pass: pass.last,
            kv_rows: self.scheduler.kv_rows(sequence),
        }
    }
}
