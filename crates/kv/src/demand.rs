//! How many rows a request takes to its end: what admission reserves.
//!
//! ```text
//! tokens   0          prefix            start                    end
//!          |- others' --|--- prefilled ---|------ decoded --------|
//! first    |  shared    |             its own                     |
//! further  |  shared with the first choice  |      its own        |
//! ```
//!
//! The prefix is a parent's, or comes out of the prefix cache. A row that the prefix or the start only begins is
//! copied, so it counts as the child's own.

use crate::sequence::Indexing;
use crate::{PAGE_TOKENS, geometry};

/// A request, as far as rows are concerned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// Tokens that others' rows hold: a parent's, or the prefix cache's; 0 without one.
    pub prefix: usize,
    /// Tokens of the prefix whose summaries are shared.
    pub indexed: usize,
    /// Tokens in rows when decode begins and the choices part.
    pub start: usize,
    /// The most tokens a choice's rows will hold: prompt + max_tokens + 1 (the overrun of a step in flight).
    pub end: usize,
    /// Sequences that decode from the same start.
    pub choices: usize,
    /// The algorithm's summaries; `None` for dense.
    pub indexing: Option<Indexing>,
}

/// Rows by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// K and V.
    pub kv: usize,
    /// Summaries.
    pub summary: usize,
}

impl RowCounts {
    /// Both kinds.
    pub fn total(&self) -> usize {
        self.kv + self.summary
    }
}

impl Demand {
    /// Rows of the first choice that are not others'.
    pub fn first(&self) -> RowCounts {
        self.beyond(self.prefix, self.indexed)
    }

    /// Rows of each further choice that are not the first's.
    pub fn further(&self) -> RowCounts {
        self.beyond(self.start, self.indexing.map_or(0, |indexing| indexing.indexed_tokens(self.start)))
    }

    /// Rows of all choices.
    pub fn total(&self) -> usize {
        self.first().total() + self.choices.saturating_sub(1) * self.further().total()
    }

    fn beyond(&self, shared: usize, indexed: usize) -> RowCounts {
        let kv = geometry::pages(self.end) - shared / PAGE_TOKENS;
        let summary = self.indexing.map_or(0, |indexing| indexing.rows(self.end) - indexed / indexing.key.row_tokens);
        RowCounts { kv, summary }
    }
}
