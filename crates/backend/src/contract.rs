//! The contract: what every backend does, op by op. The CPU implementation is the truth of each.
//!
//! Ops only enqueue. They cannot fail for reasons of data: a wrong shape is a broken invariant and panics; a lost
//! device comes out of [`Runtime::collect`]. No op of the decode step takes a host scalar that changes between steps
//! (invariant 11): lanes' tokens, positions, lengths, tables and budgets live with the runtime and advance there.
//!
//! Shapes use these names: `n` rows of the batch (active lanes, or tokens of a prefill unit), `hidden`, `q_heads`,
//! `kv_heads`, `d` = head_dim.

use crate::{
    AlgorithmId, Buffer, CacheChange, DeviceInfo, LaneStart, MemoryUse, Partial, RowCopy, RuntimeShape, StepInput,
    StepKey, StepOutput, Tensor, Ticket, View, Weight,
};
use kv::{LaneId, RowId, TokenId};
use std::ops::Range;
use std::sync::Arc;

/// Why a backend could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Not enough memory.
    #[error("cannot allocate {bytes} bytes for {what}: {hint}")]
    OutOfMemory {
        /// What for.
        what: &'static str,
        /// How much.
        bytes: u64,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file that would not be made.
    #[error(
        "cannot keep {bytes} bytes for {what} in a file of {folder}: {why}; lower --host-memory, or name another \
             --host-folder"
    )]
    Storage {
        /// What for.
        what: &'static str,
        /// How much.
        bytes: u64,
        /// Where.
        folder: String,
        /// The system's words.
        why: String,
    },
    /// A tensor or shape that this backend's kernels do not cover.
    #[error("{what} is not supported: {supported}")]
    Unsupported {
        /// What was asked, with its value.
        what: String,
        /// What would be.
        supported: &'static str,
    },
    /// The device failed; its runtime is unusable.
    #[error("device lost: {0}")]
    DeviceLost(String),
}

/// What a weight is for: decides fusing, packing and sharding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightRole {
    /// `[vocab, hidden]`, read by `embed`; serves as output matrix too where tied.
    Embedding,
    /// A norm's `[n]`.
    Norm,
    /// q, k, v matrices, in this order, one below the other.
    Qkv,
    /// Attention output.
    AttentionOutput,
    /// gate, up, in this order, one below the other.
    GateUp,
    /// MLP output.
    Down,
    /// `[vocab, hidden]` output matrix.
    Output,
    /// Sketch rotations, f32 `[kv_heads, d, d]`.
    Rotation,
}

/// One matrix (or vector) of a fused weight.
#[derive(Clone, Debug)]
pub struct WeightPart<'a> {
    /// The matrix, `[out, in]`.
    pub weight: Tensor<'a>,
    /// Added to its outputs, `[out]`.
    pub bias: Option<Tensor<'a>>,
}

/// Memory and weights of one device.
pub trait Backend: Send + Sync {
    /// What this is, for people.
    fn info(&self) -> DeviceInfo;

