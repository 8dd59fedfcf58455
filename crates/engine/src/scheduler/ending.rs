//! How sequences end and what comes back: rows and lanes, as soon as no step in flight uses them.

use super::{Notice, Scheduler};
use crate::event::{AbortReason, Attended, AttentionUsed, FinishReason, Usage};
use crate::request::{Request, RequestId};
use crate::sequence::{Phase, Sequence};
use kv::selection::Selected;
use kv::{LaneId, SequenceId, SequenceKv};

/// Rows and a lane that may be used again when step `after` is committed.
#[derive(Debug)]
pub(super) struct Retiring {
    pub(super) after: u64,
    pub(super) kv: Option<SequenceKv>,
    pub(super) lane: Option<LaneId>,
}

impl Scheduler {
    /// Ends one sequence with which nothing is wrong.
    pub(super) fn finish(&mut self, id: SequenceId, reason: FinishReason, notices: &mut Vec<Notice>) {
        self.end(id, reason, None, notices);
    }

    /// Ends one sequence: it is held, or its rows go.
    pub(super) fn end(
        &mut self,
        id: SequenceId,
        reason: FinishReason,
        error: Option<String>,
        notices: &mut Vec<Notice>,
    ) {
        let mut sequence = self.sequences.remove(&id).expect("only living sequences end");
        let request = self.requests[&sequence.request].request.clone();
        self.close_pass(id);
        let aborted = matches!(reason, FinishReason::Aborted(_));
        let (owner, choice) = (sequence.request, sequence.choice);
        let used = self.attention_used(&request, &sequence);
        let decoded = sequence.running().and_then(|running| running.decoded);
        let usage = usage(&sequence);
        let lane = sequence.lane.take();
        sequence.constraint = None;
        if request.hold && !aborted {
            // The last output has no K and V, and a step in flight may have appended it: it is forgotten.
            let with_kv = sequence.tokens.len() - usize::from(0 < sequence.completion_tokens());
            sequence.kv.truncate(with_kv);
            sequence.kv.settle(&mut self.tiers);
            sequence.phase = Phase::Held;
            notices.push(Notice::Held { request: owner, choice, sequence: id, tokens: sequence.kv.len() });
            self.retiring.push(Retiring { after: self.planned, kv: None, lane });
            self.sequences.insert(id, sequence);
        } else {
            self.retiring.push(Retiring { after: self.planned, kv: Some(sequence.kv), lane });
        }
        notices.push(Notice::Finished { request: owner, choice, reason, error, usage, attention: used, decoded });
        self.leave_group(owner, id, aborted);
    }

    fn leave_group(&mut self, request: RequestId, id: SequenceId, aborted: bool) {
        let group = self.requests.get_mut(&request).expect("a living sequence has a request");
        group.alive.retain(|&alive| alive != id);
        if group.alive.is_empty() {
            self.requests.remove(&request);
            if aborted { self.totals.aborted += 1 } else { self.totals.finished += 1 }
        }
    }

    /// Lets a held sequence go when the forks that were admitted have ended; forks of it that still wait are aborted,
    /// so that nobody waits for rows that only a later one could free. Unknown sequences are no error: it may be the
    /// second of two releases.
    pub fn release(&mut self, id: SequenceId) -> Vec<Notice> {
        let mut notices = self.end_held(id);
        self.refuse_stuck(&mut notices);
        notices
    }

    pub(super) fn end_held(&mut self, id: SequenceId) -> Vec<Notice> {
        let held = self.sequences.get(&id).is_some_and(|sequence| matches!(sequence.phase, Phase::Held));
        if !held || self.released.contains(&id) {
            return Vec::new();
        }
        let waits = |request: &&RequestId| self.requests[request].request.parent() == Some(id);
        let orphans: Vec<RequestId> = self.waiting.iter().filter(waits).copied().collect();
        let notices =
            orphans.into_iter().flat_map(|orphan| self.end_request(orphan, AbortReason::ParentReleased)).collect();
        self.released.push(id);
        self.reclaim();
        notices
    }

