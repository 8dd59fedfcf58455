//! How many rows a request takes to its end: what admission reserves.
//!
//! ```text
//! tokens   0          prefix            start                    end
//!          |- others' --|--- prefilled ---|------ decoded --------|
//! first    |  shared    |             its own                     |
//! further  |  shared with the first choice  |      its own        |
//!
//! pages    0      sink                        cached_end              end
//! sparse   |-pool-|------- host memory ---------|---- pool (tail) -----|     and cache rows in the pool
//! ```
//!
//! The prefix is a parent's, or comes out of the prefix cache. A row that the prefix or the start only begins is
//! copied, so it counts as the child's own; so does one that is not in the tier where the child wants it.

use crate::sequence::Indexing;
use crate::{PAGE_TOKENS, Residence, budget, geometry};
use std::ops::Range;

/// A request, as far as rows are concerned.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// Tokens that others' rows hold: a parent's, or the prefix cache's; 0 without one.
    pub prefix: usize,
    /// Pages of the prefix that are at home in host memory.
    pub prefix_cached: Range<usize>,
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
    /// Where pages will be at home.
    pub residence: Residence,
}

/// Rows by kind, without cache rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// K and V in the pool.
    pub kv: usize,
    /// Summaries, in the pool.
    pub summary: usize,
    /// K and V in host memory.
    pub dram: usize,
}

impl RowCounts {
    /// Those of the pool.
    pub fn pool(&self) -> usize {
        self.kv + self.summary
    }
}

impl Demand {
    /// One completion behind a prompt of `start` tokens that shares nothing.
    pub fn alone(start: usize, end: usize, indexing: Indexing, residence: Residence) -> Self {
        let (prefix, prefix_cached, indexed, choices) = (0, 0..0, 0, 1);
        Demand { prefix, prefix_cached, indexed, start, end, choices, indexing: Some(indexing), residence }
    }

    /// Rows of the first choice that are not others'.
    pub fn first(&self) -> RowCounts {
        let (full, pages) = (self.prefix / PAGE_TOKENS, geometry::pages(self.start));
        let cached = self.cached(self.start + 1);
        let wanted = overlap(&cached, &(0..pages));
        let shared = overlap(&cached, &self.shared_cached());
        let pool_shared = full + shared - self.shared_cached().len() - overlap(&cached, &(0..full));
        let (tail, more) = self.decoded();
        // The row that the prefix only begins is copied first, and may leave the pool when it is filled.
        let begun = !self.prefix.is_multiple_of(PAGE_TOKENS) && cached.contains(&full);
        let kv = pages - wanted - pool_shared + tail + usize::from(begun);
        RowCounts { kv, summary: self.summary_beyond(self.indexed), dram: wanted - shared + more }
    }

    /// Rows of each further choice that are not the first's.
    pub fn further(&self) -> RowCounts {
        let begun = geometry::pages(self.start) - self.start / PAGE_TOKENS;
        let (tail, more) = self.decoded();
        let indexed = self.indexing.map_or(0, |indexing| indexing.indexed_tokens(self.start));
        RowCounts { kv: begun + tail, summary: self.summary_beyond(indexed), dram: more }
    }

    /// Rows of all choices.
    pub fn total(&self) -> RowCounts {
        let (first, further) = (self.first(), self.further());
        let times = self.choices.saturating_sub(1);
        RowCounts {
            kv: first.kv + times * further.kv,
            summary: first.summary + times * further.summary,
            dram: first.dram + times * further.dram,
        }
    }

    /// Whether its steps ever select, so that pages may be at home in host memory.
    pub fn selects(&self) -> bool {
        0 < self.selected_most()
    }

    /// The most pages that one of its steps selects.
    pub fn selected_most(&self) -> usize {
        self.indexing.map_or(0, |indexing| indexing.selection.selected_pages(self.end))
    }

    /// Rows of the pool with the fewest cache rows that a sparsely resident sequence has.
    pub fn pool_least(&self) -> usize {
        self.total().pool() + self.choices * budget::slots(self.selected_most(), budget::BETA_FLOOR, self.cached_most())
    }

    /// The most pages that one of its steps reads only if it selects them: more slots are of no use.
    pub fn cached_most(&self) -> usize {
        self.indexing.map_or(0, |indexing| indexing.selection.cached_pages(self.end).len())
    }

    /// Pages of the pool and of host memory that decode takes. A sparsely resident sequence gets its rows back as
    /// pages leave the window, so it needs a tail's worth, or all that come before its steps select.
    fn decoded(&self) -> (usize, usize) {
        let to_come = geometry::pages(self.end) - geometry::pages(self.start);
        match (self.residence, self.indexing) {
            (Residence::Sparse, Some(Indexing { selection, .. })) => {
                let before = geometry::pages(self.end.min(selection.selects_from())) + 1;
                let early = before.saturating_sub(geometry::pages(self.start));
                let tail = selection.tail_pages_most().max(early).min(to_come);
                (tail, self.cached(self.end).len() - self.cached(self.start + 1).len())
            }
            _ => (to_come, 0),
        }
    }

    fn cached(&self, len: usize) -> Range<usize> {
        match (self.residence, self.indexing) {
            (Residence::Sparse, Some(Indexing { selection, .. })) => selection.cached_pages(len),
            _ => 0..0,
        }
    }

    /// Whole pages of the prefix that are at home in host memory.
    fn shared_cached(&self) -> Range<usize> {
        let full = self.prefix / PAGE_TOKENS;
        self.prefix_cached.start.min(full)..self.prefix_cached.end.min(full)
    }

    fn summary_beyond(&self, indexed: usize) -> usize {
        self.indexing.map_or(0, |indexing| indexing.rows(self.end) - indexed / indexing.key.row_tokens)
    }
}

/// How many numbers are in both ranges.
fn overlap(a: &Range<usize>, b: &Range<usize>) -> usize {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}
