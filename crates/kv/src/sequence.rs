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

use crate::rows::{Reservation, Rows};
use crate::{KeptPrefix, PAGE_TOKENS, RowId, RowTable, Selection, geometry};

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

/// Rows that join a lane's tables in a step: at most one of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Position in the KV table, and the row.
    pub kv: Option<(usize, RowId)>,
    /// Position in the summary table, and the row.
    pub summary: Option<(usize, RowId)>,
}

/// A fork's rows that are copied, source then target, before the child reads them.
pub type ForkCopies = Vec<(RowId, RowId)>;

/// The rows of one sequence.
#[derive(Debug)]
pub struct SequenceKv {
    /// Tokens with K and V in rows: + by `advance` and `append`, set back by `truncate`.
    len: usize,
    /// Covers at least `len` tokens.
    kv: RowTable,
    /// At most one per key; a decoding sequence fills the one of its own indexing.
    summaries: Vec<Summary>,
    /// What decode keeps summarised; `None` for dense.
    indexing: Option<Indexing>,
    /// Rows for what is still to come; set by `promise`, emptied by `settle`.
    reservation: Reservation,
}

impl SequenceKv {
    /// A sequence without tokens.
    pub fn new(reservation: Reservation, indexing: Option<Indexing>) -> Self {
        SequenceKv { len: 0, kv: RowTable::default(), summaries: Vec::new(), indexing, reservation }
    }

    /// A sequence that shares a kept prefix up to position `at`, whole pages, and nothing is promised to yet.
    ///
    /// Summaries are shared in whole rows, as far as the prefix has them and the sequence's own indexing reaches at
    /// `at`: the sequence makes the others itself.
    pub fn behind(prefix: &KeptPrefix, at: usize, indexing: Option<Indexing>, rows: &mut Rows) -> Self {
        assert!(at.is_multiple_of(PAGE_TOKENS) && at <= prefix.tokens(), "{at} of {} kept tokens", prefix.tokens());
        let mut sequence = SequenceKv::new(Reservation::default(), indexing);
        sequence.kv = RowTable::sharing(&prefix.kv_rows()[..at / PAGE_TOKENS], rows);
        sequence.len = at;
        if let Some(indexing) = indexing {
            let (key, kept) = (indexing.key, prefix.summary_rows(indexing.key));
            let whole = kept.len().min(indexing.indexed_tokens(at) / key.row_tokens);
            let table = RowTable::sharing(&kept[..whole], rows);
            sequence.summaries.push(Summary { key, table, indexed: whole * key.row_tokens });
        }
        sequence
    }

    /// Rows are promised for what is to come.
    pub fn promise(&mut self, reservation: Reservation) {
        assert_eq!(self.reservation.rows(), 0, "a sequence has one promise");
        self.reservation = reservation;
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

    /// Every summary table.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// Every table, for counting.
    pub fn tables(&self) -> impl Iterator<Item = &RowTable> {
        std::iter::once(&self.kv).chain(self.summaries.iter().map(|summary| &summary.table))
    }

    /// Rows of the KV table and of all summary tables.
    pub fn rows_by_kind(&self) -> (usize, usize) {
        (self.kv.len(), self.summaries.iter().map(|summary| summary.table.len()).sum())
    }

    /// What is promised and not taken.
    pub fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    /// Takes the rows that a prompt up to position `end` and its summaries will fill.
    pub fn prepare(&mut self, end: usize, rows: &mut Rows) {
        self.kv.grow_to(geometry::pages(end), rows, &mut self.reservation);
        if let Some(indexing) = self.indexing {
            let (wanted, at) = (indexing.rows(end), self.summary_position(indexing.key));
            self.summaries[at].table.grow_to(wanted, rows, &mut self.reservation);
        }
    }

    /// `tokens` more tokens have K and V in rows that `prepare` took.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        assert!(geometry::pages(self.len) <= self.kv.len(), "K and V of {} tokens without rows", self.len);
    }

    /// A decode step appends one token: its row, and the summary row for what becomes indexed behind the step.
    pub fn append(&mut self, rows: &mut Rows) -> Growth {
        let mut growth = Growth::default();
        if self.kv.len() < geometry::pages(self.len + 1) {
            growth.kv = Some((self.kv.len(), self.kv.push(rows, &mut self.reservation)));
        }
        self.len += 1;
        let Some(indexing) = self.indexing else { return growth };
        let at = self.summary_position(indexing.key);
        let summary = &mut self.summaries[at];
        if summary.table.len() < indexing.rows(self.len) {
            growth.summary = Some((summary.table.len(), summary.table.push(rows, &mut self.reservation)));
        }
        summary.indexed = summary.indexed.max(indexing.indexed_tokens(self.len));
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
    pub fn add_summary_rows(&mut self, at: usize, indexing: &Indexing, rows: &mut Rows, from: &mut Reservation) {
        let position = self.summary_position(indexing.key);
        self.summaries[position].table.grow_to(indexing.rows(at), rows, from);
    }

    /// A child that continues at position `at`: it shares full rows, and copies the incomplete ones.
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
        reservation: Reservation,
        rows: &mut Rows,
    ) -> (SequenceKv, ForkCopies) {
        assert!(at <= self.len, "a fork at {at} of a sequence of {} tokens", self.len);
        let mut copies = ForkCopies::new();
        let mut child = SequenceKv::new(reservation, indexing);
        child.kv = fork_table(&self.kv, at, PAGE_TOKENS, rows, &mut child.reservation, &mut copies);
        child.len = at;
        if let Some(indexing) = indexing
            && let Some(summary) = self.summary(indexing.key)
        {
            let indexed = summary.indexed.min(indexing.indexed_tokens(at));
            let (key, from) = (indexing.key, &mut child.reservation);
            let table = fork_table(&summary.table, indexed, key.row_tokens, rows, from, &mut copies);
            child.summaries.push(Summary { key, table, indexed });
        }
        (child, copies)
    }

    /// Takes the promise out of a sequence that has no rows yet, for the fork that it becomes.
    pub fn take_promise(&mut self) -> Reservation {
        assert!(self.kv.is_empty() && self.summaries.is_empty(), "a sequence with rows keeps its promise");
        std::mem::take(&mut self.reservation)
    }

    /// Gives the rest of the promise back: the sequence will not grow any more.
    pub fn settle(&mut self, rows: &mut Rows) {
        rows.give_back(std::mem::take(&mut self.reservation));
    }

    /// Ends the sequence: every row and the rest of the promise go back.
    pub fn release(mut self, rows: &mut Rows) {
        self.settle(rows);
        self.kv.release(rows);
        self.summaries.into_iter().for_each(|summary| summary.table.release(rows));
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

/// Shares the rows that `tokens` tokens fill and copies the one that they only begin.
fn fork_table(
    parent: &RowTable,
    tokens: usize,
    row_tokens: usize,
    rows: &mut Rows,
    from: &mut Reservation,
    copies: &mut ForkCopies,
) -> RowTable {
    let full = tokens / row_tokens;
    let mut table = parent.fork(full, rows);
    if full * row_tokens < tokens {
        copies.push((parent.rows()[full], table.push(rows, from)));
    }
    table
}
