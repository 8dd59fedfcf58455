//! Decides what each step does. Pure: no clock (measured durations come in with `commit`), no backend, no threads; the
//! same calls give the same plans.
//!
//! ```text
//! submit -> waiting -> (admit: rows and lanes reserved) -> prefilling -> running -> finished | held
//! ```
//!
//! The caller alternates `plan`, `reserve` and `commit`; with two steps in flight, the second is planned before the
//! first is committed. Everything that a plan starts counts as done for the next plan; only outputs wait for `commit`.

mod admission;

mod prefix;

mod residency;

mod preemption;

mod unit;

mod decode;

mod commit;

mod constrain;

mod ending;

mod integrity;

#[cfg(test)]
mod prefix_fuzz;

pub use commit::{Notice, Outcome, Output, Span};

use crate::PASSES_MAX;
use crate::constraint::Constrained;
use crate::cost::CostModel;
use crate::plan::Plan;
use crate::request::{Refusal, Request, RequestId};
use crate::sequence::{Phase, Sequence};
use crate::{EngineConfig, Metrics};
use backend::Retrieved;
use ending::Retiring;
use kv::{RowId, SequenceId, SummaryKey, Tiers, TokenId};
use prefix::PrefixCache;
use sparse::AlgorithmSpec;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Sequences, rows and lanes, and what happens to them next.
#[derive(Debug)]
pub struct Scheduler {
    config: EngineConfig,
    /// By `AlgorithmId`.
    algorithms: Vec<AlgorithmSpec>,
    layers: usize,
    tiers: Tiers,
    /// What stays of prompts that were read: asked by admission, grows when a prefill ends.
    prefixes: PrefixCache,
    /// Who has each lane; freed by `reclaim`.
    lanes: Vec<Option<SequenceId>>,
    /// In arrival order; from `submit` to `admit` or `abort`.
    waiting: VecDeque<RequestId>,
    /// Left the queue since the last plan.
    admitted: Vec<RequestId>,
    /// From `submit` until the last choice has ended.
    requests: BTreeMap<RequestId, Group>,
    /// From `admit` until the end; held ones until `release`.
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Who has each pass's buffers.
    slots: [Option<SequenceId>; PASSES_MAX],
    /// Rows and lanes that a step in flight may still use.
    retiring: Vec<Retiring>,
    /// Held parents that are released as soon as no fork needs them.
    released: Vec<SequenceId>,
    /// Sequences that are to have other cache rows, and how many: so that the queue's head fits. Grows by `press`.
    changing: VecDeque<(SequenceId, usize)>,
    /// Whether more rows of host memory are to come.
    dram_grows: bool,
    cost: CostModel,
    /// Seconds that decode is owed before the next prefill unit, as of the last committed step: + by units, - by decode
    /// steps, never below 0.
    decode_debt_seconds: f64,
    /// What the steps in flight should add to it: pushed by `plan`, popped by `commit`.
    debts_in_flight: VecDeque<f64>,
    /// The last step planned.
    planned: u64,
    /// The last step committed.
    committed: u64,
    /// The last step planned whose unit gives something to collect.
    sampled: u64,
    /// Ids given out.
    sequences_made: u64,
    totals: Totals,
}

/// A request and its living choices.
#[derive(Debug)]
struct Group {
    request: Arc<Request>,
    /// Choices that have not ended; empty while it waits.
    alive: Vec<SequenceId>,
    /// The choices' constraints, where it has any; empty from its admission on.
    constraints: Vec<Constrained>,
}

/// What happened since the start, for metrics; everything else is computed from the state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) prefill_tokens: u64,
    pub(crate) prefix_queried: u64,
    pub(crate) prefix_hits: u64,
    pub(crate) decode_tokens: u64,
    pub(crate) finished: u64,
    pub(crate) aborted: u64,
    pub(crate) refused: u64,
    pub(crate) retrieved: Retrieved,
    pub(crate) offloaded_rows: u64,
    pub(crate) made_sparse: u64,
    pub(crate) preempted: u64,
}

impl Scheduler {
    /// A scheduler for a model of `layers` layers; `algorithms[i]` is `AlgorithmId(i)`.
    pub fn new(config: EngineConfig, algorithms: Vec<AlgorithmSpec>, layers: usize) -> Self {
        config.check();
        let (tiers, cost) = (Tiers::new(config.pool_rows, 0), config.cost);
        Scheduler {
            lanes: vec![None; config.max_lanes],
            config,
            algorithms,
            layers,
            tiers,
            prefixes: PrefixCache::default(),
            waiting: VecDeque::new(),
            admitted: Vec::new(),
            requests: BTreeMap::new(),
            sequences: BTreeMap::new(),
            slots: [None; PASSES_MAX],
            retiring: Vec::new(),
            released: Vec::new(),
            changing: VecDeque::new(),
            dram_grows: false,
            cost,
            decode_debt_seconds: 0.0,
            debts_in_flight: VecDeque::new(),
            planned: 0,
            committed: 0,
            sampled: 0,
            sequences_made: 0,
            totals: Totals::default(),
        }
    }

