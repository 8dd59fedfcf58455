//! One sequence's rows: its KV table, its summary tables, and the promise that it can grow to its end.
//!
//! ```text
//! tokens        0                                  len        end
//! KV rows       |--------- have K and V ------------|- promised |
//!               0                  indexed(len+1)
//! summary rows  |---- summarised ----|
//! ```
//!
//! A step at length L (its own token included) selects among `indexed(L)` tokens and summarises
//! `indexed(L)..indexed(L + 1)` behind itself. So a sequence of `len` tokens that is about to decode has
//! `indexed(len + 1)` tokens summarised, after prefill, decode, fork and resume alike.
//!
//! Which pages are at home in host memory, and what of them is cached, is `residency`'s part of it.

use crate::{
    Cache, KeptPrefix, PAGE_TOKENS, Promise, Reservation, Residence, RowId, RowTable, Selection, Tier, Tiers, geometry,
};
use std::ops::Range;

/// Which summaries a table holds: an algorithm and the parameter that decides its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SummaryKey {
    /// The algorithm's number.
    pub algorithm: u8,
    /// Tokens whose summaries fill one row.
    pub row_tokens: usize,
}

/// What decides which tokens of a sequence are summarised, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Indexing {
    /// The table.
    pub key: SummaryKey,
    /// The lengths.
    pub selection: Selection,
}

impl Indexing {
    /// Tokens that are summarised when a sequence of `len` tokens is about to decode.
    pub fn indexed_tokens(&self, len: usize) -> usize {
        self.selection.indexed_tokens(len + 1)
    }

    /// Summary rows of a sequence of `len` tokens that is about to decode.
    pub fn rows(&self, len: usize) -> usize {
        self.indexed_tokens(len).div_ceil(self.key.row_tokens)
    }
}

/// A summary table and how far it is filled.
#[derive(Debug)]
pub struct Summary {
    /// Which summaries these are.
    pub key: SummaryKey,
    /// The rows.
    pub table: RowTable,
    /// Tokens `0..indexed` are summarised in every layer: set by `mark_indexed`, grows with `append`, set by `fork`.
    pub indexed: usize,
}

/// Rows that join a lane's tables in a step: at most one of each; and pages that leave the pool before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Position in the KV table, and the row.
    pub kv: Option<(usize, RowId)>,
    /// Position in the summary table, and the row.
    pub summary: Option<(usize, RowId)>,
    /// Pages that went to host memory: those that left the window of a sparsely resident sequence.
    pub left: Vec<Move>,
}

/// A page that changes its home: the bytes are copied before anything reads them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The logical page.
    pub page: usize,
    /// Where it was; not the sequence's any more.
    pub source: RowId,
    /// Where it is.
    pub target: RowId,
}

/// Rows that are copied, source then target, before anything reads the target.
pub type RowCopies = Vec<(RowId, RowId)>;

/// The rows of one sequence.
#[derive(Debug)]
pub struct SequenceKv {
    /// Tokens with K and V in rows: + by `advance` and `append`, set back by `truncate`.
    pub(crate) len: usize,
    /// Covers at least `len` tokens; row `i` is the home of page `i`.
    pub(crate) kv: RowTable,
    /// Where pages behind the sink and before the window are at home; set by `make_sparse`.
    pub(crate) residence: Residence,
    /// Pages in host memory and what is cached of them.
    pub(crate) cache: Cache,
    /// At most one per key; a decoding sequence fills the one of its own indexing.
    pub(crate) summaries: Vec<Summary>,
    /// What decode keeps summarised; `None` for dense.
    pub(crate) indexing: Option<Indexing>,
    /// Rows for what is still to come; set by `promise`, emptied by `settle`.
    pub(crate) promise: Promise,
}

impl SequenceKv {
    /// A sequence without tokens.
    pub fn new(residence: Residence, indexing: Option<Indexing>) -> Self {
        assert!(residence == Residence::Full || indexing.is_some(), "without a selection every page is read");
        SequenceKv {
            len: 0,
            kv: RowTable::default(),
            residence,
            cache: Cache::default(),
            summaries: Vec::new(),
            indexing,
            promise: Promise::default(),
        }
    }