    /// Fuses (one part below the other), packs and uploads a weight; the tensors may be dropped afterwards.
    ///
    /// # Errors
    /// Parts whose input widths differ; shapes that no kernel covers; no memory.
    fn prepare_weight(&self, role: WeightRole, parts: &[WeightPart<'_>]) -> Result<Weight, BackendError>;

    /// Bytes that `prepare_weight` keeps for a fused weight of `[out, in]`.
    fn weight_bytes(&self, role: WeightRole, shape: [usize; 2]) -> u64;

    /// A weight of seeded noise, made on the device: near uniform with deviation `1 / sqrt(in)` (a norm is all ones).
    /// For measurements of speed: right shapes, no meaning.
    ///
    /// # Errors
    /// No memory; a role that has no random form.
    fn random_weight(&self, role: WeightRole, shape: [usize; 2], bias: bool, seed: u64)
    -> Result<Weight, BackendError>;

    /// An activation array of zeros.
    ///
    /// # Errors
    /// No memory.
    fn buffer(&self, what: &'static str, rows: usize, cols: usize) -> Result<Buffer, BackendError>;

    /// Bytes of such an array.
    fn buffer_bytes(&self, rows: usize, cols: usize) -> u64;

    /// An activation array that matrix products and attention read and write: a device whose products take bf16 keeps
    /// it so.
    ///
    /// # Errors
    /// No memory.
    fn product_buffer(&self, what: &'static str, rows: usize, cols: usize) -> Result<Buffer, BackendError> {
        self.buffer(what, rows, cols)
    }

    /// Bytes of such an array.
    fn product_buffer_bytes(&self, rows: usize, cols: usize) -> u64 {
        self.buffer_bytes(rows, cols)
    }

    /// How prompts pass a layer on this device.
    fn prefill_form(&self) -> PrefillForm;

    /// K and V of one layer for `tokens` tokens, contiguous: what prefill attention reads.
    ///
    /// # Errors
    /// No memory.
    fn staging(&self, shape: &RuntimeShape, tokens: usize) -> Result<Buffer, BackendError>;

    /// Bytes of such a staging buffer.
    fn staging_bytes(&self, shape: &RuntimeShape, tokens: usize) -> u64;

    /// What [`Backend::runtime`] will allocate: pool, lanes, workspaces.
    fn runtime_plan(&self, shape: &RuntimeShape) -> Vec<MemoryUse>;

    /// Allocates the pool, the lanes and the workspaces.
    ///
    /// # Errors
    /// No memory; a head size or group that no kernel covers.
    fn runtime(&self, shape: &RuntimeShape) -> Result<Arc<dyn Runtime>, BackendError>;
}

/// How prompts pass a layer: sizes that a device works best with, the same for every model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillForm {
    /// Tokens that pass a layer's ops together; a longer unit goes in several strides.
    pub stride_tokens: usize,
    /// Staging buffers of a pass, which its layers use in turn: with two, a layer's scatter and Index run beside the
    /// next layer.
    pub stagings: usize,
}

/// Which rows of an activation buffer an op works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// One row per active lane of the step.
    Lanes,
    /// This many rows, from the view's first on.
    Tokens(usize),
}

/// Where `embed` takes its tokens from.
#[derive(Clone, Copy, Debug)]
pub enum TokenSource<'a> {
    /// `token[lane]` of the active lanes.
    Lanes,
    /// These.
    Given(&'a [TokenId]),
}

/// Where `qkv_append` puts K and V.
#[derive(Clone, Copy, Debug)]
pub enum KvTarget<'a> {
    /// Each active lane's row of its last position.
    Lanes,
    /// A staging buffer; the unit's tokens are positions `first..first + n`.
    Staging {
        /// The layer's staging buffer.
        staging: &'a Buffer,
        /// Position of the unit's first token.
        first: usize,
    },
}

/// Per-head norms of queries and keys (Qwen3); `None` where the model has none.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// `[d]`, for queries.
    pub q: &'a Weight,
    /// `[d]`, for keys.
    pub k: &'a Weight,
    /// Added to the mean square.
    pub eps: f32,
}

/// What `attend` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSource {
    /// The lane's whole KV row table: dense attention.
    RowTable,
    /// The page list that `topk` wrote for each KV head.
    PageList,
}

/// Which tokens an Index op summarises.
#[derive(Clone, Copy, Debug)]
pub enum IndexUnits<'a> {
    /// For each active lane of the algorithm, the tokens that become indexed at its next step:
    /// `indexed_tokens(len)..indexed_tokens(len + 1)`.
    Lanes,
    /// Tokens of one sequence, whole Index units, from rows.
    Rows {
        /// Its KV row table.
        kv_rows: &'a [RowId],
        /// Its summary row table.
        summary_rows: &'a [RowId],
        /// First and one past the last token; multiples of the Index unit.
        tokens: (usize, usize),
    },
}

/// What the vectors of summary rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorSummary {
    /// Vector `i` is page `i`'s mean key; 16 pages a summary row.
    MeanKey,
    /// Vectors `2i`, `2i + 1` are page `i`'s mean key and the sum of its values; 8 pages a summary row.
    MeanKeyAndValueSum,
}

/// What `estimate` attends approximately, for every candidate page that was not selected.
#[derive(Clone, Copy, Debug)]
pub enum EstimateSource<'a> {
    /// Mean keys and value sums: `sum e^t VS / sum 8 e^t`, with the logits t that `score_dot` left.
    Vectors,
    /// Token logits of `score_codes` and value codes, rotated back once at the end by the transpose of the
    /// rotation `[kv_heads, d, d]`.
    Codes {
        /// The value rotation.
        value_rotation: &'a Weight,
    },
}

/// Where `sample` puts its tokens.
#[derive(Clone, Copy, Debug)]
pub enum SampleTarget<'a> {
    /// Row `i` of the logits belongs to active lane `i`.
    Lanes,
    /// The end of a prefill: every lane draws from row 0 of the logits.
    Prefill(&'a [LaneId]),
}

/// The rotations of one layer's sketch, each f32 `[kv_heads, d, d]` with rows as output channels.
#[derive(Clone, Copy, Debug)]
pub struct Rotations<'a> {
    /// Applied to roped keys and queries.
    pub key: &'a Weight,
    /// Applied to values.
    pub value: &'a Weight,
}

