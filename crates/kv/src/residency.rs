//! Where a sequence's pages are at home, and the rows that cache those in host memory.
//!
//! ```text
//! pages    0      sink                       end            kv.len()
//!          |-pool--|------ host memory --------|---- pool ------|
//!                   selected ones are fetched     window, tail
//!                   into the cache's rows
//! ```
//!
//! Of a fully resident sequence every page is in the pool: `end` is 0. Cache row `j` is slot `j` of every layer and KV
//! head, each of which keeps a page of its own choice in its frame: which one is decided on the device (`bucketed_lru`)
//! and not known here. A page in host memory is never written to again, so its copies are never stale.

use crate::sequence::{Move, RowCopies, SequenceKv};
use crate::{PAGE_TOKENS, Reservation, RowId, Selection, Tier, Tiers};
use std::ops::Range;

/// Where the pages behind the sink and before the window are at home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// In the pool, like all others.
    #[default]
    Full,
    /// In host memory; steps fetch what they select.
    Sparse,
}

/// What a sequence has in host memory, and its cache rows.
#[derive(Debug, Default)]
pub struct Cache {
    /// + by `grow_cache` and `make_sparse`, - by `cut_cache` and `settle`.
    slots: Vec<RowId>,
    /// One past the last page at home in host memory: set by `prepare`, `make_sparse` and `append`.
    end: usize,
    /// Pages from here on were appended by decode steps, and their rows are nobody else's.
    own_from: usize,
    /// Copies in host memory of the first pages behind the sink, which are at home in the pool still: + by `offload`,
    /// emptied by `make_sparse`.
    prepared: Vec<RowId>,
}

impl Cache {
    /// The cache rows: slot `j` of every layer and head is its frame in row `j`.
    pub fn slots(&self) -> &[RowId] {
        &self.slots
    }

    /// One past the last page at home in host memory; 0 where none is.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Pages of a fully resident sequence that have a copy in host memory already.
    pub fn prepared(&self) -> usize {
        self.prepared.len()
    }

    /// A prompt's pages have their homes.
    pub(crate) fn begins(&mut self, end: usize, pages: usize) {
        (self.end, self.own_from) = (end, pages);
    }

    /// Every row that is no page's home.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &RowId> {
        self.slots.iter().chain(&self.prepared)
    }

    pub(crate) fn release(self, tiers: &mut Tiers) {
        self.rows().for_each(|&row| tiers.release(row));
    }
}

impl SequenceKv {
    /// Pages that a fully resident sequence of this selection lacks a copy of before it can become sparsely resident.
    pub fn pages_to_offload(&self) -> usize {
        let Some(selection) = self.selection() else { return 0 };
        selection.cached_end(self.len + 1) - selection.sink_pages() - self.cache.prepared.len()
    }

    /// Whether the next step selects, so that there is something that may leave the pool.
    pub fn selects(&self) -> bool {
        self.selection().is_some_and(|selection| 0 < selection.selected_pages(self.len + 1))
    }

    /// Copies of up to `pages` more pages, none of which is written to any more.
    pub fn offload(&mut self, pages: usize, tiers: &mut Tiers) -> RowCopies {
        assert_eq!(self.residence, Residence::Full, "pages leave one by one from a sparsely resident sequence");
        let Some(selection) = self.selection() else { return RowCopies::new() };
        let first = selection.sink_pages() + self.cache.prepared.len();
        let copy = |page: usize| {
            let target = tiers.dram.take(&mut self.promise.dram);
            self.cache.prepared.push(target);
            (self.kv.rows()[page], target)
        };
        (first..first + pages.min(selection.cached_end(self.len + 1) - first)).map(copy).collect()
    }

    /// Gives up becoming sparsely resident: copies and promise go back.
    pub fn forget_offloaded(&mut self, tiers: &mut Tiers) {
        self.cache.prepared.drain(..).for_each(|row| tiers.release(row));
        tiers.dram.give_back(std::mem::take(&mut self.promise.dram));
    }