    /// A sequence that shares a kept prefix up to position `at`, whole pages, and nothing is promised to yet.
    ///
    /// Summaries are shared in whole rows, as far as the prefix has them and the sequence's own indexing reaches at
    /// `at`: the sequence makes the others itself.
    pub fn behind(prefix: &KeptPrefix, at: usize, indexing: Option<Indexing>, tiers: &mut Tiers) -> Self {
        assert!(at.is_multiple_of(PAGE_TOKENS) && at <= prefix.tokens(), "{at} of {} kept tokens", prefix.tokens());
        let mut sequence = SequenceKv::new(Residence::Full, indexing);
        sequence.kv = RowTable::sharing(&prefix.kv_rows()[..at / PAGE_TOKENS], tiers);
        sequence.len = at;
        if let Some(indexing) = indexing {
            let (key, kept) = (indexing.key, prefix.summary_rows(indexing.key));
            let whole = kept.len().min(indexing.indexed_tokens(at) / key.row_tokens);
            let table = RowTable::sharing(&kept[..whole], tiers);
            sequence.summaries.push(Summary { key, table, indexed: whole * key.row_tokens });
        }
        sequence
    }

    /// Rows are promised for what is to come, and where its pages will be at home is decided.
    pub fn promise(&mut self, promise: Promise, residence: Residence) {
        assert!(self.promise.pool().iter().all(|part| part.rows() == 0), "a sequence has one promise");
        assert!(residence == Residence::Full || self.indexing.is_some(), "without a selection every page is read");
        (self.promise, self.residence) = (promise, residence);
    }

    /// Tokens with K and V in rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The KV table's rows.
    pub fn kv_rows(&self) -> &[RowId] {
        self.kv.rows()
    }

    /// What decode keeps summarised.
    pub fn indexing(&self) -> Option<Indexing> {
        self.indexing
    }

    /// Rows of the table `key`; none where it does not exist.
    pub fn summary_rows(&self, key: SummaryKey) -> &[RowId] {
        self.summary(key).map_or(&[], |summary| summary.table.rows())
    }

    /// Rows of the table that decode fills.
    pub fn decode_summary_rows(&self) -> &[RowId] {
        self.indexing.map_or(&[], |indexing| self.summary_rows(indexing.key))
    }

    /// Tokens that the table `key` summarises.
    pub fn indexed(&self, key: SummaryKey) -> usize {
        self.summary(key).map_or(0, |summary| summary.indexed)
    }

    /// Where its pages are at home.
    pub fn residence(&self) -> Residence {
        self.residence
    }

    /// What is cached of those in host memory.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Every summary table.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// Every row that it holds, of both tiers and as often as it holds it, for counting.
    pub fn held_rows(&self) -> impl Iterator<Item = RowId> {
        let tables = std::iter::once(&self.kv).chain(self.summaries.iter().map(|summary| &summary.table));
        tables.flat_map(RowTable::rows).chain(self.cache.rows()).copied()
    }

    /// Rows by what they are for.
    pub fn rows_by_kind(&self) -> HeldRows {
        let summaries = || self.summaries.iter().map(|summary| &summary.table);
        HeldRows {
            kv: self.kv.len() - self.kv.in_dram(),
            cache: self.cache.slots().len(),
            summary: summaries().map(|table| table.len() - table.in_dram()).sum(),
            dram: self.kv.in_dram() + summaries().map(RowTable::in_dram).sum::<usize>() + self.cache.prepared(),
        }
    }

    /// What is promised and not taken.
    pub fn promised(&self) -> &Promise {
        &self.promise
    }

