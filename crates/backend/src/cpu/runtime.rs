//! The CPU as a [`Runtime`]: pool, lanes, workspaces; every op's body is in the file of its name.

use super::array::Array;
use super::lanes::Lanes;
use super::retrieve::{self, SlotStates};
use super::rope::RopeTable;
use super::simd::Isa;
use super::threads::Threads;
use super::weight::{Matrix, Vector};
use super::workspace::Workspace;
use super::{attend, attention_mass, elementwise, estimate, gemm, group_reduce, made_up, merge, pool_mean};
use super::{prefill_attend, qkv_append, rotate_code, sample, score_codes, score_dot, score_tokens, staging, topk};
use crate::{
    AlgorithmId, BackendError, Batch, Buffer, CacheChange, EstimateSource, HeadNorms, IndexUnits, Inspect, KvTarget,
    LaneStart, PageSource, Partial, Rotations, RowCopy, Runtime, RuntimeShape, SampleTarget, StepInput, StepKey,
    StepOutput, Ticket, TokenSource, VectorSummary, View, Weight,
};
use kv::bucketed_lru::Tag;
use kv::geometry::ELEMENT_BYTES;
use kv::{LaneId, PAGE_TOKENS, PageEntry, RowId, Tier, TokenId};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What the Dram tier is called.
const HOST: &str = "host memory for KV";

/// One pool, its lanes and workspaces on the CPU.
pub struct CpuRuntime {
    /// What it is sized for.
    pub shape: RuntimeShape,
    /// Where loops spread.
    pub threads: Arc<Threads>,
    /// Which kernels run.
    pub isa: Isa,
    /// `[rows][layers][kv_heads]` frames: K `[8][head_dim]`, then V, bf16 (or a summary frame).
    pub pool: Array<u16>,
    /// Host memory behind the pool, rows of the same form.
    pub dram: Array<u16>,
    /// What the pool's frames hold as slots.
    pub slots: SlotStates,
    /// Scratch between ops.
    pub work: Workspace,
    /// Cosines and sines of every position.
    pub rope: RopeTable,
    lanes: RwLock<Lanes>,
}

impl CpuRuntime {
    /// Allocates everything.
    ///
    /// # Errors
    /// No memory, or no such file; a head size that the kernels do not cover.
    pub fn new(
        shape: &RuntimeShape,
        threads: Arc<Threads>,
        isa: Isa,
        host_folder: Option<&Path>,
    ) -> Result<Self, BackendError> {
        let head_dim = shape.geometry.head_dim;
        if !head_dim.is_multiple_of(16) || head_dim > 256 {
            return Err(BackendError::Unsupported {
                what: format!("head_dim {head_dim}"),
                supported: "multiples of 16 up to 256",
            });
        }
        let row = shape.geometry.row_bytes() / ELEMENT_BYTES;
        Ok(CpuRuntime {
            pool: Array::zeros("the KV pool", shape.pool_rows * row)?,
            dram: match host_folder {
                Some(folder) if 0 < shape.dram_rows => Array::in_file(HOST, shape.dram_rows * row, folder)?,
                _ => Array::zeros(HOST, shape.dram_rows * row)?,
            },
            slots: SlotStates::new(shape)?,
            work: Workspace::new(shape)?,
            rope: RopeTable::new(&shape.rope, shape.max_tokens + 1),
            lanes: RwLock::new(Lanes::new(shape.max_lanes)),
            shape: shape.clone(),
            threads,
            isa,
        })
    }