    /// The pages that were offloaded are at home in host memory from now on. Up to `slots` of their rows, the youngest
    /// pages' and nobody else's, become cache rows; all others go back, and so does what a tail does not need.
    pub fn make_sparse(&mut self, slots: usize, tiers: &mut Tiers) -> Emptied {
        assert_eq!(self.pages_to_offload(), 0, "pages are offloaded before they lose their rows");
        let selection = self.selection().expect("a sequence without a selection reads every page");
        self.residence = Residence::Sparse;
        let pages = selection.sink_pages()..selection.cached_end(self.len + 1);
        assert!(!pages.is_empty(), "its next step reads every page");
        let mut emptied = Emptied::default();
        for (page, target) in pages.clone().zip(std::mem::take(&mut self.cache.prepared)).rev() {
            let source = self.kv.replace(page, target);
            emptied.moves.push(Move { page, source, target });
            if emptied.slots.len() < slots && tiers.pool.references(source) == 1 {
                emptied.slots.push((source, page));
            } else {
                tiers.release(source);
            }
        }
        self.cache.slots = emptied.slots.iter().map(|(row, _)| *row).collect();
        self.cache.begins(pages.end, self.kv.len());
        let surplus = self.promise.kv.rows().saturating_sub(selection.tail_pages_most());
        tiers.pool.give_back(self.promise.kv.split(surplus));
        emptied
    }

    /// Pages that are at home in host memory.
    pub fn pages_in_dram(&self) -> Range<usize> {
        if self.kv.in_dram() == 0 {
            return 0..0;
        }
        let is_dram = |row: &RowId| row.tier() == Tier::Dram;
        let first = self.kv_rows().iter().position(is_dram).unwrap_or(0);
        first..first + self.kv_rows()[first..].iter().take_while(|row| is_dram(row)).count()
    }

    /// Rows that come free when it becomes sparsely resident, before its cache rows are taken off: those of pages that
    /// nobody but the prefix cache shares, and promised ones that a tail does not need. At least so many, whenever it
    /// becomes so.
    pub fn rows_to_empty(&self, tiers: &Tiers) -> usize {
        let Some(selection) = self.selection() else { return 0 };
        let pages = &self.kv_rows()[selection.sink_pages()..selection.cached_end(self.len + 1)];
        let alone = pages.iter().filter(|row| tiers.pool.sequences(**row) == 1).count();
        // A tail is shortest behind a unit that has just been indexed: until then it needs more.
        let unit = selection.index_unit_tokens / PAGE_TOKENS - 1;
        (alone + self.promise.kv.rows().saturating_sub(selection.tail_pages_most())).saturating_sub(unit)
    }

    /// Takes the promised cache rows.
    pub fn open_cache(&mut self, tiers: &mut Tiers) {
        let promised = std::mem::take(&mut self.promise.cache);
        self.grow_cache(promised, tiers);
    }

    /// Adds cache rows.
    pub fn grow_cache(&mut self, mut rows: Reservation, tiers: &mut Tiers) -> Vec<RowId> {
        let grown: Vec<RowId> = (0..rows.rows()).map(|_| tiers.pool.take(&mut rows)).collect();
        self.cache.slots.extend(&grown);
        grown
    }

    /// Gives cache rows back, all but the first `slots`.
    pub fn cut_cache(&mut self, slots: usize, tiers: &mut Tiers) {
        self.cache.slots.drain(slots..).for_each(|row| tiers.release(row));
    }

    /// Pages that a step at the present length reads only if it selects them change their homes.
    pub(crate) fn leave_window(&mut self, tiers: &mut Tiers) -> Vec<Move> {
        let pages = self.cached(self.len);
        let first = pages.start.max(self.cache.end);
        let leaves = |page: usize| {
            let target = self.take(Tier::Dram, tiers);
            let source = self.kv.replace(page, target);
            tiers.release(source);
            if self.cache.own_from <= page {
                self.promise_again(page, tiers);
            }
            Move { page, source, target }
        };
        let moves: Vec<Move> = (first..pages.end).map(leaves).collect();
        self.cache.end = self.cache.end.max(pages.end);
        moves
    }

    /// A row of its own has come back: it is kept for the tail, as far as one needs it.
    fn promise_again(&mut self, left: usize, tiers: &mut Tiers) {
        let tail = self.kv.len() - (left + 1).max(self.cache.own_from);
        let most = self.selection().map_or(0, |selection| selection.tail_pages_most());
        if tail + self.promise.kv.rows() < most {
            let row = tiers.pool.reserve(1).expect("a row of its own is free again");
            self.promise.kv.join(row);
        }
    }

    fn selection(&self) -> Option<Selection> {
        self.indexing().map(|indexing| indexing.selection)
    }
}

/// What becoming sparsely resident came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emptied {
    /// New homes; the bytes are there already.
    pub moves: Vec<Move>,
    /// Cache rows, with the page that each holds for every layer and head.
    pub slots: Vec<(RowId, usize)>,
}
