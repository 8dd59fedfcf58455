//! What the engine asks of a model: each call records ops for a part of a prompt or for one decode step, and decides
//! nothing. The engine decides which part runs when; the model knows which ops that takes.
//!
//! The caller guarantees: every layer of a pass is prefilled once, in ascending token ranges that touch each other,
//! layer after layer; with a prefix, a layer's gather comes before its first range; its scatter comes after its last
//! range and before the next layer's scatter. All calls happen inside `Runtime::enqueue` or `Runtime::launch`.

use backend::{AlgorithmId, Runtime, StepKey};
use kv::{LaneId, RowId, TokenId};
use std::ops::Range;

/// A part of a prompt that passes the model layer by layer.
///
/// ```text
/// positions  0            first          first + tokens.len()
///            |-- in rows --|--- this pass ---|-- later passes --
///            (gathered)      (scattered)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PassView<'a> {
    /// Which pass buffers (hidden states, staging) are this pass's; below [`PASSES_MAX`].
    pub slot: usize,
    /// The pass's tokens.
    pub tokens: &'a [TokenId],
    /// Position of the first of them; that many tokens are in rows already.
    pub first: usize,
    /// Whether the pass ends its prompt: then its last token goes through the whole of the last layer.
    pub last_pass: bool,
    /// The sequence's KV row table, long enough for the pass.
    pub kv_rows: &'a [RowId],
    /// Where the prompt's tokens are scored; `None` where nobody asks.
    pub score: Option<ScoreView<'a>>,
}

/// What a pass is to say of the tokens behind its own.
#[derive(Clone, Copy, Debug)]
pub struct ScoreView<'a> {
    /// The token behind each of the pass's tokens; one fewer where the prompt ends with the pass.
    pub targets: &'a [TokenId],
    /// How many most likely tokens are reported with each.
    pub top: usize,
}

/// Passes that may be open at once: a long prompt and a short one that overtakes it.
pub const PASSES_MAX: usize = 2;

/// A model as the engine sees it.
pub trait Forward: Send + Sync {
    /// Decoder layers.
    fn layers(&self) -> usize;

    /// One layer for the pass's tokens at positions `tokens`: norm, QKV into staging, attention, MLP. Layer 0 embeds
    /// first. The last layer stops at K and V, but for the prompt's last token; of a pass that is scored every token
    /// goes on to its logits, and `score_tokens` sees each that has a target.
    fn prefill_layer(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize, tokens: Range<usize>);

    /// K and V of positions `0..pass.first` of a layer, from rows to staging.
    fn prefill_gather(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize);

    /// K and V of the pass's tokens of a layer, from staging to rows.
    fn prefill_scatter(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize);

    /// Index of positions `tokens` (whole Index units) of a layer, from rows.
    fn prefill_index(
        &self,
        runtime: &dyn Runtime,
        algorithm: AlgorithmId,
        layer: usize,
        kv_rows: &[RowId],
        summary_rows: &[RowId],
        tokens: (usize, usize),
    );

    /// The last token's hidden state to logits, and a token drawn from them for every lane.
    fn prefill_sample(&self, runtime: &dyn Runtime, pass: &PassView<'_>, lanes: &[LaneId]);

    /// Every op of a decode step over the active lanes.
    fn decode(&self, runtime: &dyn Runtime, key: StepKey);
}
