//! A runtime and a model whose ops are the made-up device's.

use super::device::Device;
use backend::*;
use engine::{Forward, PassView};
use kv::{LaneId, PageEntry, RowId, TokenId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The contract over a [`Device`]: what the engine itself calls works; the ops of a real model are never reached.
pub(super) struct FakeRuntime {
    device: Arc<Device>,
    steps_in_flight: usize,
    /// Rows of host memory that there will be.
    dram_rows_most: usize,
    /// Those that are there: a few more whenever somebody asks.
    dram_rows: AtomicUsize,
    /// Decode steps after which the device is lost.
    lost_after: Option<u64>,
    outputs: Mutex<Outputs>,
}

/// How host memory comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostRows {
    /// Rows in the end.
    pub(super) most: usize,
    /// Whether bit by bit.
    pub(super) grows: bool,
}

#[derive(Default)]
struct Outputs {
    launched: u64,
    steps: BTreeMap<u64, StepOutput>,
}

/// A model over a [`Device`]; a prefill's first tokens wait here, as they do in a real runtime.
pub(super) struct FakeForward {
    device: Arc<Device>,
}

impl FakeRuntime {
    pub(super) fn new(
        device: Arc<Device>,
        steps_in_flight: usize,
        lost_after: Option<u64>,
        HostRows { most, grows }: HostRows,
    ) -> Self {
        let dram_rows = AtomicUsize::new(if grows { 0 } else { most });
        FakeRuntime { device, steps_in_flight, lost_after, dram_rows_most: most, dram_rows, outputs: Mutex::default() }
    }
}

impl FakeForward {
    pub(super) fn new(device: Arc<Device>) -> Self {
        FakeForward { device }
    }
}

impl Forward for FakeForward {
    fn layers(&self) -> usize {
        self.device.layers()
    }

    fn prefill_layer(&self, _: &dyn Runtime, pass: &PassView<'_>, layer: usize, tokens: Range<usize>) {
        self.device.prefill_layer(pass, layer, tokens);
    }

    fn prefill_gather(&self, _: &dyn Runtime, pass: &PassView<'_>, layer: usize) {
        self.device.prefill_gather(pass, layer);
    }

    fn prefill_scatter(&self, _: &dyn Runtime, pass: &PassView<'_>, layer: usize) {
        self.device.prefill_scatter(pass, layer);
    }

    fn prefill_index(
        &self,
        _: &dyn Runtime,
        algorithm: AlgorithmId,
        layer: usize,
        kv_rows: &[RowId],
        summary_rows: &[RowId],
        tokens: (usize, usize),
    ) {
        self.device.index(algorithm, layer, kv_rows, summary_rows, tokens.0..tokens.1);
    }

    fn prefill_sample(&self, _: &dyn Runtime, pass: &PassView<'_>, lanes: &[LaneId]) {
        self.device.prefill_sample(pass, lanes);
    }

    fn decode(&self, _: &dyn Runtime, _: StepKey) {}
}

impl Runtime for FakeRuntime {
    fn start_lane(&self, start: &LaneStart) {
        self.device.start_lane(start);
    }

    fn copy_rows(&self, copies: &[RowCopy]) {
        self.device.copy_rows(copies);
    }

    fn change_cache(&self, change: &CacheChange) {
        self.device.change_cache(change);
    }

    fn dram_rows(&self) -> usize {
        self.dram_rows_most.min(self.dram_rows.fetch_add(3, Ordering::Relaxed))
    }

    fn dram_grows(&self) -> bool {
        self.dram_rows.load(Ordering::Relaxed) < self.dram_rows_most + 3
    }

    fn enqueue(&self, record: &mut (dyn FnMut() + Send)) {
        record();
    }

    fn launch(&self, key: StepKey, input: &StepInput, record: &mut (dyn FnMut() + Send)) -> Ticket {
        record();
        let prefilled = self.device.take_prefilled();
        let output = StepOutput { lanes: self.device.decode(key, input).lanes, ..prefilled };
        let mut outputs = self.outputs.lock().expect("one thread");
        outputs.launched += 1;
        let ticket = outputs.launched;
        outputs.steps.insert(ticket, output);
        assert!(outputs.steps.len() <= self.steps_in_flight, "more steps in flight than the backend has");
        Ticket(ticket)
    }