    /// Decides the next step: who is admitted, who decodes, and which parts of which prompts are prefilled.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan { step: self.planned + 1, ..Plan::default() };
        self.extend_open(&mut plan);
        self.admit_waiting();
        self.change_residence(&mut plan);
        plan.decode = self.choose_lanes();
        self.open_passes();
        self.fill_unit(&mut plan);
        plan.admitted = std::mem::take(&mut self.admitted);
        if !plan.is_idle() {
            self.planned = plan.step;
            self.debts_in_flight.push_back(self.debt_of(plan.unit_seconds, plan.decode_seconds()));
        }
        plan
    }

    /// Takes the rows that the plan's decode step appends to, out of what admission reserved.
    pub fn reserve(&mut self, plan: &mut Plan) {
        if let Some(decode) = &mut plan.decode {
            self.append_rows(decode);
        }
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// It can never run, or the queue is full.
    pub fn submit(&mut self, id: RequestId, request: Request) -> Result<(), Refusal> {
        self.admit_waiting();
        let checked = self.check(&request).and_then(|()| self.check_queue()).and_then(|()| self.constrain(&request));
        if checked.is_err() {
            self.totals.refused += 1;
        }
        let constraints = checked?;
        self.requests.insert(id, Group { request: Arc::new(request), alive: Vec::new(), constraints });
        self.waiting.push_back(id);
        let mut notices = Vec::new();
        self.refuse_stuck(&mut notices);
        if let Some(Notice::Refused { refusal, .. }) = notices.pop() {
            // It was alone in the queue: nobody else waits while nothing runs.
            return Err(refusal);
        }
        let queued = self.check_bound(self.waiting.len());
        if queued.is_err() {
            self.waiting.pop_back();
            self.requests.remove(&id);
            self.totals.refused += 1;
        }
        queued
    }

    /// Whether one more can wait, asked before work is done for it: nobody overtakes those that wait already.
    fn check_queue(&self) -> Result<(), Refusal> {
        if self.waiting.is_empty() { Ok(()) } else { self.check_bound(self.waiting.len() + 1) }
    }

    /// Whether so many may wait.
    fn check_bound(&self, waiting: usize) -> Result<(), Refusal> {
        let max_queue = self.config.max_queue;
        if max_queue < waiting { Err(Refusal::QueueFull { max_queue }) } else { Ok(()) }
    }

    /// All tokens of a sequence that exists.
    pub fn tokens(&self, sequence: SequenceId) -> &[TokenId] {
        &self.sequences[&sequence].tokens
    }

    /// A sequence's KV row table.
    pub fn kv_rows(&self, sequence: SequenceId) -> &[RowId] {
        self.sequences[&sequence].kv.kv_rows()
    }

    /// One of a sequence's summary row tables.
    pub fn summary_rows(&self, sequence: SequenceId, key: SummaryKey) -> &[RowId] {
        self.sequences[&sequence].kv.summary_rows(key)
    }

    /// Whether a request waits, runs or is being prefilled.
    pub fn is_busy(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Every request that has not ended, in the order of their numbers.
    pub fn request_ids(&self) -> Vec<RequestId> {
        self.requests.keys().copied().collect()
    }

    /// Counts of the present state.
    pub fn metrics(&self) -> Metrics {
        Metrics::count(self)
    }

    pub(crate) fn config(&self) -> &EngineConfig {
        &self.config
    }

    pub(crate) fn tiers(&self) -> &Tiers {
        &self.tiers
    }

    pub(crate) fn prefixes(&self) -> &PrefixCache {
        &self.prefixes
    }

    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.values()
    }

    pub(crate) fn waiting_requests(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn lanes_free(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.is_none()).count()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn steps(&self) -> (u64, u64) {
        (self.planned, self.committed)
    }

    /// The request that a sequence belongs to; it has one until it has ended.
    fn request_of(&self, sequence: SequenceId) -> Arc<Request> {
        self.requests[&self.sequences[&sequence].request].request.clone()
    }

    fn prefilling(&self) -> impl Iterator<Item = (&Sequence, &crate::prefill::Prefill)> {
        self.sequences.values().filter_map(|sequence| match &sequence.phase {
            Phase::Prefilling(prefill) => Some((sequence, prefill.as_ref())),
            _ => None,
        })
    }
}