    /// The lanes, to read; an op holds this while its tasks run.
    pub fn lanes(&self) -> RwLockReadGuard<'_, Lanes> {
        self.lanes.read().expect("no op panicked before")
    }

    /// The lanes, to change.
    pub fn lanes_mut(&self) -> RwLockWriteGuard<'_, Lanes> {
        self.lanes.write().expect("no op panicked before")
    }

    /// Rows of a batch.
    pub fn rows_of(&self, batch: Batch) -> usize {
        match batch {
            Batch::Lanes => self.lanes().active.len(),
            Batch::Tokens(n) => n,
        }
    }

    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.shape.q_heads / self.shape.geometry.kv_heads
    }

    /// Elements `[K or V][8][head_dim]` of a frame, to read.
    pub fn frame(&self, row: RowId, layer: usize, head: usize) -> &[u16] {
        let len = self.shape.geometry.frame_elements();
        let at = self.shape.geometry.frame(row, layer, head) * len;
        // SAFETY: whoever writes a frame has promised `frame_mut` that nobody reads it.
        unsafe { self.tier(row).slice(at..at + len) }
    }

    /// A frame, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes this frame meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn frame_mut(&self, row: RowId, layer: usize, head: usize) -> &mut [u16] {
        let len = self.shape.geometry.frame_elements();
        let at = self.shape.geometry.frame(row, layer, head) * len;
        // SAFETY: exclusive by the caller's promise.
        unsafe { self.tier(row).part(at..at + len) }
    }

    /// The tier that a row is in.
    fn tier(&self, row: RowId) -> &Array<u16> {
        match row.tier() {
            Tier::Pool => &self.pool,
            Tier::Dram => &self.dram,
        }
    }
}

/// An activation buffer's array.
pub fn activations(buffer: &Buffer) -> &Array<f32> {
    buffer.downcast().expect("an activation buffer of this backend")
}

/// `n` rows of a view, to read: `[n, cols]`.
pub fn rows(view: View<'_>, n: usize) -> &[f32] {
    let cols = view.buffer.cols();
    // SAFETY: whoever writes rows has promised `rows_mut` (or `Array::part`) that nobody reads them.
    unsafe { activations(view.buffer).slice(view.row * cols..(view.row + n) * cols) }
}

/// `n` rows of a view, to write: `[n, cols]`.
///
/// # Safety
/// Nobody else reads or writes these rows meanwhile.
#[allow(clippy::mut_from_ref)]
pub unsafe fn rows_mut(view: View<'_>, n: usize) -> &mut [f32] {
    let cols = view.buffer.cols();
    // SAFETY: exclusive by the caller's promise.
    unsafe { activations(view.buffer).part(view.row * cols..(view.row + n) * cols) }
}

/// A packed matrix.
pub fn matrix(weight: &Weight) -> &Matrix {
    weight.downcast().expect("a matrix of this backend")
}

/// A vector's elements.
pub fn vector(weight: &Weight) -> &[f32] {
    weight.downcast::<Vector>().expect("a vector of this backend").elements.all()
}

impl Runtime for CpuRuntime {
    fn start_lane(&self, start: &LaneStart) {
        self.slots.join(&self.shape, start.cache_rows.iter().map(|row| (*row, None)));
        self.lanes_mut().start(start, self.shape.vocab);
    }

    fn copy_rows(&self, copies: &[RowCopy]) {
        let len = self.shape.geometry.row_bytes() / 2;
        for RowCopy { source, target } in copies {
            assert_ne!(source, target, "a row is copied to another");
            let range = |row: RowId| row.at() * len..(row.at() + 1) * len;
            // SAFETY: ops run one at a time, and source and target differ.
            let (source, target) =
                unsafe { (self.tier(*source).slice(range(*source)), self.tier(*target).part(range(*target))) };
            target.copy_from_slice(source);
        }
    }

    fn change_cache(&self, change: &CacheChange) {
        retrieve::change_cache(self, change);
    }

    fn dram_rows(&self) -> usize {
        self.shape.dram_rows
    }

    fn enqueue(&self, record: &mut (dyn FnMut() + Send)) {
        self.threads.run(record);
    }

    fn launch(&self, _key: StepKey, input: &StepInput, record: &mut (dyn FnMut() + Send)) -> Ticket {
        self.lanes_mut().begin(input);
        self.threads.run(record);
        Ticket(0)
    }

    fn fence(&self) -> Ticket {
        Ticket(0)
    }

    fn collect(&self, _ticket: Ticket) -> Result<StepOutput, BackendError> {
        let mut lanes = self.lanes_mut();
        let lanes = &mut *lanes;
        Ok(StepOutput {
            lanes: std::mem::take(&mut lanes.output),
            prefilled: std::mem::take(&mut lanes.prefilled),
            scores: std::mem::take(&mut lanes.scores),
        })
    }

    fn steps_in_flight(&self) -> usize {
        1
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
        score_tokens::score_tokens(self, logits, targets, top);
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
        made_up::made_up_selection(self, algorithm, layer, overlap);
    }

    fn resolve(&self, algorithm: AlgorithmId, layer: usize) {
        retrieve::resolve(self, algorithm, layer);
    }