    /// Takes the rows that a prompt up to position `end` and its summaries will fill; what it shares already and is
    /// not where it is to be, is copied.
    pub fn prepare(&mut self, end: usize, tiers: &mut Tiers) -> RowCopies {
        let mut copies = RowCopies::new();
        let cached = self.cached(end + 1);
        let tier = |page: usize| if cached.contains(&page) { Tier::Dram } else { Tier::Pool };
        for page in 0..self.kv.len() {
            let shared = self.kv.rows()[page];
            if shared.tier() != tier(page) {
                let own = self.take(tier(page), tiers);
                copies.push((shared, own));
                tiers.release(self.kv.replace(page, own));
            }
        }
        while self.kv.len() < geometry::pages(end) {
            match tier(self.kv.len()) {
                Tier::Pool => self.kv.push(&mut tiers.pool, &mut self.promise.kv),
                Tier::Dram => self.kv.push(&mut tiers.dram, &mut self.promise.dram),
            };
        }
        if let Some(indexing) = self.indexing {
            let (wanted, at) = (indexing.rows(end), self.summary_position(indexing.key));
            self.summaries[at].table.grow_to(wanted, &mut tiers.pool, &mut self.promise.summary);
        }
        self.cache.begins(cached.end, geometry::pages(end));
        copies
    }

    /// Pages that a sparsely resident sequence has in host memory in a step at `len`; none of a fully resident one.
    pub(crate) fn cached(&self, len: usize) -> Range<usize> {
        match (self.residence, self.indexing) {
            (Residence::Sparse, Some(Indexing { selection, .. })) => selection.cached_pages(len),
            _ => 0..0,
        }
    }

    /// A row out of the promise.
    pub(crate) fn take(&mut self, tier: Tier, tiers: &mut Tiers) -> RowId {
        match tier {
            Tier::Pool => tiers.pool.take(&mut self.promise.kv),
            Tier::Dram => tiers.dram.take(&mut self.promise.dram),
        }
    }

