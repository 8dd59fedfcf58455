//! ShadowKV, the landmark variant (arXiv 2410.21465 as arXiv 2604.26837 uses it): a page's landmark is the mean of its
//! 8 roped keys; score = softmax over the landmarks per query head, maximum over the group; the best pages are exact.
//!
//! With estimation, what was not selected is attended through its mean key and the sum of its values (RetroInfer's
//! estimation zone, arXiv 2505.02922): by Jensen's inequality its weight never exceeds the true one.

use crate::{Algorithm, AlgorithmSpec, AttendBuffers, StepReads};
use backend::{AlgorithmId, EstimateSource, IndexUnits, Runtime, VectorSummary, View};
use kv::geometry::{ELEMENT_BYTES, FRAME_VECTORS};
use kv::{Geometry, PAGE_TOKENS};

pub(crate) const NAME: &str = "shadowkv";
pub(crate) const NAME_WITH_ESTIMATE: &str = "shadowkv+estimate";

pub(crate) struct ShadowKv {
    form: VectorSummary,
}

impl ShadowKv {
    /// Selection alone.
    pub(crate) fn new() -> Self {
        ShadowKv { form: VectorSummary::MeanKey }
    }

    /// Selection, and estimation of the rest.
    pub(crate) fn with_estimate() -> Self {
        ShadowKv { form: VectorSummary::MeanKeyAndValueSum }
    }

    pub(crate) fn spec(&self, geometry: Geometry) -> AlgorithmSpec {
        let vector_bytes = geometry.head_dim * ELEMENT_BYTES;
        let (name, pages_per_summary_row, rest_page_bytes) = match self.form {
            VectorSummary::MeanKey => (NAME, FRAME_VECTORS, 0),
            VectorSummary::MeanKeyAndValueSum => (NAME_WITH_ESTIMATE, FRAME_VECTORS / 2, vector_bytes),
        };
        AlgorithmSpec {
            name,
            index_unit_tokens: PAGE_TOKENS,
            summary_row_tokens: Some(pages_per_summary_row * PAGE_TOKENS),
            sink_tokens: PAGE_TOKENS,
            window_tokens: 32,
            budget: 0.0156,
            reads: StepReads::new(geometry, vector_bytes, rest_page_bytes),
        }
    }
}

impl Algorithm for ShadowKv {
    fn index(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, units: IndexUnits<'_>) {
        runtime.pool_mean(id, layer, units, self.form);
    }

    fn select(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>) {
        runtime.score_dot(id, layer, q, self.form);
        runtime.group_reduce(id);
        runtime.topk(id);
    }

    fn estimate(
        &self,
        runtime: &dyn Runtime,
        id: AlgorithmId,
        layer: usize,
        q: View<'_>,
        buffers: &AttendBuffers,
    ) -> bool {
        let estimates = self.form == VectorSummary::MeanKeyAndValueSum;
        if estimates {
            runtime.estimate(id, layer, EstimateSource::Vectors, q, &buffers.rest);
        }
        estimates
    }
}