    fn retrieve(&self, _algorithm: AlgorithmId, layer: usize) {
        retrieve::retrieve(self, layer);
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
        pool_mean::pool_mean(self, algorithm, layer, units, form);
    }

    fn rotate_code(&self, algorithm: AlgorithmId, layer: usize, units: IndexUnits<'_>, rotations: Rotations<'_>) {
        rotate_code::rotate_code(self, algorithm, layer, units, rotations);
    }

    fn score_dot(&self, algorithm: AlgorithmId, layer: usize, q: View<'_>, form: VectorSummary) {
        score_dot::score_dot(self, algorithm, layer, q, form);
    }

    fn score_codes(&self, algorithm: AlgorithmId, layer: usize, q: View<'_>, key_rotation: &Weight) {
        score_codes::score_codes(self, algorithm, layer, q, key_rotation);
    }

    fn group_reduce(&self, algorithm: AlgorithmId) {
        group_reduce::group_reduce(self, algorithm);
    }

    fn topk(&self, algorithm: AlgorithmId) {
        topk::topk(self, algorithm);
    }
}

impl Inspect for CpuRuntime {
    fn read(&self, buffer: &Buffer) -> Vec<f32> {
        match buffer.downcast::<Array<u16>>() {
            Some(staging) => staging.all().iter().map(|x| f32::from_bits(u32::from(*x) << 16)).collect(),
            None => activations(buffer).all().to_vec(),
        }
    }

    fn write(&self, buffer: &Buffer, elements: &[f32]) {
        // SAFETY: no op is running between calls of the owner.
        unsafe {
            match buffer.downcast::<Array<u16>>() {
                Some(staging) => {
                    let bits = elements.iter().map(|x| half::bf16::from_f32(*x).to_bits());
                    staging.part(0..elements.len()).iter_mut().zip(bits).for_each(|(x, bits)| *x = bits);
                }
                None => activations(buffer).part(0..elements.len()).copy_from_slice(elements),
            }
        }
    }

    fn read_frame(&self, row: RowId, layer: usize, head: usize) -> Vec<u8> {
        self.frame(row, layer, head).iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn write_frame(&self, row: RowId, layer: usize, head: usize, bytes: &[u8]) {
        // SAFETY: no op is running between calls of the owner.
        let frame = unsafe { self.frame_mut(row, layer, head) };
        for (element, pair) in frame.iter_mut().zip(bytes.chunks_exact(2)) {
            *element = u16::from_le_bytes([pair[0], pair[1]]);
        }
    }

    fn read_tags(&self, lane: LaneId, layer: usize, head: usize) -> Vec<Tag> {
        let lanes = self.lanes();
        lanes.lane(lane).cache_rows.iter().map(|row| self.slots.tag(&self.shape, layer, head, *row)).collect()
    }

    fn read_page_list(&self, lane: LaneId, head: usize) -> Vec<PageEntry> {
        let at = self.lanes().position_of(lane) * self.shape.geometry.kv_heads + head;
        let len = self.work.page_list_len.all()[at] as usize;
        let first = at * self.work.max_pages;
        self.work.page_list.all()[first..first + len].iter().map(|e| PageEntry(*e)).collect()
    }

    fn read_page_scores(&self, lane: LaneId, reduced: bool) -> Vec<f32> {
        let lanes = self.lanes();
        let i = lanes.position_of(lane);
        let lane = lanes.lane(lane);
        let pages = lane.selection.indexed_pages(lane.len);
        let (array, heads) = match reduced {
            true => (&self.work.reduced, self.shape.geometry.kv_heads),
            false => (&self.work.page_scores, self.shape.q_heads),
        };
        let of_head = |h| &array.all()[(i * heads + h) * self.work.max_pages..][..pages];
        (0..heads).flat_map(of_head).copied().collect()
    }

    fn read_token_logits(&self, lane: LaneId) -> Vec<f32> {
        let lanes = self.lanes();
        let i = lanes.position_of(lane);
        let lane = lanes.lane(lane);
        let tokens = lane.selection.indexed_pages(lane.len) * PAGE_TOKENS;
        let heads = self.shape.q_heads;
        let of_head = |h| &self.work.token_logits.all()[(i * heads + h) * self.work.max_tokens..][..tokens];
        (0..heads).flat_map(of_head).copied().collect()
    }
}
