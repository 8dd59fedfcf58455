//! What the host gives a step and gets back: plain data.

use kv::{LaneId, RowId, Selection, TokenId};

/// The number under which an algorithm's lanes are known to the ops; its meaning is the `sparse` crate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlgorithmId(pub u8);

/// The algorithms present in a step, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AlgorithmSet(pub u32);

impl AlgorithmSet {
    /// With `algorithm` added.
    #[must_use]
    pub fn with(self, algorithm: AlgorithmId) -> Self {
        AlgorithmSet(self.0 | 1 << algorithm.0)
    }

    /// Whether `algorithm` is present.
    pub fn contains(self, algorithm: AlgorithmId) -> bool {
        self.0 >> algorithm.0 & 1 == 1
    }
}

/// What a captured step depends on; a CUDA backend keeps one graph per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    /// Lanes that the step is sized for; at least the active ones.
    pub bucket: usize,
    /// Algorithms whose ops are recorded.
    pub algorithms: AlgorithmSet,
    /// Whether `attention_mass` ops are recorded.
    pub measure_mass: bool,
}

/// What changes between two steps. Bounded by the lanes: at most one row of each table a lane and step.
#[derive(Clone, Debug, Default)]
pub struct StepInput {
    /// Lanes that decode, ascending; lane `active[i]` uses row `i` of the step's buffers.
    pub active: Vec<LaneId>,
    /// Rows that join lanes' tables before the step reads them.
    pub rows: Vec<RowDelta>,
    /// Output tokens that are given instead of chosen (evaluation, constrained decoding).
    pub forced: Vec<(LaneId, TokenId)>,
}

/// A row that joins a lane's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowDelta {
    /// Whose table.
    pub lane: LaneId,
    /// Which of its tables.
    pub table: RowTableKind,
    /// Position in the table.
    pub index: usize,
    /// The row.
    pub row: RowId,
}

/// A lane's row tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowTableKind {
    /// Row `i` holds logical page `i`.
    Kv,
    /// Row `i` holds the algorithm's `i`-th summary row.
    Summary,
}

/// A whole row copied inside the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCopy {
    /// Read.
    pub source: RowId,
    /// Written.
    pub target: RowId,
}

/// How a lane's tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 chooses the most likely token.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens that hold this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this share as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens seen in prompt or completion; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens seen in the completion.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the completion.
    pub frequency_penalty: f32,
    /// Added to single logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Tokens that may not be chosen before the completion has `min_tokens` tokens.
    pub suppressed: Vec<TokenId>,
    /// See `suppressed`.
    pub min_tokens: usize,
    /// Noise seed.
    pub seed: u64,
    /// Which of the request's choices this is: part of the noise counter.
    pub choice: u32,
    /// How many most likely tokens are reported with their log-probabilities.
    pub top_logprobs: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            suppressed: Vec::new(),
            min_tokens: 0,
            seed: 0,
            choice: 0,
            top_logprobs: 0,
        }
    }
}

/// Everything a lane starts with. Sent once, when a sequence begins to decode, outside any captured step.
#[derive(Clone, Debug)]
pub struct LaneStart {
    /// Which lane.
    pub lane: LaneId,
    /// Whose ops serve it.
    pub algorithm: AlgorithmId,
    /// Which pages its steps select.
    pub selection: Selection,
    /// Tokens whose K and V are in rows.
    pub len: usize,
    /// Input of the first step; `None` where `sample` writes it (the end of a prefill).
    pub token: Option<TokenId>,
    /// KV row table, page by page.
    pub kv_rows: Vec<RowId>,
    /// Summary row table.
    pub summary_rows: Vec<RowId>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The prompt's tokens, for the repetition penalty; may stay empty where it is 1.
    pub prompt: Vec<TokenId>,
}

/// A launched step; `collect` takes it back.
#[derive(Debug)]
#[must_use = "a launched step is collected exactly once"]
pub struct Ticket(pub u64);

/// What a step produced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One entry per active lane, in the order of `StepInput::active`.
    pub lanes: Vec<LaneOutput>,
}

/// One lane's token.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneOutput {
    /// Whose.
    pub lane: LaneId,
    /// Chosen, or forced.
    pub token: TokenId,
    /// Its log-probability under the model (temperature and filters aside, penalties and bias included).
    pub logprob: f32,
    /// The most likely tokens, most likely first, ties to the lowest id; `Sampling::top_logprobs` of them.
    pub top: Vec<(TokenId, f32)>,
    /// Tokens that the step attended exactly.
    pub exact_tokens: usize,
    /// Share of dense attention that the exact tokens hold, mean over layers and query heads; where measured.
    pub attention_mass: Option<f32>,
}
