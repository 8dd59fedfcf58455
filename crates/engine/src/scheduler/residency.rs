//! Under pressure sequences get fewer rows, with room more: what `kv::budget` decides is carried out here, between
//! steps.
//!
//! ```text
//! head of the queue does not fit -> press: who gives how much -> offload, a unit at a time -> make_sparse -> it fits
//!                                                             \-> cut cache rows ------------/
//! ```
//!
//! A fully resident sequence decodes on while its pages are copied to host memory; then it gives up their rows at once.

use super::Scheduler;
use super::unit::copy_act;
use crate::cost::Work;
use crate::plan::{Act, Piece, Plan};
use crate::sequence::{Phase, Sequence};
use backend::CacheChange;
use kv::budget::{self, Change, Holds, Stake};
use kv::{PAGE_TOKENS, Promise, Residence, RowId, SequenceId};

/// Of the pool's rows, this share stays free when sequences grow: the next request finds some.
const FREE_SHARE: usize = 16;

impl Scheduler {
    /// Host memory has grown to so many rows, and may grow on.
    pub fn extend_dram(&mut self, rows: usize, grows: bool) {
        self.dram_grows = grows;
        if self.tiers.dram.total() < rows.min(self.config.dram_rows) {
            self.tiers.dram.extend_to(rows.min(self.config.dram_rows));
        }
    }

    /// Whether more rows of host memory are to come.
    pub(crate) fn dram_grows(&self) -> bool {
        self.dram_grows
    }

    /// Whether room is being made for the queue's head: by those that still run.
    pub(super) fn makes_room(&mut self) -> bool {
        self.changing.retain(|(id, _)| self.sequences.get(id).is_some_and(decodes));
        !self.changing.is_empty()
    }

    /// Those that run, and what each could give; a fully resident one only where host memory has room for it.
    pub(super) fn stakes(&self) -> (Vec<SequenceId>, Vec<Stake>) {
        let mut dram = self.tiers.dram.available();
        let mut stake = |sequence: &Sequence| {
            if !decodes(sequence) {
                return (sequence.id, Stake { selected: 0, most: 0, holds: Holds::Fixed });
            }
            let selected = self.selected_most(sequence);
            let holds = match (&sequence.phase, sequence.kv.residence()) {
                (Phase::Running(_), Residence::Sparse) => Holds::Slots(sequence.kv.cache().slots().len()),
                (Phase::Running(_), Residence::Full)
                    if sequence.kv.selects()
                        && !sequence.open
                        && !self.requests[&sequence.request].request.measure_mass =>
                {
                    let wanted = self.dram_to_end(sequence);
                    if wanted <= dram {
                        dram -= wanted;
                        Holds::Everything { rows: sequence.kv.rows_to_empty(&self.tiers) }
                    } else {
                        Holds::Fixed
                    }
                }
                _ => Holds::Fixed,
            };
            (sequence.id, Stake { selected, most: self.dram_to_end(sequence), holds })
        };
        self.sequences.values().map(&mut stake).unzip()
    }

    /// Carries out what makes room, beginning with the next plan.
    pub(super) fn press(&mut self, ids: &[SequenceId], changes: Vec<Change>) {
        for Change { stake, slots } in changes {
            let id = ids[stake];
            if self.sequences[&id].kv.residence() == Residence::Full {
                let wanted = self.dram_to_end(&self.sequences[&id]);
                let dram = self.tiers.dram.reserve(wanted).expect("`stakes` counted host memory");
                let more = Promise { dram, ..Promise::default() };
                self.sequences.get_mut(&id).expect("it has a stake").kv.extend(more);
            }
            self.changing.push_back((id, slots));
        }
    }

    /// Moves what is to move, as far as a unit's time goes, and lets sequences grow where nobody waits.
    pub(super) fn change_residence(&mut self, plan: &mut Plan) {
        if !self.wants_room() {
            self.forget_changes();
        }
        self.makes_room();
        let owed = self.owes_decode();
        while let Some(&(id, slots)) = self.changing.front() {
            if self.sequences[&id].kv.residence() == Residence::Full {
                if owed || !self.offload(id, plan) {
                    return;
                }
                self.make_sparse(id, slots, plan);
            } else {
                self.cut_cache(id, slots, plan);
            }
            self.changing.pop_front();
        }
        if !self.wants_room() {
            self.grow_caches(plan);
        }
    }

    /// Whether somebody waits for rows.
    fn wants_room(&self) -> bool {
        !self.waiting.is_empty() || self.is_short()
    }

    /// Whether decode steps, of which there are some, are to go first.
    pub(super) fn owes_decode(&self) -> bool {
        let debt = self.decode_debt_seconds + self.debts_in_flight.iter().sum::<f64>();
        0.0 < debt && self.sequences.values().any(|sequence| decodes(sequence) && sequence.kv.can_append())
    }

    /// Nobody waits any more: who was to make room keeps its rows.
    fn forget_changes(&mut self) {
        for (id, _) in std::mem::take(&mut self.changing) {
            if let Some(sequence) = self.sequences.get_mut(&id)
                && sequence.kv.residence() == Residence::Full
            {
                sequence.kv.forget_offloaded(&mut self.tiers);
            }
        }
    }

