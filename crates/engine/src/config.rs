//! What an engine is sized for: resolved once by the caller, immutable from then on.

use crate::CostModel;
use kv::Geometry;

/// Requests' messages that may wait for the engine's thread; a sender beyond that gets `QueueFull`.
pub const MESSAGES_MAX: usize = 1024;

/// Events that may wait for a request's reader; a reader that lets them fill is aborted as too slow.
pub const EVENTS_MAX: usize = 2048;

/// Most likely tokens that a request may ask for with each token of its prompt.
pub const PROMPT_LOGPROBS_MAX: usize = 20;

/// The most of a second that decode may claim while prompts wait.
pub const DECODE_SHARE_MAX: f64 = 0.95;

/// Everything the scheduler's decisions depend on beside the requests.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Rows of the pool.
    pub pool_rows: usize,
    /// Rows of host memory behind the pool, when all of it is there; 0 keeps every page in the pool.
    pub dram_rows: usize,
    /// Bytes of one row, for messages and metrics.
    pub row_bytes: u64,
    /// Sequences that decode at once.
    pub max_lanes: usize,
    /// Requests that may wait for rows or lanes.
    pub max_queue: usize,
    /// Longest sequence, prompt and completion together, in tokens.
    pub max_model_len: usize,
    /// Tokens that the model knows: ids are `0..vocab`.
    pub vocab: usize,
    /// Tokens of one pass: a longer prompt takes several, one after the other.
    pub prefill_tokens: usize,
    /// Share of the time that decode gets while prompts are prefilled, 0 to [`DECODE_SHARE_MAX`].
    pub decode_share: f64,
    /// Whether prompts that were read stay for prompts that begin alike, until others need their rows.
    pub prefix_cache: bool,
    /// Tokens that a completion gets rows for at a time, where host memory has room to park its sequence.
    pub horizon_tokens: usize,
    /// Seconds that a prefill unit should take: 0.050 on a CPU, 0.010 on a GPU.
    pub unit_seconds: f64,
    /// First guess of what prefill costs; corrected from what is measured.
    pub cost: CostModel,
}

impl EngineConfig {
    /// The defaults for a CPU.
    pub fn new(pool_rows: usize, row_bytes: u64, max_model_len: usize, vocab: usize) -> Self {
        EngineConfig {
            pool_rows,
            dram_rows: 0,
            row_bytes,
            max_lanes: 64,
            max_queue: 256,
            max_model_len,
            vocab,
            prefill_tokens: 32_768,
            decode_share: 0.5,
            prefix_cache: true,
            horizon_tokens: 256,
            unit_seconds: 0.050,
            cost: CostModel::default(),
        }
    }

    /// Panics on a value that its field's description excludes: the caller validates what people typed.
    pub(crate) fn check(&self) {
        assert!(
            0 < self.max_lanes && 0 < self.max_model_len && 0 < self.prefill_tokens && 0 < self.horizon_tokens,
            "sizes are positive"
        );
        assert!((0.0..=DECODE_SHARE_MAX).contains(&self.decode_share), "decode_share {} of 0..0.95", self.decode_share);
        assert!(0.0 < self.unit_seconds, "unit_seconds is positive");
    }
}

/// Rows of a pool of `kv_memory` bytes; at most what a page entry can name.
pub fn pool_rows(kv_memory: u64, geometry: &Geometry) -> usize {
    let rows = kv_memory / geometry.row_bytes() as u64;
    usize::try_from(rows.min(1 << 26)).expect("2^26 rows fit a usize")
}