/// One pool, its lanes and workspaces, and the ops over them.
pub trait Runtime: Inspect + Send + Sync {
    // Between steps; never captured.

    /// Puts a sequence on a lane.
    fn start_lane(&self, start: &LaneStart);

    /// Copies whole rows, inside a tier or from one to another, in order.
    fn copy_rows(&self, copies: &[RowCopy]);

    /// Gives a lane other cache rows.
    fn change_cache(&self, change: &CacheChange);

    /// Rows of host memory that can be used by now; never fewer later.
    fn dram_rows(&self) -> usize;

    /// Whether there will be more of them: memory is still being made.
    fn dram_grows(&self) -> bool {
        false
    }

    /// Runs prefill and Index ops in stream order behind what was launched.
    fn enqueue(&self, record: &mut (dyn FnMut() + Send));

    /// Starts a decode step: applies `input` (each active lane's length grows by one, its last token is the input),
    /// then the ops that `record` calls; a backend that captures calls `record` once per `key`.
    fn launch(&self, key: StepKey, input: &StepInput, record: &mut (dyn FnMut() + Send)) -> Ticket;

    /// Marks the end of what was enqueued, where no decode step follows.
    fn fence(&self) -> Ticket;

    /// Waits for a step (or a fence) and returns what it produced, and what prefills produced since the ticket before.
    ///
    /// # Errors
    /// The device was lost.
    fn collect(&self, ticket: Ticket) -> Result<StepOutput, BackendError>;

    /// Steps that may be in flight before `collect` must be called: 1 on a CPU.
    fn steps_in_flight(&self) -> usize;

    // Both in prefill units and in the decode step.

    /// `out[i] = table[token i]`: `[n, hidden]`.
    fn embed(&self, tokens: TokenSource<'_>, table: &Weight, out: View<'_>);