    /// Nothing is in flight any more and nobody is told: every row and lane comes back.
    pub fn abandon(&mut self) {
        self.committed = self.planned;
        self.debts_in_flight.clear();
        for (id, sequence) in std::mem::take(&mut self.sequences) {
            self.close_pass(id);
            self.retiring.push(Retiring { after: self.planned, kv: Some(sequence.kv), lane: sequence.lane });
        }
        self.requests.clear();
        self.waiting.clear();
        self.released.clear();
        self.changing.clear();
        self.prefixes.clear(&mut self.tiers.pool);
        self.reclaim();
    }

    /// Frees what no step in flight and no fork to come needs.
    pub(super) fn reclaim(&mut self) {
        let needed: Vec<SequenceId> = self.requests.values().filter_map(|group| group.request.parent()).collect();
        let (free, kept) = std::mem::take(&mut self.released).into_iter().partition(|id| !needed.contains(id));
        self.released = kept;
        let free: Vec<SequenceId> = free;
        for sequence in free.iter().filter_map(|id| self.sequences.remove(id)) {
            self.retiring.push(Retiring { after: self.planned, kv: Some(sequence.kv), lane: None });
        }
        let committed = self.committed;
        let (done, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.retiring).into_iter().partition(|retiring| retiring.after <= committed);
        self.retiring = kept;
        for Retiring { kv, lane, .. } in done {
            kv.into_iter().for_each(|kv| kv.release(&mut self.tiers));
            lane.iter().for_each(|lane| self.lanes[lane.at()] = None);
        }
    }

    /// What a waiting request's reader is told when it is aborted.
    pub(super) fn never_ran(&self, id: RequestId, request: &Request, choice: u32, reason: FinishReason) -> Notice {
        let prompt_tokens = self.prefix(request) + request.tokens().len();
        let usage = Usage { prompt_tokens, cached_tokens: 0, completion_tokens: 0 };
        let attention = self.attention(request, Attended::Nothing, 0, None);
        Notice::Finished { request: id, choice, reason, error: None, usage, attention, decoded: None }
    }

    fn attention_used(&self, request: &Request, sequence: &Sequence) -> AttentionUsed {
        let running = sequence.running().copied().unwrap_or_default();
        let Some((steps, _)) = running.decoded else {
            return self.attention(request, Attended::Prompt, sequence.prompt_tokens, None);
        };
        let context = sequence.prompt_tokens - request.fed_tokens() + steps;
        let mass = (0 < running.mass.1).then(|| (running.mass.0 / running.mass.1 as f64) as f32);
        let attended = match request.attention.selection.at(context) {
            Selected::AllExact(why) => Attended::All(why),
            Selected::Pages { .. } => Attended::Pages,
        };
        self.attention(request, attended, context, mass)
    }

    fn attention(&self, request: &Request, attended: Attended, context: usize, mass: Option<f32>) -> AttentionUsed {
        let (attention, spec) = (request.attention, &self.algorithms[usize::from(request.attention.algorithm.0)]);
        let selection = attention.selection;
        let decoded = matches!(attended, Attended::All(_) | Attended::Pages);
        AttentionUsed {
            algorithm: attention.algorithm,
            name: spec.name,
            budget: selection.budget,
            exact_tokens: if attended == Attended::Pages { selection.exact_tokens(context) } else { context },
            context_tokens: context,
            kv_bytes: if decoded { spec.reads.bytes(&selection, context) } else { 0 },
            attended,
            attention_mass: mass,
        }
    }
}

fn usage(sequence: &Sequence) -> Usage {
    let Sequence { prompt_tokens, cached_tokens, .. } = *sequence;
    Usage { prompt_tokens, cached_tokens, completion_tokens: sequence.completion_tokens() }
}
