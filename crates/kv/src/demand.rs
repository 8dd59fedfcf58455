//! How many rows a request takes to its end: what admission reserves.
//!
//! ```text
//! tokens   0          prefix            start                    end
//!          |- parent's -|--- prefilled ---|------ decoded --------|
//! first    |  shared    |             its own                     |
//! further  |  shared with the first choice  |      its own        |
//! ```
//!
//! A row that the prefix or the start only begins is copied, so it counts as the child's own.

use crate::sequence::Indexing;
use crate::{PAGE_TOKENS, geometry};

/// A request, as far as rows are concerned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// Tokens that a parent's rows hold; 0 without one.
    pub prefix: usize,
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
    /// Rows of the first choice that are not its parent's.
    pub fn first(&self) -> RowCounts {
        self.beyond(self.prefix)
    }

    /// Rows of each further choice that are not the first's.
    pub fn further(&self) -> RowCounts {
        self.beyond(self.start)
    }

    /// Rows of all choices.
    pub fn total(&self) -> usize {
        self.first().total() + self.choices.saturating_sub(1) * self.further().total()
    }

    fn beyond(&self, shared: usize) -> RowCounts {
        let kv = geometry::pages(self.end) - shared / PAGE_TOKENS;
        let summary = self.indexing.map_or(0, |indexing| {
            let whole = if shared == 0 { 0 } else { indexing.indexed_tokens(shared) / indexing.key.row_tokens };
            indexing.rows(self.end) - whole
        });
        RowCounts { kv, summary }
    }
}