    /// `x += delta` (where given), then `out = x / rms(x) * norm`: `[n, hidden]` each.
    fn add_norm(&self, batch: Batch, x: View<'_>, delta: Option<View<'_>>, norm: &Weight, eps: f32, out: View<'_>);

    /// `out = x weight^T + bias`: `[n, in]` to `[n, out]`. One chain of multiply-adds per output, inputs ascending.
    fn gemm(&self, batch: Batch, x: View<'_>, weight: &Weight, out: View<'_>);

    /// `out = silu(gate) * up` of `gate_up` `[n, 2 mlp]`: `[n, mlp]`.
    fn silu_mul(&self, batch: Batch, gate_up: View<'_>, out: View<'_>);

    /// Norms (where given) and ropes q and k of `qkv` `[n, (q_heads + 2 kv_heads) d]`; q goes to `q` `[n, q_heads d]`,
    /// k and v, rounded to bf16, to `target`.
    fn qkv_append(
        &self,
        layer: usize,
        batch: Batch,
        qkv: View<'_>,
        norms: Option<HeadNorms<'_>>,
        target: KvTarget<'_>,
        q: View<'_>,
    );

    /// Draws a token for every target from `logits` `[n, vocab]`; writes `token[lane]` and the step's output. A lane
    /// with a mask chooses among its tokens, as if the others' logits were minus infinity; log-probabilities and the
    /// most likely tokens are those without the mask.
    fn sample(&self, logits: View<'_>, target: SampleTarget<'_>);

    // Prefill.

    /// What `logits` `[n, vocab]` say of the `n` tokens that came: each one's log-probability (nothing added, nothing
    /// masked) and rank, and the `top` most likely tokens. A ticket brings back the scores of no more tokens than a
    /// sequence can have.
    fn score_tokens(&self, logits: View<'_>, targets: &[TokenId], top: usize);

    /// Causal attention of queries at positions `first..first + n` over staged tokens `0..first + n`:
    /// `[n, q_heads d]` to `[n, q_heads d]`. Keys are blocked at absolute multiples of 128.
    fn prefill_attend(&self, staging: &Buffer, first: usize, n: usize, q: View<'_>, out: View<'_>);

    /// Copies staged tokens `tokens` of a layer into their rows.
    fn scatter_layer(&self, staging: &Buffer, layer: usize, tokens: Range<usize>, kv_rows: &[RowId]);

    /// Copies tokens `tokens` of a layer from their rows into staging.
    fn gather_layer(&self, staging: &Buffer, layer: usize, tokens: Range<usize>, kv_rows: &[RowId]);

    // Attend, over the active lanes of one algorithm.

    /// Puts made-up pages in the place of those that `topk` chose, `overlap` of which stay from one step to the next:
    /// for measurements with random weights, whose own choice means nothing ([`crate::made_up`]).
    fn made_up_selection(&self, algorithm: AlgorithmId, layer: usize, overlap: f32);

    /// Finds a slot for every selected page that is at home in host memory (`kv::bucketed_lru::resolve`): rewrites its
    /// entry in the page list, and lists what has to be fetched. Lanes without cache rows are passed over.
    fn resolve(&self, algorithm: AlgorithmId, layer: usize);

    /// Fetches what `resolve` listed: `attend` behind it finds the pages there.
    fn retrieve(&self, algorithm: AlgorithmId, layer: usize);

    /// Exact attention of q `[n, q_heads d]` over each lane's list, split every 64 pages, merged ascending.
    fn attend(&self, algorithm: AlgorithmId, layer: usize, source: PageSource, q: View<'_>, out: &Partial);

    /// Approximate attention over the candidates that `topk` did not select. Reads no page: it may run while pages are
    /// fetched.
    fn estimate(&self, algorithm: AlgorithmId, layer: usize, source: EstimateSource<'_>, q: View<'_>, out: &Partial);

    /// `into = into (+) other` by log-sum-exp; an empty side returns the other bit for bit.
    fn merge(&self, algorithm: AlgorithmId, into: &Partial, other: &Partial);

    /// Adds the share of dense attention that `exact` holds to each lane's measured mass.
    fn attention_mass(&self, algorithm: AlgorithmId, layer: usize, q: View<'_>, exact: &Partial);

    // Index.

    /// Mean key (and value sum) of every page of the units, from bf16 K and V.
    fn pool_mean(&self, algorithm: AlgorithmId, layer: usize, units: IndexUnits<'_>, form: VectorSummary);

    /// 2-bit codes and statistics of every 48-token group of the units (sketch frame layout).
    fn rotate_code(&self, algorithm: AlgorithmId, layer: usize, units: IndexUnits<'_>, rotations: Rotations<'_>);

    // Select: score, reduce over the group, choose. Lanes that attend every token exactly (`Selected::AllExact`) are
    // not scored.

    /// Scaled logit of every query head against every indexed page's mean key, into the page scores.
    fn score_dot(&self, algorithm: AlgorithmId, layer: usize, q: View<'_>, form: VectorSummary);

    /// Scaled logit of every query head against every coded token (int8 query, 2-bit codes), kept for `estimate`;
    /// their log-sum-exp over each page, into the page scores.
    fn score_codes(&self, algorithm: AlgorithmId, layer: usize, q: View<'_>, key_rotation: &Weight);

    /// Page scores per query head to one per KV head: logarithm of the softmax over the candidates (the same order as
    /// the softmax, and no underflow), then the group's maximum.
    fn group_reduce(&self, algorithm: AlgorithmId);

    /// Chooses `k` candidates (score descending, page ascending) per KV head; writes the page list, ascending, with
    /// the exact pages around them, and the bitmap of selected pages. Of a page at home in host memory the entry's row
    /// is the number of that home, until `resolve` puts a slot in its place.
    fn topk(&self, algorithm: AlgorithmId);
}

/// What tests read and write; never called by the engine.
pub trait Inspect {
    /// A buffer's elements in f32.
    fn read(&self, buffer: &Buffer) -> Vec<f32>;

    /// Overwrites a buffer's elements.
    fn write(&self, buffer: &Buffer, elements: &[f32]);

    /// The bytes of one frame.
    fn read_frame(&self, row: RowId, layer: usize, head: usize) -> Vec<u8>;

    /// Overwrites one frame.
    fn write_frame(&self, row: RowId, layer: usize, head: usize, bytes: &[u8]);

    /// What the frames of a lane's cache rows hold, slot by slot.
    fn read_tags(&self, lane: LaneId, layer: usize, head: usize) -> Vec<kv::bucketed_lru::Tag>;

    /// The page list of an active lane and KV head, as `topk` left it, or `resolve`.
    fn read_page_list(&self, lane: LaneId, head: usize) -> Vec<kv::PageEntry>;

    /// Page scores of an active lane: per query head after scoring `[q_heads][pages]`, or per KV head after
    /// `group_reduce` `[kv_heads][pages]`.
    fn read_page_scores(&self, lane: LaneId, reduced: bool) -> Vec<f32>;

    /// Token logits that `score_codes` left for a lane: `[q_heads][indexed tokens]`.
    fn read_token_logits(&self, lane: LaneId) -> Vec<f32>;
}
