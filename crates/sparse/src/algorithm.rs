//! What an algorithm supplies.

use crate::StepReads;
use backend::{AlgorithmId, IndexUnits, PageSource, Partial, Runtime, View};
use kv::Selection;

/// An algorithm's constants.
#[derive(Clone, Debug, PartialEq)]
pub struct AlgorithmSpec {
    /// As in flags, metrics and answers.
    pub name: &'static str,
    /// Tokens of an Index unit.
    pub index_unit_tokens: usize,
    /// Tokens that one summary row describes; `None` where the algorithm keeps no summaries.
    pub summary_row_tokens: Option<usize>,
    /// Tokens at the start that are always exact.
    pub sink_tokens: usize,
    /// Tokens at the end that are always exact.
    pub window_tokens: usize,
    /// Share of the pages selected where the request names none; 1 where nothing is selected.
    pub budget: f64,
    /// What its decode steps read.
    pub reads: StepReads,
}

/// Fewest tokens that a step selects, unless a request says otherwise.
pub const FLOOR_TOKENS: usize = 64;

/// Context below which every token is exact, unless a request says otherwise.
pub const MIN_CONTEXT: usize = 2048;

impl AlgorithmSpec {
    /// Whether the algorithm leaves anything out.
    pub fn is_sparse(&self) -> bool {
        self.summary_row_tokens.is_some()
    }

    /// The selection of a request that names nothing.
    pub fn selection(&self) -> Selection {
        match self.is_sparse() {
            false => Selection::dense(),
            true => Selection {
                index_unit_tokens: self.index_unit_tokens,
                sink_tokens: self.sink_tokens,
                window_tokens: self.window_tokens,
                budget: self.budget,
                floor_tokens: FLOOR_TOKENS,
                min_context: MIN_CONTEXT,
            },
        }
    }
}

/// Where an algorithm's Attend leaves its result: `exact` in the end, with `rest` as scratch.
pub struct AttendBuffers {
    /// `[lanes, q_heads * head_dim]`: exact attention, then all of the layer's attention.
    pub exact: Partial,
    /// Approximate attention, which is merged into `exact`.
    pub rest: Partial,
}

/// Index, Select and Attend of one algorithm, recorded as backend ops over its own lanes.
pub trait Algorithm: Send + Sync {
    /// Summarises tokens of one layer.
    fn index(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, units: IndexUnits<'_>);

    /// Chooses each lane's pages for the queries `[lanes, q_heads * head_dim]` of one layer.
    fn select(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>);

    /// Exact attention over what was selected: over the page list, unless the algorithm overrides it.
    fn attend(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>, buffers: &AttendBuffers) {
        runtime.attend(id, layer, PageSource::PageList, q, &buffers.exact);
    }

    /// Approximate attention over what was not selected, into `rest`, and whether there is any: none, unless the
    /// algorithm overrides it. Reads no page, so that it may run while pages are fetched.
    fn estimate(&self, _: &dyn Runtime, _: AlgorithmId, _: usize, _: View<'_>, _: &AttendBuffers) -> bool {
        false
    }
}
