//! A sequence that may be parked gets rows for some tokens at a time. Where there are none left, the oldest one gets
//! them from the youngest ones, which are parked in host memory and come back later.
//!
//! ```text
//! here --(an older one lacks rows)-> leaving -> away --(there is room again)-> returning -> here
//! ```
//!
//! Why everybody gets to the end: the oldest one needs no place in host memory, because it is never parked, and all
//! others that are parked have theirs already; so they can make room until it is alone with those that have rows to
//! their end. Alone it fits: that was checked when it came.

use super::Scheduler;
use super::residency::decodes;
use super::unit::copy_act;
use crate::plan::Plan;
use crate::request::Request;
use crate::sequence::{Phase, Sequence};
use backend::CacheChange;
use kv::budget::{self, Room, Wish};
use kv::{Moves, Presence, Promise, RowCounts, SequenceId, Tier};

impl Scheduler {
    /// Whether a request's rows may be reserved for a while only. What is held may stay for ever, and a parent's rows
    /// are its forks' too: nobody is parked to wait for those.
    pub(super) fn may_be_open(&self, request: &Request) -> bool {
        let holds = |sequence: &Sequence| {
            matches!(sequence.phase, Phase::Held) || self.requests[&sequence.request].request.hold
        };
        let alone = request.parent().is_none() && !request.hold && request.decodes();
        alone && 0 < self.config.dram_rows && !self.sequences.values().any(holds)
    }

    /// Whether one that runs waits for rows: they are its own before anybody is admitted.
    pub(super) fn is_short(&self) -> bool {
        self.sequences.values().any(lacks)
    }

    /// Moves who is on the way, and gives rows to those that lack some, the oldest first.
    pub(super) fn extend_open(&mut self, plan: &mut Plan) {
        let on_the_way = |sequence: &&Sequence| {
            decodes(sequence) && matches!(sequence.kv.presence(), Presence::Leaving | Presence::Returning)
        };
        for id in self.sequences.values().filter(on_the_way).map(|sequence| sequence.id).collect::<Vec<_>>() {
            self.carry(id, plan);
        }
        let short: Vec<SequenceId> =
            self.sequences.values().filter(|sequence| lacks(sequence)).map(|sequence| sequence.id).collect();
        for id in short {
            let presence = self.sequences[&id].kv.presence();
            if !matches!(presence, Presence::Here | Presence::Away) {
                continue;
            }
            if !self.extend(id) {
                return self.make_way(id, plan);
            }
            if presence == Presence::Away {
                self.carry(id, plan);
            }
        }
    }

    /// Rows for the tokens to come, and for those that are away.
    fn extend(&mut self, id: SequenceId) -> bool {
        let missing = self.missing(id);
        let Ok(mut dram) = self.tiers.dram.reserve(missing.dram) else { return false };
        let Ok(mut pool) = self.prefixes.reserve(missing.pool(), &mut self.tiers.pool) else {
            self.tiers.dram.give_back(dram);
            return false;
        };
        let more = Promise::split(&mut pool, &mut dram, missing, 0);
        self.sequences.get_mut(&id).expect("it lacks rows").kv.extend(more);
        true
    }

    /// Others become sparsely resident, and where that is not enough the youngest one is parked: for an older one that
    /// is here, or for the oldest of all.
    fn make_way(&mut self, id: SequenceId, plan: &mut Plan) {
        if self.makes_room() {
            return;
        }
        let presence = self.sequences[&id].kv.presence();
        let wish = Wish { fixed: self.missing(id).pool(), selected: 0, most: 0 };
        let (ids, stakes) = self.stakes();
        match budget::make_room(self.tiers.pool.available() + self.tiers.pool.spare(), wish, &stakes) {
            Room::After(changes) => self.press(&ids, changes),
            // It is a place in host memory that it lacks: who has one lets it go when it ends.
            Room::Now { .. } => {}
            Room::Later if presence == Presence::Here || self.is_oldest(id) => {
                let may_leave = |other: &&Sequence| {
                    id < other.id
                        && other.open
                        && decodes(other)
                        && matches!(other.kv.presence(), Presence::Here | Presence::Returning)
                };
                let youngest = self.sequences.values().rev().find(may_leave).map(|other| other.id);
                if let Some(victim) = youngest.filter(|_| !self.owes_decode()) {
                    self.totals.preempted += 1;
                    let rows = self.rows_per_unit(plan);
                    let moves = self.sequences.get_mut(&victim).expect("it runs").kv.park(rows, &mut self.tiers);
                    self.push_moves(victim, moves, plan);
                }
            }
            Room::Later => {}
        }
    }

    /// Carries one that is on the way on, as far as a unit's time goes.
    fn carry(&mut self, id: SequenceId, plan: &mut Plan) {
        if self.config.unit_seconds <= plan.unit_seconds || self.owes_decode() {
            return;
        }
        let rows = self.rows_per_unit(plan);
        let kv = &mut self.sequences.get_mut(&id).expect("it is on the way").kv;
        let moves = match kv.presence() {
            Presence::Leaving => kv.park(rows, &mut self.tiers),
            _ => kv.unpark(rows, &mut self.tiers),
        };
        self.push_moves(id, moves, plan);
    }

    /// The bytes are copied, and the lane is told where they are.
    fn push_moves(&mut self, id: SequenceId, moves: Moves, plan: &mut Plan) {
        let Moves { kv: moves, summary: summary_moves, copies } = moves;
        let to_host = copies.iter().filter(|(_, target)| target.tier() == Tier::Dram).count();
        self.totals.offloaded_rows += to_host as u64;
        self.count_copies(copies.len(), plan);
        copy_act(id, copies, plan);
        self.push_change(id, CacheChange { moves, summary_moves, ..CacheChange::of(self.lane_of(id)) }, plan);
    }

    /// Rows that one lacks for the tokens to come, and for itself where it is away.
    fn missing(&self, id: SequenceId) -> RowCounts {
        let sequence = &self.sequences[&id];
        let end = (sequence.kv.len() + self.config.horizon_tokens).min(self.end_of(sequence));
        let missing = sequence.kv.missing(end);
        RowCounts { dram: if self.is_oldest(id) { 0 } else { missing.dram }, ..missing }
    }

    /// Whether nobody that may be parked is older.
    fn is_oldest(&self, id: SequenceId) -> bool {
        self.sequences.values().find(|sequence| sequence.open).is_some_and(|oldest| oldest.id == id)
    }
}

/// Whether a sequence that may be parked has tokens to come and no rows for the next one.
fn lacks(sequence: &Sequence) -> bool {
    let to_come = sequence.running().is_some_and(|running| running.planned < running.outputs_max);
    sequence.open && to_come && !sequence.kv.can_append()
}
