//! The rows of a prompt's beginning that stay behind their sequence, for prompts to come that begin alike.
//!
//! ```text
//! tokens        0                              tokens()        prompt
//! KV rows       |-- whole pages, kept ------------|- not kept -|- completion ...
//! summary rows  |-- whole rows, kept --|
//! ```
//!
//! Only whole rows are kept, so nobody ever writes to one and nobody copies one. A kept row is referenced like any
//! other; [`Rows`] tells those apart that nobody else references: they are spare, and free as soon as they are cut off.

use crate::{PAGE_TOKENS, RowId, Rows, SequenceKv, SummaryKey};

/// Whole pages of a prompt, and what is summarised of them in whole rows. Given back with [`KeptPrefix::release`].
#[derive(Debug)]
#[must_use = "kept rows are released"]
pub struct KeptPrefix {
    /// Row `i` holds page `i`; shrinks by `cut`.
    kv: Vec<RowId>,
    /// At most one per key; grows by `adopt`, shrinks by `cut`.
    summaries: Vec<(SummaryKey, Vec<RowId>)>,
}

impl KeptPrefix {
    /// Keeps what a sequence has of its first `tokens` tokens, whole pages that it will not write to any more.
    pub fn of(sequence: &SequenceKv, tokens: usize, rows: &mut Rows) -> Self {
        assert!(tokens.is_multiple_of(PAGE_TOKENS) && tokens <= sequence.len(), "{tokens} of {}", sequence.len());
        let summaries = sequence.summaries().iter().map(|summary| {
            let whole = summary.indexed.min(tokens) / summary.key.row_tokens;
            (summary.key, keep(&summary.table.rows()[..whole], rows))
        });
        let summaries = summaries.collect();
        KeptPrefix { kv: keep(&sequence.kv_rows()[..tokens / PAGE_TOKENS], rows), summaries }
    }

    /// Tokens with K and V.
    pub fn tokens(&self) -> usize {
        self.kv.len() * PAGE_TOKENS
    }

    /// The rows of K and V.
    pub fn kv_rows(&self) -> &[RowId] {
        &self.kv
    }

    /// Rows of the table `key`; none where it does not exist.
    pub fn summary_rows(&self, key: SummaryKey) -> &[RowId] {
        self.summaries.iter().find(|(of, _)| *of == key).map_or(&[], |(_, rows)| rows)
    }

    /// Every table, for counting.
    pub fn tables(&self) -> impl Iterator<Item = &[RowId]> {
        std::iter::once(self.kv.as_slice()).chain(self.summaries.iter().map(|(_, rows)| rows.as_slice()))
    }

    /// Takes over the summaries of a prefix of the same tokens that reach further than its own.
    pub fn adopt(&mut self, other: &KeptPrefix, rows: &mut Rows) {
        for (key, table) in &other.summaries {
            let most = &table[..table.len().min(self.tokens() / key.row_tokens)];
            if self.summary_rows(*key).len() < most.len() {
                let most = keep(most, rows);
                let own = self.summaries.iter().position(|(of, _)| of == key);
                let before = own.map(|at| std::mem::replace(&mut self.summaries[at].1, most.clone()));
                match before {
                    Some(before) => before.into_iter().for_each(|row| rows.let_go(row)),
                    None => self.summaries.push((*key, most)),
                }
            }
        }
    }

    /// Lets go of everything from token `tokens` on, whole pages.
    pub fn cut(&mut self, tokens: usize, rows: &mut Rows) {
        assert!(tokens.is_multiple_of(PAGE_TOKENS), "{tokens} tokens are not whole pages");
        cut(&mut self.kv, tokens / PAGE_TOKENS, rows);
        self.summaries.iter_mut().for_each(|(key, table)| cut(table, tokens / key.row_tokens, rows));
    }

    /// Whether a row becomes free when all of it is let go. Who shares a table's row shares those before it, so the
    /// last row of each table tells.
    pub fn has_spare(&self, rows: &Rows) -> bool {
        self.tables().filter_map(|table| table.last()).any(|&row| rows.is_spare(row))
    }

    /// Lets go of everything.
    pub fn release(mut self, rows: &mut Rows) {
        self.cut(0, rows);
    }
}

fn keep(table: &[RowId], rows: &mut Rows) -> Vec<RowId> {
    table.iter().for_each(|&row| rows.keep(row));
    table.to_vec()
}

fn cut(table: &mut Vec<RowId>, len: usize, rows: &mut Rows) {
    table.drain(len.min(table.len())..).for_each(|row| rows.let_go(row));
}
