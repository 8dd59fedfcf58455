//! The prefill unit of a step: parts of prompts, until the time that a unit may take is used up.
//!
//! ```text
//! steps   |unit decode|decode|decode|unit decode|decode|...
//! debt     + t*share/(1-share)  - - -  0: the next unit may come
//! ```

use super::{Notice, Scheduler};
use crate::constraint::Constrained;
use crate::plan::{Act, Piece, Plan, PrefillEnd};
use crate::prefill::{Part, Passes, Prefill};
use crate::request::Request;
use crate::sequence::{Phase, Running, Sequence};
use backend::{FirstInput, LaneStart, RowCopy};
use kv::{LaneId, Residence, RowCopies, SequenceId};

/// How much of its waiting time a prefill is ahead of a shorter one: it is overtaken, but not for ever.
const AGEING: f64 = 0.5;

/// A unit is full when less than this share of its time is left.
const UNIT_REST_SHARE: f64 = 0.1;

impl Scheduler {
    /// Gives free pass buffers to the prefills that are to go first.
    pub(super) fn open_passes(&mut self) {
        while let Some(slot) = self.slots.iter().position(Option::is_none) {
            let without = self.prefilling().filter(|(_, prefill)| prefill.slot.is_none() && !prefill.is_done());
            let Some(id) = self.most_urgent(without) else { return };
            self.slots[slot] = Some(id);
            self.prefill_mut(id).slot = Some(slot);
        }
    }

    /// Fills the step's unit, if decode is owed nothing.
    pub(super) fn fill_unit(&mut self, plan: &mut Plan) {
        if plan.decode.is_some() && self.owes_decode() {
            return;
        }
        let (unit, mut used) = (self.config.unit_seconds, plan.unit_seconds);
        // The beginning of a prefill is no piece, and a step without any would look like the end of all work.
        while plan.pieces.is_empty() || used < unit * (1.0 - UNIT_REST_SHARE) || self.is_ending() {
            let open = self.prefilling().filter(|(_, prefill)| prefill.slot.is_some());
            let Some(id) = self.most_urgent(open) else { break };
            let prefill = self.prefill(id);
            let Some(part) = prefill.next(unit - used, &self.cost) else { break };
            let scores = 0 < prefill.scored(&part);
            let collects = part == Part::Sample || scores;
            if collects && self.committed < self.sampled {
                // What prefills produce is collected for one step at a time.
                break;
            }
            let work = prefill.work(&part);
            let seconds = self.cost.seconds(&work);
            // The end of a prompt is short and somebody waits for it.
            let ends = matches!(part, Part::Start | Part::Sample);
            if !plan.pieces.is_empty() && unit < used + seconds && !ends {
                break;
            }
            used += seconds;
            plan.work = plan.work.plus(work);
            // One part's scores are collected at a time, so that a prompt's length bounds how many are in flight.
            if self.do_part(id, part, plan) == Rest::NextUnit || scores {
                break;
            }
            self.open_passes();
        }
        plan.unit_seconds = used;
        if plan.has_prefill_output() {
            self.sampled = plan.step;
        }
        self.age(plan);
    }

    /// What a step adds to decode's debt; without a decode step nothing is owed to anybody.
    pub(super) fn debt_of(&self, unit_seconds: f64, decode_seconds: Option<f64>) -> f64 {
        let share = self.config.decode_share;
        decode_seconds.map_or(0.0, |decode| unit_seconds * share / (1.0 - share) - decode)
    }

    /// What a prefill's progress is worth telling: at most a hundred times.
    pub(super) fn report_progress(&mut self, id: SequenceId, notices: &mut Vec<Notice>) {
        let Some(Sequence { request, phase: Phase::Prefilling(prefill), .. }) = self.sequences.get_mut(&id) else {
            return;
        };
        let (done, total) = prefill.progress();
        let percent = done * 100 / total.max(1);
        if prefill.reported_percent < percent {
            prefill.reported_percent = percent;
            notices.push(Notice::Prefill { request: *request, done, total });
        }
    }

    /// Plans one part and moves the prefill's cursor behind it.
    fn do_part(&mut self, id: SequenceId, part: Part, plan: &mut Plan) -> Rest {
        let push = |plan: &mut Plan, act| plan.pieces.push(Piece { sequence: id, act });
        let pass = self.prefill(id).needs_slot().then(|| self.prefill(id).pass());
        let pass_or = |what: &str| pass.unwrap_or_else(|| panic!("{what} of {id} without a pass"));
        match &part {
            Part::ParentIndex { layer, tokens } => {
                let from = self.prefill(id).parent_index().expect("the part is the parent's Index");
                push(plan, index_act(from.parent, &from.indexing, *layer, tokens));
            }
            Part::Index { layer, tokens } => {
                let indexing = self.sequences[&id].kv.indexing().expect("the part is the sequence's Index");
                push(plan, index_act(id, &indexing, *layer, tokens));
            }
            Part::Begin => self.begin(id, plan),
            Part::Gather { layer } => push(plan, Act::Gather { pass: pass_or("gather"), layer: *layer }),
            Part::Scatter { layer } => push(plan, Act::Scatter { pass: pass_or("scatter"), layer: *layer }),
            Part::Layer { layer, tokens } => {
                let (scored, tokens) = (self.prefill(id).scored(&part), tokens.clone());
                push(plan, Act::Layer { pass: pass_or("layer"), layer: *layer, tokens, scored });
            }
            Part::Start => self.start_lanes(id, plan),
            Part::Sample => {
                let lanes = self.choices(id).iter().map(|&choice| self.lane_of(choice)).collect();
                push(plan, Act::Sample { pass: pass_or("sample"), lanes });
            }
        }
        self.advance(id, &part);
        if self.prefill(id).is_done() { self.end_prefill(id, plan) } else { Rest::SameUnit }
    }

