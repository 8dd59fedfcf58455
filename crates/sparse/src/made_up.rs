//! An algorithm whose selections are made up, with a given overlap from step to step: for measurements with random
//! weights, whose own selections mean nothing. Everything is computed as ever; only which pages are read is not.

use crate::{Algorithm, AttendBuffers};
use backend::{AlgorithmId, IndexUnits, Runtime, View};

/// See the module.
pub struct MadeUp {
    inner: Box<dyn Algorithm>,
    overlap: f32,
}

impl MadeUp {
    /// `overlap` of the pages stay from one step to the next, 0 to 1.
    pub fn new(inner: Box<dyn Algorithm>, overlap: f32) -> Self {
        MadeUp { inner, overlap }
    }
}

impl Algorithm for MadeUp {
    fn index(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, units: IndexUnits<'_>) {
        self.inner.index(runtime, id, layer, units);
    }

    fn select(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>) {
        self.inner.select(runtime, id, layer, q);
        runtime.made_up_selection(id, layer, self.overlap);
    }

    fn attend(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>, buffers: &AttendBuffers) {
        self.inner.attend(runtime, id, layer, q, buffers);
    }

    fn estimate(
        &self,
        runtime: &dyn Runtime,
        id: AlgorithmId,
        layer: usize,
        q: View<'_>,
        buffers: &AttendBuffers,
    ) -> bool {
        self.inner.estimate(runtime, id, layer, q, buffers)
    }
}
