//! Preemption: everything that a fully resident sequence has in the pool goes to host memory, and comes back before it
//! decodes again. Nothing is computed twice.
//!
//! ```text
//! here     pool         |---- K and V ----|- summaries -|- promised -|     host memory: a place for each is promised
//! away     host memory  |---- K and V ----|- summaries -|
//! ```
//!
//! Such a sequence needs no rows to its end when it is admitted: it is extended as it grows, in both tiers.

use crate::sequence::{Indexing, RowCopies, SequenceKv, Summary};
use crate::{Promise, Reservation, Residence, RowCounts, RowId, RowTable, Tier, Tiers, geometry};

/// Where a sequence that may be parked is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// In the pool, like every other one.
    Here,
    /// On its way to host memory; nothing is promised to it in the pool.
    Leaving,
    /// In host memory.
    Away,
    /// On its way back; rows for all of it are promised.
    Returning,
}

/// What changes its tier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Pages of K and V, and where they are from now on.
    pub kv: Vec<(usize, RowId)>,
    /// Rows of the summary table that decode fills, by their place in it.
    pub summary: Vec<(usize, RowId)>,
    /// The bytes that are to be copied before anything reads them there.
    pub copies: RowCopies,
}

impl SequenceKv {
    /// Where it is; sparsely resident ones are here.
    pub fn presence(&self) -> Presence {
        let (held, away) = (self.rows_by_kind(), self.rows_away());
        match (self.residence, away) {
            (Residence::Sparse, _) | (_, 0) => Presence::Here,
            _ if 0 < self.promise.kv.rows() + self.promise.summary.rows() => Presence::Returning,
            _ if held.kv + held.summary == 0 => Presence::Away,
            _ => Presence::Leaving,
        }
    }

    /// Whether one more token, and what becomes indexed behind it, finds rows.
    pub fn can_append(&self) -> bool {
        let missing = self.missing(self.len + 1);
        self.residence == Residence::Sparse || missing.pool() == 0 && self.presence() == Presence::Here
    }

    /// Rows that a fully resident sequence lacks until `end` tokens would be in the pool, and would have places in host
    /// memory.
    pub fn missing(&self, end: usize) -> RowCounts {
        let (pages, summaries) = (geometry::pages(end), self.indexing().map_or(0, |indexing| indexing.rows(end)));
        let held = self.rows_by_kind();
        RowCounts {
            kv: pages.saturating_sub(held.kv + self.promise.kv.rows()),
            summary: summaries.saturating_sub(held.summary + self.promise.summary.rows()),
            dram: (pages + summaries).saturating_sub(self.rows_away() + self.promise.dram.rows()),
        }
    }

    /// Takes more promised rows in.
    pub fn extend(&mut self, more: Promise) {
        let Promise { kv, summary, cache, dram } = more;
        assert_eq!(cache.rows(), 0, "cache rows are taken when they are promised");
        self.promise.kv.join(kv);
        self.promise.summary.join(summary);
        self.promise.dram.join(dram);
    }

    /// Up to `rows` rows leave the pool, and what is promised there goes back.
    pub fn park(&mut self, rows: usize, tiers: &mut Tiers) -> Moves {
        assert_eq!(self.residence, Residence::Full, "a sparsely resident sequence has rows to its end");
        assert!(self.summaries.len() <= 1, "a parent of forks under several algorithms stays");
        assert_eq!(self.cache.prepared(), 0, "one that is about to become sparsely resident stays");
        tiers.pool.give_back(std::mem::take(&mut self.promise.kv));
        tiers.pool.give_back(std::mem::take(&mut self.promise.summary));
        let mut moves = Moves::default();
        let places = &mut self.promise.dram;
        let mut leave = |table: &mut RowTable, homes: &mut Vec<(usize, RowId)>| {
            for at in places_in(table, Tier::Pool, rows - moves.copies.len()) {
                let target = tiers.dram.take(places);
                let source = table.replace(at, target);
                tiers.release(source);
                homes.push((at, target));
                moves.copies.push((source, target));
            }
        };
        leave(&mut self.kv, &mut moves.kv);
        decode_table(self.indexing, &mut self.summaries).into_iter().for_each(|table| leave(table, &mut moves.summary));
        moves
    }

    /// Up to `rows` rows come back to where they are promised to be; their places in host memory stay promised.
    pub fn unpark(&mut self, rows: usize, tiers: &mut Tiers) -> Moves {
        let (mut moves, places) = (Moves::default(), &mut self.promise.dram);
        let mut come = |table: &mut RowTable, from: &mut Reservation, homes: &mut Vec<(usize, RowId)>| {
            for at in places_in(table, Tier::Dram, rows - moves.copies.len()) {
                let target = tiers.pool.take(from);
                let source = table.replace(at, target);
                tiers.release(source);
                places.join(tiers.dram.reserve(1).expect("a row that nobody shares is free again"));
                homes.push((at, target));
                moves.copies.push((source, target));
            }
        };
        come(&mut self.kv, &mut self.promise.kv, &mut moves.kv);
        let summaries = decode_table(self.indexing, &mut self.summaries);
        summaries.into_iter().for_each(|table| come(table, &mut self.promise.summary, &mut moves.summary));
        moves
    }

    /// Rows of its tables in host memory.
    fn rows_away(&self) -> usize {
        self.rows_by_kind().dram - self.cache.prepared()
    }
}

/// The first places of a table whose rows are in a tier, `most` at most.
fn places_in(table: &RowTable, tier: Tier, most: usize) -> Vec<usize> {
    let rows = table.rows().iter().enumerate();
    rows.filter(|(_, row)| row.tier() == tier).map(|(at, _)| at).take(most).collect()
}

fn decode_table(indexing: Option<Indexing>, summaries: &mut [Summary]) -> Option<&mut RowTable> {
    let key = indexing?.key;
    summaries.iter_mut().find(|summary| summary.key == key).map(|summary| &mut summary.table)
}