    fn fence(&self) -> Ticket {
        self.device.fence();
        let mut outputs = self.outputs.lock().expect("one thread");
        outputs.launched += 1;
        let ticket = outputs.launched;
        outputs.steps.insert(ticket, self.device.take_prefilled());
        Ticket(ticket)
    }

    fn collect(&self, ticket: Ticket) -> Result<StepOutput, BackendError> {
        if self.lost_after.is_some_and(|steps| steps < ticket.0) {
            return Err(BackendError::DeviceLost("made up".to_string()));
        }
        self.device.collected();
        Ok(self.outputs.lock().expect("one thread").steps.remove(&ticket.0).expect("a ticket is collected once"))
    }

    fn steps_in_flight(&self) -> usize {
        self.steps_in_flight
    }

    fn embed(&self, _: TokenSource<'_>, _: &Weight, _: View<'_>) {
        never()
    }

    fn add_norm(&self, _: Batch, _: View<'_>, _: Option<View<'_>>, _: &Weight, _: f32, _: View<'_>) {
        never()
    }

    fn gemm(&self, _: Batch, _: View<'_>, _: &Weight, _: View<'_>) {
        never()
    }

    fn silu_mul(&self, _: Batch, _: View<'_>, _: View<'_>) {
        never()
    }

    fn qkv_append(&self, _: usize, _: Batch, _: View<'_>, _: Option<HeadNorms<'_>>, _: KvTarget<'_>, _: View<'_>) {
        never()
    }

    fn sample(&self, _: View<'_>, _: SampleTarget<'_>) {
        never()
    }

    fn score_tokens(&self, _: View<'_>, _: &[TokenId], _: usize) {
        never()
    }

    fn prefill_attend(&self, _: &Buffer, _: usize, _: usize, _: View<'_>, _: View<'_>) {
        never()
    }

    fn scatter_layer(&self, _: &Buffer, _: usize, _: Range<usize>, _: &[RowId]) {
        never()
    }

    fn gather_layer(&self, _: &Buffer, _: usize, _: Range<usize>, _: &[RowId]) {
        never()
    }

    fn made_up_selection(&self, _: AlgorithmId, _: usize, _: f32) {
        never()
    }

    fn resolve(&self, _: AlgorithmId, _: usize) {
        never()
    }

    fn retrieve(&self, _: AlgorithmId, _: usize) {
        never()
    }

    fn attend(&self, _: AlgorithmId, _: usize, _: PageSource, _: View<'_>, _: &Partial) {
        never()
    }

    fn estimate(&self, _: AlgorithmId, _: usize, _: EstimateSource<'_>, _: View<'_>, _: &Partial) {
        never()
    }

    fn merge(&self, _: AlgorithmId, _: &Partial, _: &Partial) {
        never()
    }

    fn attention_mass(&self, _: AlgorithmId, _: usize, _: View<'_>, _: &Partial) {
        never()
    }

    fn pool_mean(&self, _: AlgorithmId, _: usize, _: IndexUnits<'_>, _: VectorSummary) {
        never()
    }

    fn rotate_code(&self, _: AlgorithmId, _: usize, _: IndexUnits<'_>, _: Rotations<'_>) {
        never()
    }

    fn score_dot(&self, _: AlgorithmId, _: usize, _: View<'_>, _: VectorSummary) {
        never()
    }

    fn score_codes(&self, _: AlgorithmId, _: usize, _: View<'_>, _: &Weight) {
        never()
    }

    fn group_reduce(&self, _: AlgorithmId) {
        never()
    }

    fn topk(&self, _: AlgorithmId) {
        never()
    }
}

impl Inspect for FakeRuntime {
    fn read(&self, _: &Buffer) -> Vec<f32> {
        never()
    }

    fn write(&self, _: &Buffer, _: &[f32]) {
        never()
    }

    fn read_frame(&self, _: RowId, _: usize, _: usize) -> Vec<u8> {
        never()
    }

    fn write_frame(&self, _: RowId, _: usize, _: usize, _: &[u8]) {
        never()
    }

    fn read_tags(&self, _: LaneId, _: usize, _: usize) -> Vec<kv::bucketed_lru::Tag> {
        never()
    }

    fn read_page_list(&self, _: LaneId, _: usize) -> Vec<PageEntry> {
        never()
    }

    fn read_page_scores(&self, _: LaneId, _: bool) -> Vec<f32> {
        never()
    }

    fn read_token_logits(&self, _: LaneId) -> Vec<f32> {
        never()
    }
}

fn never() -> ! {
    panic!("the engine calls no op of a model")
}
