//! ShadowKV, the landmark variant (arXiv 2410.21465 as arXiv 2604.26837 uses it): a page's landmark is the mean of its
//! 8 roped keys; score = softmax over the landmarks per query head, maximum over the group; the best pages are exact.
//!
//! With estimation, what was not selected is attended through its mean key and the sum of its values (RetroInfer's
//! estimation zone, arXiv 2505.02922): by Jensen's inequality its weight never exceeds the true one.

use crate::{Algorithm, AlgorithmSpec, AttendBuffers};
use backend::{AlgorithmId, EstimateSource, IndexUnits, PageSource, Runtime, VectorSummary, View};
use kv::PAGE_TOKENS;
use kv::geometry::FRAME_VECTORS;

pub(crate) struct ShadowKv {
    spec: AlgorithmSpec,
    form: VectorSummary,
}

impl ShadowKv {
    pub(crate) fn new() -> Self {
        Self::with("shadowkv", VectorSummary::MeanKey, FRAME_VECTORS)
    }

    pub(crate) fn with_estimate() -> Self {
        Self::with("shadowkv+estimate", VectorSummary::MeanKeyAndValueSum, FRAME_VECTORS / 2)
    }

    fn with(name: &'static str, form: VectorSummary, pages_per_summary_row: usize) -> Self {
        let spec = AlgorithmSpec {
            name,
            index_unit_tokens: PAGE_TOKENS,
            summary_row_tokens: Some(pages_per_summary_row * PAGE_TOKENS),
            sink_tokens: PAGE_TOKENS,
            window_tokens: 32,
            budget: 0.0156,
        };
        ShadowKv { spec, form }
    }
}

impl Algorithm for ShadowKv {
    fn spec(&self) -> &AlgorithmSpec {
        &self.spec
    }

    fn index(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, units: IndexUnits<'_>) {
        runtime.pool_mean(id, layer, units, self.form);
    }

    fn select(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>) {
        runtime.score_dot(id, layer, q, self.form);
        runtime.group_reduce(id);
        runtime.topk(id);
    }

    fn attend(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>, buffers: &AttendBuffers) {
        runtime.attend(id, layer, PageSource::PageList, q, &buffers.exact);
        if self.form == VectorSummary::MeanKeyAndValueSum {
            runtime.estimate(id, layer, EstimateSource::Vectors, q, &buffers.rest);
            runtime.merge(id, &buffers.exact, &buffers.rest);
        }
    }
}