    /// Moves the cursor; what is finished with the part is marked so.
    fn advance(&mut self, id: SequenceId, part: &Part) {
        let before = self.prefill(id).parent_index();
        let (done_before, _) = self.prefill(id).progress();
        if self.prefill_mut(id).advance(part) == Passes::Next {
            self.prefill_mut(id).slot = None;
            self.close_pass(id);
        }
        if let (Some(part), None) = (before, self.prefill(id).parent_index()) {
            let parent = self.sequences.get_mut(&part.parent).expect("a parent outlives its forks' prefill");
            parent.kv.mark_indexed(part.indexing.key, part.to);
        }
        let (done, _) = self.prefill(id).progress();
        self.totals.prefill_tokens += (done - done_before) as u64;
    }

    /// The sequence gets its rows: shared up to the prefix, its own behind.
    fn begin(&mut self, id: SequenceId, plan: &mut Plan) {
        let request = self.request_of(id);
        let end = if request.feeds_by_decode() { self.prefix(&request) } else { self.sequences[&id].prompt_tokens };
        if let Some(parent) = request.parent() {
            let at = self.prefix(&request);
            self.fork(parent, id, at, plan);
        }
        let copies = self.sequences.get_mut(&id).expect("it is prefilled").kv.prepare(end, &mut self.tiers);
        copy_act(id, copies, plan);
    }

    /// K, V and summaries of the prompt are in rows: the choices part and get their lanes.
    fn start_lanes(&mut self, id: SequenceId, plan: &mut Plan) {
        let first = self.sequences.get_mut(&id).expect("it is prefilled");
        let fed = first.kv.len();
        let end = first.prefill().map_or(fed, |prefill| fed + prefill.progress().1);
        first.kv.advance(end - fed);
        if let Some(indexing) = first.kv.indexing() {
            first.kv.mark_indexed(indexing.key, indexing.indexed_tokens(end));
        }
        for choice in self.choices(id) {
            if choice != id {
                self.fork(id, choice, end, plan);
            }
            if self.sequences[&choice].lane.is_some() {
                self.sequences.get_mut(&choice).expect("it is alive").kv.open_cache(&mut self.tiers);
                let start = Box::new(self.lane_start(choice));
                plan.pieces.push(Piece { sequence: choice, act: Act::Start(start) });
            }
        }
    }

    /// The prompt is planned to its end: the choices run from the next step on.
    fn end_prefill(&mut self, id: SequenceId, plan: &mut Plan) -> Rest {
        let request = self.request_of(id);
        self.close_pass(id);
        let choices = self.choices(id);
        let silent = if request.feeds_by_decode() { request.tokens().len() - 1 } else { 0 };
        let planned = usize::from(0 < request.max_tokens && !request.feeds_by_decode());
        let outputs_max = silent + self.completion_max(&request);
        let running = Running { silent, planned, outputs_max, ..Running::default() };
        self.keep_prompt(id, &request);
        for choice in &choices {
            self.sequences.get_mut(choice).expect("it is alive").phase = Phase::Running(running);
        }
        let forced = request.forced.first().copied();
        let (end, rest) = match (forced, request.feeds_by_decode(), request.max_tokens) {
            (_, true, _) if outputs_max == 0 => (PrefillEnd::Done(choices), Rest::SameUnit),
            (_, true, _) => (PrefillEnd::Fed, Rest::SameUnit),
            (_, false, 0) => (PrefillEnd::Done(choices), Rest::SameUnit),
            (Some(token), false, _) => (PrefillEnd::Given(choices, token), Rest::SameUnit),
            (None, false, _) => (PrefillEnd::Sampled(choices), Rest::NextUnit),
        };
        plan.ends.push(end);
        rest
    }

    /// The prompt is read: its rows stay for prompts that begin alike, also while it runs.
    fn keep_prompt(&mut self, id: SequenceId, request: &Request) {
        if let Some(prompt) = self.cached_prompt(request) {
            let kv = &self.sequences[&id].kv;
            // What is at home in host memory is not kept.
            if kv.residence() == Residence::Full {
                self.prefixes.keep(prompt, kv, &mut self.tiers.pool);
            }
        }
    }

