//! The contract, op by op: each body is in the file of its name.

use crate::host_memory::HostMemory;
use crate::runtime::CudaRuntime;
use crate::{attend, attention_mass, elementwise, estimate, gemm, group_reduce, index, lanes, merge, prefill_attend};
use crate::{qkv_append, residency, sample, score, staging, step, topk};
use backend::{
    AlgorithmId, BackendError, Batch, Buffer, CacheChange, EstimateSource, HeadNorms, IndexUnits, KvTarget, LaneStart,
    PageSource, Partial, Rotations, RowCopy, Runtime, SampleTarget, StepInput, StepKey, StepOutput, Ticket,
    TokenSource, VectorSummary, View, Weight,
};
use kv::{RowId, TokenId};
use std::ops::Range;

impl Runtime for CudaRuntime {
    fn start_lane(&self, start: &LaneStart) {
        self.note(self.gpu.context.bind());
        lanes::start_lane(self, start);
    }

    fn copy_rows(&self, copies: &[RowCopy]) {
        self.note(self.gpu.context.bind());
        staging::copy_rows(self, copies);
    }

    fn change_cache(&self, change: &CacheChange) {
        self.note(self.gpu.context.bind());
        residency::change_cache(self, change);
    }

    fn dram_rows(&self) -> usize {
        self.memory.host.as_ref().map_or(0, HostMemory::ready_rows)
    }

    fn dram_grows(&self) -> bool {
        self.memory.host.as_ref().is_some_and(HostMemory::grows)
    }

    fn enqueue(&self, record: &mut (dyn FnMut() + Send)) {
        self.note(self.gpu.context.bind());
        record();
    }

    fn launch(&self, key: StepKey, input: &StepInput, record: &mut (dyn FnMut() + Send)) -> Ticket {
        self.launch_step(key, input, record)
    }

    fn fence(&self) -> Ticket {
        self.fence_step()
    }

    fn collect(&self, ticket: Ticket) -> Result<StepOutput, BackendError> {
        self.collect_step(&ticket)
    }

    fn steps_in_flight(&self) -> usize {
        step::IN_FLIGHT
    }

    fn embed(&self, tokens: TokenSource<'_>, table: &Weight, out: View<'_>) {
        elementwise::embed(self, tokens, table, out);
    }

    fn add_norm(&self, batch: Batch, x: View<'_>, delta: Option<View<'_>>, norm: &Weight, eps: f32, out: View<'_>) {
        elementwise::add_norm(self, batch, x, delta, norm, eps, out);
    }

    fn gemm(&self, batch: Batch, x: View<'_>, weight: &Weight, out: View<'_>) {
        gemm::gemm(self, batch, x, weight, out);
    }

    fn silu_mul(&self, batch: Batch, gate_up: View<'_>, out: View<'_>) {
        elementwise::silu_mul(self, batch, gate_up, out);
    }

    fn qkv_append(
        &self,
        layer: usize,
        batch: Batch,
        qkv: View<'_>,
        norms: Option<HeadNorms<'_>>,
        target: KvTarget<'_>,
        q: View<'_>,
    ) {
        qkv_append::qkv_append(self, layer, batch, qkv, norms, target, q);
    }

    fn sample(&self, logits: View<'_>, target: SampleTarget<'_>) {
        sample::sample(self, logits, target);
    }

    fn score_tokens(&self, logits: View<'_>, targets: &[TokenId], top: usize) {
        sample::score_tokens(self, logits, targets, top);
    }

    fn prefill_attend(&self, staging: &Buffer, first: usize, n: usize, q: View<'_>, out: View<'_>) {
        prefill_attend::prefill_attend(self, staging, first, n, q, out);
    }

    fn scatter_layer(&self, staging: &Buffer, layer: usize, tokens: Range<usize>, kv_rows: &[RowId]) {
        staging::scatter_layer(self, staging, layer, tokens, kv_rows);
    }

    fn gather_layer(&self, staging: &Buffer, layer: usize, tokens: Range<usize>, kv_rows: &[RowId]) {
        staging::gather_layer(self, staging, layer, tokens, kv_rows);
    }

    fn made_up_selection(&self, algorithm: AlgorithmId, layer: usize, overlap: f32) {
        residency::made_up_selection(self, algorithm, layer, overlap);
    }

    fn resolve(&self, algorithm: AlgorithmId, layer: usize) {
        residency::resolve(self, algorithm, layer);
    }

    fn retrieve(&self, _algorithm: AlgorithmId, layer: usize) {
        residency::retrieve(self, layer);
    }

    fn attend(&self, algorithm: AlgorithmId, layer: usize, source: PageSource, q: View<'_>, out: &Partial) {
        attend::attend(self, algorithm, layer, source, q, out);
    }

    fn estimate(&self, algorithm: AlgorithmId, layer: usize, source: EstimateSource<'_>, q: View<'_>, out: &Partial) {
        estimate::estimate(self, algorithm, layer, source, q, out);
    }

    fn merge(&self, algorithm: AlgorithmId, into: &Partial, other: &Partial) {
        merge::merge(self, algorithm, into, other);
    }

    fn attention_mass(&self, algorithm: AlgorithmId, layer: usize, q: View<'_>, exact: &Partial) {
        attention_mass::attention_mass(self, algorithm, layer, q, exact);
    }

    fn pool_mean(&self, algorithm: AlgorithmId, layer: usize, units: IndexUnits<'_>, form: VectorSummary) {
        index::pool_mean(self, algorithm, layer, units, form);
    }

    fn rotate_code(&self, algorithm: AlgorithmId, layer: usize, units: IndexUnits<'_>, rotations: Rotations<'_>) {
        index::rotate_code(self, algorithm, layer, units, rotations);
    }

    fn score_dot(&self, algorithm: AlgorithmId, layer: usize, q: View<'_>, form: VectorSummary) {
        score::score_dot(self, algorithm, layer, q, form);
    }

    fn score_codes(&self, algorithm: AlgorithmId, layer: usize, q: View<'_>, key_rotation: &Weight) {
        score::score_codes(self, algorithm, layer, q, key_rotation);
    }

    fn group_reduce(&self, algorithm: AlgorithmId) {
        group_reduce::group_reduce(self, algorithm);
    }

    fn topk(&self, algorithm: AlgorithmId) {
        topk::topk(self, algorithm);
    }
}
