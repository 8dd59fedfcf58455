//! Which pages are indexed, exact and selectable: arithmetic on the length alone, the same after prefill, decode,
//! fork and resume (ARCHITECTURE.md, "Selection").
//!
//! ```text
//! tokens   0        sink                      indexed            len
//!          |--exact--|------ candidates -------|------ exact ------|
//! pages    0         s                         b
//! ```

use crate::{PAGE_TOKENS, geometry};
use std::ops::Range;

/// What one sequence's selection depends on: its algorithm's constants and its request's budget, nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// Tokens of an Index unit: 8 for mean keys, 48 for the sketch. A multiple of `PAGE_TOKENS`.
    pub index_unit_tokens: usize,
    /// Tokens at the start that are always exact, rounded up to pages.
    pub sink_tokens: usize,
    /// Tokens at the end that are always exact.
    pub window_tokens: usize,
    /// Share of the indexed pages that a step selects, 0.0 to 1.0.
    pub budget: f64,
    /// Fewest tokens that a step selects (where there are as many).
    pub floor_tokens: usize,
    /// Below this length every token is exact.
    pub min_context: usize,
}

/// A window that no sequence outgrows.
const WHOLE_CONTEXT: usize = 1 << 40;

impl Selection {
    /// Dense attention's: nothing is ever indexed, every token is exact.
    pub fn dense() -> Self {
        Selection {
            index_unit_tokens: PAGE_TOKENS,
            sink_tokens: 0,
            window_tokens: WHOLE_CONTEXT,
            budget: 1.0,
            floor_tokens: 0,
            min_context: 0,
        }
    }

    /// `b`: pages `0..b` of a sequence of `len` tokens (the current one included) are indexed.
    pub fn indexed_pages(&self, len: usize) -> usize {
        let unit = self.index_unit_tokens;
        unit * (len.saturating_sub(self.window_tokens + 2) / unit) / PAGE_TOKENS
    }

    /// `indexed_len`: tokens that are indexed at `len`.
    pub fn indexed_tokens(&self, len: usize) -> usize {
        self.indexed_pages(len) * PAGE_TOKENS
    }

    /// `s`: pages at the start that are always exact.
    pub fn sink_pages(&self) -> usize {
        geometry::pages(self.sink_tokens)
    }

    /// What a step at `len` does.
    pub fn at(&self, len: usize) -> Selected {
        let (sink, indexed) = (self.sink_pages(), self.indexed_pages(len));
        if len < self.min_context {
            return Selected::AllExact(AllExact::BelowMinContext);
        }
        if indexed <= sink {
            return Selected::AllExact(AllExact::Covered);
        }
        let floor = self.floor_tokens.div_ceil(PAGE_TOKENS);
        let share = (self.budget * indexed as f64 + 0.5).floor() as usize;
        Selected::Pages { sink, indexed, k: share.max(floor).max(1).min(indexed - sink) }
    }

    /// One past the last page that a step at `len` reads only if it selects it; those from the sink on may be at home
    /// in host memory.
    pub fn cached_end(&self, len: usize) -> usize {
        match self.at(len) {
            Selected::AllExact(_) => self.sink_pages(),
            Selected::Pages { indexed, .. } => indexed,
        }
    }

    /// Pages that a step at `len` reads only if it selects them.
    pub fn cached_pages(&self, len: usize) -> Range<usize> {
        self.sink_pages()..self.cached_end(len)
    }

    /// The shortest length at which a step selects.
    pub fn selects_from(&self) -> usize {
        let units = (self.sink_pages() * PAGE_TOKENS) / self.index_unit_tokens + 1;
        self.min_context.max(units * self.index_unit_tokens + self.window_tokens + 2)
    }

    /// Pages that a step at `len` selects: none where every token is exact.
    pub fn selected_pages(&self, len: usize) -> usize {
        match self.at(len) {
            Selected::AllExact(_) => 0,
            Selected::Pages { k, .. } => k,
        }
    }

    /// The most pages behind the candidates that any step has, while one leaves and one joins.
    pub fn tail_pages_most(&self) -> usize {
        geometry::pages(self.window_tokens + 2 + self.index_unit_tokens) + 1
    }

    /// Tokens that a step at `len` attends exactly.
    pub fn exact_tokens(&self, len: usize) -> usize {
        match self.at(len) {
            Selected::AllExact(_) => len,
            Selected::Pages { sink, indexed, k } => len - (indexed - sink - k) * PAGE_TOKENS,
        }
    }
}

/// Why a step attends every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllExact {
    /// The context is shorter than `min_context`.
    BelowMinContext,
    /// Sink and window hold all tokens; dense attention's window always does.
    Covered,
}

/// The outcome of [`Selection::at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selected {
    /// Dense attention over every token.
    AllExact(AllExact),
    /// `k` of the candidates `sink..indexed` are selected; pages below `sink` and from `indexed` on are exact.
    Pages {
        /// First candidate page.
        sink: usize,
        /// One past the last candidate page.
        indexed: usize,
        /// Candidates selected, at least 1 and at most `indexed - sink`.
        k: usize,
    },
}