    /// Copies pages to host memory until the unit is full; tells whether all of them are there.
    fn offload(&mut self, id: SequenceId, plan: &mut Plan) -> bool {
        let left = self.sequences[&id].kv.pages_to_offload();
        let pages = left.min(self.rows_per_unit(plan));
        if 0 < pages {
            self.count_copies(pages, plan);
            let copies = self.sequences.get_mut(&id).expect("it changes").kv.offload(pages, &mut self.tiers);
            self.totals.offloaded_rows += copies.len() as u64;
            copy_act(id, copies, plan);
        }
        pages == left
    }

    /// Rows that can be copied over the link in what is left of a unit's time, one at least.
    pub(super) fn rows_per_unit(&self, plan: &Plan) -> usize {
        let per_row = self.cost.seconds(&self.copy_work(1)).max(f64::MIN_POSITIVE);
        (((self.config.unit_seconds - plan.unit_seconds) / per_row) as usize).max(1)
    }

    /// The plan copies so many rows over the link.
    pub(super) fn count_copies(&self, rows: usize, plan: &mut Plan) {
        let work = self.copy_work(rows);
        plan.unit_seconds += self.cost.seconds(&work);
        plan.work = plan.work.plus(work);
    }

    fn copy_work(&self, rows: usize) -> Work {
        Work { link: (rows * PAGE_TOKENS * self.layers) as f64, ..Work::default() }
    }

    fn make_sparse(&mut self, id: SequenceId, slots: usize, plan: &mut Plan) {
        let kv = &mut self.sequences.get_mut(&id).expect("it changes").kv;
        let emptied = kv.make_sparse(slots, &mut self.tiers);
        let mut join: Vec<(RowId, Option<usize>)> =
            emptied.slots.iter().map(|(row, page)| (*row, Some(*page))).collect();
        // Rows that others share could not stay: new ones take their place.
        let missing = self.prefixes.reserve(slots - join.len(), &mut self.tiers.pool);
        let missing = missing.expect("its rows came back, or are spare");
        join.extend(kv.grow_cache(missing, &mut self.tiers).into_iter().map(|row| (row, None)));
        self.totals.made_sparse += 1;
        let moves = emptied.moves.iter().map(|page| (page.page, page.target)).collect();
        self.push_change(id, CacheChange { moves, join, ..CacheChange::of(self.lane_of(id)) }, plan);
    }

    fn cut_cache(&mut self, id: SequenceId, slots: usize, plan: &mut Plan) {
        let kv = &mut self.sequences.get_mut(&id).expect("it changes").kv;
        kv.cut_cache(slots, &mut self.tiers);
        self.push_change(id, CacheChange { keep: slots, ..CacheChange::of(self.lane_of(id)) }, plan);
    }

    /// Rows that nobody waits for go to those whose caches are smallest for what they select.
    fn grow_caches(&mut self, plan: &mut Plan) {
        let free = self.tiers.pool.available().saturating_sub(self.config.pool_rows / FREE_SHARE);
        let any = |sequence: &Sequence| decodes(sequence) && sequence.kv.residence() == Residence::Sparse;
        if free == 0 {
            return;
        }
        let cached: Vec<&Sequence> = self.sequences.values().filter(|sequence| any(sequence)).collect();
        let stake = |sequence: &&Sequence| Stake {
            selected: self.selected_most(sequence),
            // More slots than pages in host memory are of no use.
            most: sequence.kv.rows_by_kind().dram,
            holds: Holds::Slots(sequence.kv.cache().slots().len()),
        };
        let stakes: Vec<Stake> = cached.iter().map(stake).collect();
        let ids: Vec<SequenceId> = cached.iter().map(|sequence| sequence.id).collect();
        for Change { stake, slots } in budget::grow(free, &stakes) {
            let id = ids[stake];
            let kv = &mut self.sequences.get_mut(&id).expect("it has a stake").kv;
            let before = kv.cache().slots().len();
            let rows = self.tiers.pool.reserve(slots - before).expect("`grow` gives what is free");
            let join = kv.grow_cache(rows, &mut self.tiers).into_iter().map(|row| (row, None)).collect();
            self.push_change(id, CacheChange { keep: before, join, ..CacheChange::of(self.lane_of(id)) }, plan);
        }
    }

    pub(super) fn push_change(&self, id: SequenceId, change: CacheChange, plan: &mut Plan) {
        plan.pieces.push(Piece { sequence: id, act: Act::Cache(Box::new(change)) });
    }

    /// The most pages that one of a sequence's steps selects.
    fn selected_most(&self, sequence: &Sequence) -> usize {
        let end = self.end_of(sequence);
        sequence.kv.indexing().map_or(0, |indexing| indexing.selection.selected_pages(end))
    }

    /// Rows of host memory that a fully resident sequence needs to its end when it becomes sparsely resident.
    fn dram_to_end(&self, sequence: &Sequence) -> usize {
        let end = self.end_of(sequence);
        let pages = |indexing: kv::Indexing| indexing.selection.cached_end(end) - indexing.selection.sink_pages();
        sequence.kv.indexing().map_or(0, pages)
    }

    /// The most tokens that a sequence's rows will hold, as admission counted them.
    pub(super) fn end_of(&self, sequence: &Sequence) -> usize {
        let Some(group) = self.requests.get(&sequence.request) else { return sequence.kv.len() };
        sequence.prompt_tokens + self.completion_max(&group.request) + 1
    }
}

/// Whether a sequence runs on a lane; one that only reads its prompt never has one.
pub(super) fn decodes(sequence: &Sequence) -> bool {
    sequence.running().is_some() && sequence.lane.is_some()
}
