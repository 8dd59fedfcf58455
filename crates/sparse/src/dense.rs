//! Dense attention: nothing to index or select; the page list is the row table.

use crate::{Algorithm, AlgorithmSpec, AttendBuffers, StepReads};
use backend::{AlgorithmId, IndexUnits, PageSource, Runtime, View};
use kv::{Geometry, PAGE_TOKENS};

pub(crate) struct Dense;

impl Dense {
    pub(crate) fn spec(geometry: Geometry) -> AlgorithmSpec {
        AlgorithmSpec {
            name: "dense",
            index_unit_tokens: PAGE_TOKENS,
            summary_row_tokens: None,
            sink_tokens: 0,
            window_tokens: 0,
            budget: 1.0,
            reads: StepReads::new(geometry, 0, 0),
        }
    }
}

impl Algorithm for Dense {
    fn index(&self, _: &dyn Runtime, _: AlgorithmId, _: usize, _: IndexUnits<'_>) {}

    fn select(&self, _: &dyn Runtime, _: AlgorithmId, _: usize, _: View<'_>) {}

    fn attend(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>, buffers: &AttendBuffers) {
        runtime.attend(id, layer, PageSource::RowTable, q, &buffers.exact);
    }
}