    /// `tokens` more tokens have K and V in rows that `prepare` took.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        assert!(geometry::pages(self.len) <= self.kv.len(), "K and V of {} tokens without rows", self.len);
    }

    /// A decode step appends one token: its row, the summary row for what becomes indexed behind the step, and the
    /// pages that the step reads only if it selects them.
    pub fn append(&mut self, tiers: &mut Tiers) -> Growth {
        let mut growth = Growth::default();
        if self.kv.len() < geometry::pages(self.len + 1) {
            growth.kv = Some((self.kv.len(), self.kv.push(&mut tiers.pool, &mut self.promise.kv)));
        }
        self.len += 1;
        let Some(indexing) = self.indexing else { return growth };
        let at = self.summary_position(indexing.key);
        let summary = &mut self.summaries[at];
        if summary.table.len() < indexing.rows(self.len) {
            let row = summary.table.push(&mut tiers.pool, &mut self.promise.summary);
            growth.summary = Some((summary.table.len() - 1, row));
        }
        summary.indexed = summary.indexed.max(indexing.indexed_tokens(self.len));
        growth.left = self.leave_window(tiers);
        growth
    }

    /// Forgets tokens from `len` on (the overrun of a step in flight); its rows stay until the sequence ends.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Tokens `0..indexed` are summarised in the table `key`.
    pub fn mark_indexed(&mut self, key: SummaryKey, indexed: usize) {
        let at = self.summary_position(key);
        let summary = &mut self.summaries[at];
        assert!(indexed <= summary.table.len() * key.row_tokens, "{indexed} tokens summarised without rows");
        summary.indexed = summary.indexed.max(indexed);
    }

    /// Summary rows that this sequence lacks before a fork at `at` could share `indexing`'s.
    pub fn missing_summary_rows(&self, at: usize, indexing: &Indexing) -> usize {
        indexing.rows(at).saturating_sub(self.summary_rows(indexing.key).len())
    }

    /// Takes the rows that `missing_summary_rows` counts out of a fork's promise; this sequence keeps them.
    pub fn add_summary_rows(&mut self, at: usize, indexing: &Indexing, tiers: &mut Tiers, from: &mut Reservation) {
        let position = self.summary_position(indexing.key);
        self.summaries[position].table.grow_to(indexing.rows(at), &mut tiers.pool, from);
    }

    /// A child that continues at position `at`: it shares full rows, and copies the incomplete ones. Pages that its
    /// residence wants elsewhere than the parent's does are `prepare`'s to move.
    ///
    /// ```text
    /// parent  |r0      |r1      |r2  at    |r3      |
    /// child   |r0      |r1      |c2  at|                     copies = [(r2, c2)]
    /// ```
    ///
    /// Summaries are shared as far as the parent has them, and as far as the child's own indexing reaches.
    pub fn fork(
        &self,
        at: usize,
        indexing: Option<Indexing>,
        residence: Residence,
        promise: Promise,
        tiers: &mut Tiers,
    ) -> (SequenceKv, RowCopies) {
        assert!(at <= self.len, "a fork at {at} of a sequence of {} tokens", self.len);
        let mut copies = RowCopies::new();
        let mut child = SequenceKv::new(residence, indexing);
        child.promise(promise, residence);
        child.kv = fork_table(&self.kv, at, PAGE_TOKENS, tiers, &mut child.promise.kv, &mut copies);
        child.len = at;
        child.cache.begins(child.cached(at + 1).end, child.kv.len());
        if let Some(indexing) = indexing
            && let Some(summary) = self.summary(indexing.key)
        {
            let indexed = summary.indexed.min(indexing.indexed_tokens(at));
            let (key, from) = (indexing.key, &mut child.promise.summary);
            let table = fork_table(&summary.table, indexed, key.row_tokens, tiers, from, &mut copies);
            child.summaries.push(Summary { key, table, indexed });
        }
        (child, copies)
    }

    /// Takes the promise out of a sequence that has no rows yet, for the fork that it becomes.
    pub fn take_promise(&mut self) -> Promise {
        assert!(self.kv.is_empty() && self.summaries.is_empty(), "a sequence with rows keeps its promise");
        std::mem::take(&mut self.promise)
    }

    /// Gives the rest of the promise back, and what is cached: the sequence will not go on any more.
    pub fn settle(&mut self, tiers: &mut Tiers) {
        std::mem::take(&mut self.promise).give_back(tiers);
        std::mem::take(&mut self.cache).release(tiers);
    }

    /// Ends the sequence: every row and the rest of the promise go back.
    pub fn release(mut self, tiers: &mut Tiers) {
        self.settle(tiers);
        self.kv.release(tiers);
        self.summaries.into_iter().for_each(|summary| summary.table.release(tiers));
    }

    fn summary(&self, key: SummaryKey) -> Option<&Summary> {
        self.summaries.iter().find(|summary| summary.key == key)
    }

    fn summary_position(&mut self, key: SummaryKey) -> usize {
        if let Some(at) = self.summaries.iter().position(|summary| summary.key == key) {
            return at;
        }
        self.summaries.push(Summary { key, table: RowTable::default(), indexed: 0 });
        self.summaries.len() - 1
    }
}

/// Rows of one sequence by what they are for; shared ones count for each that holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldRows {
    /// Homes of pages in the pool.
    pub kv: usize,
    /// Cache rows.
    pub cache: usize,
    /// Summaries in the pool.
    pub summary: usize,
    /// What is in host memory: pages, and summaries of a sequence that is parked.
    pub dram: usize,
}

/// Shares the rows that `tokens` tokens fill and copies the one that they only begin, which is in the pool.
fn fork_table(
    parent: &RowTable,
    tokens: usize,
    row_tokens: usize,
    tiers: &mut Tiers,
    from: &mut Reservation,
    copies: &mut RowCopies,
) -> RowTable {
    let full = tokens / row_tokens;
    let mut table = parent.fork(full, tiers);
    if full * row_tokens < tokens {
        copies.push((parent.rows()[full], table.push(&mut tiers.pool, from)));
    }
    table
}