    fn fork(&mut self, parent: SequenceId, child: SequenceId, at: usize, plan: &mut Plan) {
        let kv = &mut self.sequences.get_mut(&child).expect("the child is alive").kv;
        let (promise, indexing, residence) = (kv.take_promise(), kv.indexing(), kv.residence());
        let (forked, copies) = self.sequences[&parent].kv.fork(at, indexing, residence, promise, &mut self.tiers);
        self.sequences.get_mut(&child).expect("the child is alive").kv = forked;
        copy_act(child, copies, plan);
    }

    fn lane_start(&self, id: SequenceId) -> LaneStart {
        let (sequence, request) = (&self.sequences[&id], self.request_of(id));
        let penalised = request.sampling.repetition_penalty != 1.0;
        let mut sampling = request.sampling.clone();
        sampling.choice = sampling.choice.wrapping_add(sequence.choice);
        let first = first_input(&request);
        let constraint = sequence.constraint.as_ref().filter(|_| first == FirstInput::Sampled);
        LaneStart {
            lane: self.lane_of(id),
            algorithm: request.attention.algorithm,
            selection: request.attention.selection,
            len: sequence.kv.len(),
            first,
            kv_rows: sequence.kv.kv_rows().to_vec(),
            summary_rows: sequence.kv.decode_summary_rows().to_vec(),
            cache_rows: sequence.kv.cache().slots().to_vec(),
            sampling,
            prompt: if penalised { sequence.tokens.clone() } else { Vec::new() },
            mask: constraint.map(Constrained::mask),
        }
    }

    /// The one that is ahead: shortest first, but waiting counts.
    fn most_urgent<'a>(&self, candidates: impl Iterator<Item = (&'a Sequence, &'a Prefill)>) -> Option<SequenceId> {
        let ahead = |prefill: &Prefill| prefill.remaining_seconds(&self.cost) - AGEING * prefill.waited_seconds;
        let keyed = candidates.map(|(sequence, prefill)| (ahead(prefill), sequence.id));
        keyed.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, id)| id)
    }

    /// Prefills that got no part of this unit have waited for it.
    fn age(&mut self, plan: &Plan) {
        for sequence in self.sequences.values_mut() {
            let served = plan.pieces.iter().any(|piece| piece.sequence == sequence.id);
            if let Phase::Prefilling(prefill) = &mut sequence.phase
                && !served
            {
                prefill.waited_seconds += plan.unit_seconds;
            }
        }
    }

    /// Whether the prompt that goes next has nothing but its end to come.
    fn is_ending(&self) -> bool {
        let open = self.prefilling().filter(|(_, prefill)| prefill.slot.is_some());
        self.most_urgent(open).is_some_and(|id| self.prefill(id).is_ending())
    }

    /// Takes back the pass buffers of a sequence.
    pub(super) fn close_pass(&mut self, id: SequenceId) {
        self.slots.iter_mut().filter(|slot| **slot == Some(id)).for_each(|slot| *slot = None);
    }

    /// The living choices of a sequence's request, ascending.
    fn choices(&self, id: SequenceId) -> Vec<SequenceId> {
        self.requests[&self.sequences[&id].request].alive.clone()
    }

    pub(super) fn lane_of(&self, id: SequenceId) -> LaneId {
        self.sequences[&id].lane.expect("a sequence that decodes has a lane from its admission on")
    }

    fn prefill(&self, id: SequenceId) -> &Prefill {
        self.sequences[&id].prefill().expect("it is prefilled")
    }

    fn prefill_mut(&mut self, id: SequenceId) -> &mut Prefill {
        match self.sequences.get_mut(&id).map(|sequence| &mut sequence.phase) {
            Some(Phase::Prefilling(prefill)) => prefill,
            _ => panic!("{id} is prefilled"),
        }
    }
}

/// Whether more may follow in the unit: one prompt's first tokens are collected at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    SameUnit,
    NextUnit,
}

/// Rows are copied, if there are any.
pub(super) fn copy_act(sequence: SequenceId, copies: RowCopies, plan: &mut Plan) {
    if !copies.is_empty() {
        let copies = copies.into_iter().map(|(source, target)| RowCopy { source, target }).collect();
        plan.pieces.push(Piece { sequence, act: Act::Copy(copies) });
    }
}

fn index_act(owner: SequenceId, indexing: &kv::Indexing, layer: usize, tokens: &std::ops::Range<usize>) -> Act {
    let algorithm = backend::AlgorithmId(indexing.key.algorithm);
    Act::Index { owner, algorithm, key: indexing.key, layer, tokens: tokens.clone() }
}

/// What a lane's first step reads.
fn first_input(request: &Request) -> FirstInput {
    match request.forced.first() {
        _ if request.feeds_by_decode() => {
            FirstInput::Prompt { token: request.tokens()[0], outputs: request.tokens().len() - 1 }
        }
        Some(&token) => FirstInput::Given(token),
        None => FirstInput::Sampled,
    }
}
