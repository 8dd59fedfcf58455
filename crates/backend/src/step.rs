//! What the host gives a step and gets back: plain data.

use crate::TokenMask;
use kv::{LaneId, RowId, Selection, TokenId};
use std::ops::RangeInclusive;

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
    /// Whether `resolve` and `retrieve` ops are recorded: a step of fully resident lanes has none.
    pub retrieves: bool,
}

/// What changes between two steps. Bounded by the lanes: at most one row of each table a lane and step.
#[derive(Clone, Debug, Default)]
pub struct StepInput {
    /// Lanes that decode, ascending; lane `active[i]` uses row `i` of the step's buffers.
    pub active: Vec<LaneId>,
    /// Rows that join lanes' tables before the step reads them.
    pub rows: Vec<RowDelta>,
    /// Pages that are at home in another row from this step on; their bytes are there already.
    pub moves: Vec<HomeDelta>,
    /// Output tokens that are given instead of chosen (evaluation, constrained decoding).
    pub forced: Vec<(LaneId, TokenId)>,
    /// Tokens that lanes may choose in this step, none of them empty; a lane without a mask may choose any, and a
    /// forced token needs no leave. At most one a lane.
    pub masks: Vec<(LaneId, TokenMask)>,
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

/// A page of a lane that is at home in another row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeDelta {
    /// Whose page.
    pub lane: LaneId,
    /// Position in its KV row table.
    pub page: usize,
    /// The row.
    pub row: RowId,
}

/// A lane gets other homes or cache rows between two steps. Slot `j` is the frame of cache row `j`, for every layer and
/// KV head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheChange {
    /// Whose cache.
    pub lane: LaneId,
    /// Pages that are at home in another row from now on; their bytes are there already.
    pub moves: Vec<(usize, RowId)>,
    /// Summary rows that are elsewhere from now on; their bytes are there already.
    pub summary_moves: Vec<(usize, RowId)>,
    /// Slots that stay, from the first on. The youngest pages of each layer and head stay, which may have to move for
    /// it (`kv::bucketed_lru::shrink`).
    pub keep: usize,
    /// Rows that become slots behind them, with the page that each holds for every layer and head, if any.
    pub join: Vec<(RowId, Option<usize>)>,
}

impl CacheChange {
    /// Nothing moves, and no slot stays.
    pub fn of(lane: LaneId) -> Self {
        CacheChange { lane, moves: Vec::new(), summary_moves: Vec::new(), keep: 0, join: Vec::new() }
    }
}

/// A lane's row tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowTableKind {
    /// Row `i` holds logical page `i`.
    Kv,
    /// Row `i` holds the algorithm's `i`-th summary row.
    Summary,
}

/// A whole row copied, inside a tier or from one to another.
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
    /// 0 chooses the most likely token; above it, at least [`TEMPERATURE_LEAST`] is taken.
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
    /// Tokens that may not be chosen before the completion has `min_tokens` tokens; a step whose mask has none but
    /// these is as if they were not suppressed.
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

/// The smallest temperature that is told from 0: below it, scaled logits leave f32's useful range.
pub const TEMPERATURE_LEAST: f32 = 1e-3;

/// The largest temperature.
pub const TEMPERATURE_MOST: f32 = 100.0;

/// The largest presence or frequency penalty, either way.
pub const PENALTY_MOST: f32 = 1e3;

/// The largest bias, either way; a token that may not be chosen is suppressed instead.
pub const BIAS_MOST: f32 = 1e4;

impl Sampling {
    /// Whether `suppressed` tokens may not be chosen by the step that draws the completion's token number `generated`
    /// (from 0) under `mask`: the mask wins where it has no other token, so that a finished text can end.
    pub fn suppresses(&self, generated: usize, mask: Option<&TokenMask>) -> bool {
        generated < self.min_tokens
            && mask.is_none_or(|mask| mask.tokens().any(|token| !self.suppressed.contains(&token)))
    }

    /// Whether `sample` can do with these numbers; token ids and `top_logprobs` are checked against the vocabulary by
    /// whoever knows it.
    ///
    /// # Errors
    /// A number is out of its range, or is none; the text names both.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, x: f32, range: RangeInclusive<f32>| match range.contains(&x) {
            true => Ok(()),
            false => Err(format!("{name} is {x} and must lie between {} and {}", range.start(), range.end())),
        };
        within("temperature", self.temperature, 0.0..=TEMPERATURE_MOST)?;
        if !(0.0 < self.top_p && self.top_p <= 1.0) {
            return Err(format!("top_p is {} and must lie above 0 and at most at 1", self.top_p));
        }
        within("min_p", self.min_p, 0.0..=1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01..=100.0)?;
        within("presence_penalty", self.presence_penalty, -PENALTY_MOST..=PENALTY_MOST)?;
        within("frequency_penalty", self.frequency_penalty, -PENALTY_MOST..=PENALTY_MOST)?;
        let bias =
            |&(token, x): &(TokenId, f32)| within(&format!("the bias of token {token}"), x, -BIAS_MOST..=BIAS_MOST);
        self.logit_bias.iter().try_for_each(bias)
    }
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

/// What a lane's first step reads, and whether it is prompt or completion: penalties tell the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstInput {
    /// What `sample` writes at the end of the prefill.
    Sampled,
    /// The completion's first token, given instead of chosen.
    Given(TokenId),
    /// A token of the prompt, and so are the lane's first `outputs` outputs, which are forced.
    Prompt {
        /// The token.
        token: TokenId,
        /// Outputs that are prompt.
        outputs: usize,
    },
}

impl FirstInput {
    /// The token, where it is known.
    pub fn token(self) -> Option<TokenId> {
        match self {
            FirstInput::Sampled => None,
            FirstInput::Given(token) | FirstInput::Prompt { token, .. } => Some(token),
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
    /// Input of the first step.
    pub first: FirstInput,
    /// KV row table, page by page.
    pub kv_rows: Vec<RowId>,
    /// Summary row table.
    pub summary_rows: Vec<RowId>,
    /// Slots for pages at home in host memory, all empty; none for a fully resident sequence.
    pub cache_rows: Vec<RowId>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The prompt's tokens, for the repetition penalty; may stay empty where it is 1.
    pub prompt: Vec<TokenId>,
    /// Tokens that `sample` may choose at the end of the prefill, not empty; any, where `None` or `first` is known.
    pub mask: Option<TokenMask>,
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
    /// What `sample` with `SampleTarget::Prefill` wrote before the step, in its lanes' order, call by call.
    pub prefilled: Vec<LaneOutput>,
    /// One entry per row of `score_tokens` before the step, in call order.
    pub scores: Vec<TokenScore>,
}

/// What a row of logits says of the token that came.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub token: TokenId,
    /// Its log-probability under the model alone.
    pub logprob: f32,
    /// 1 for the most likely token; equal logits rank by id.
    pub rank: u32,
    /// The most likely tokens, most likely first, ties to the lowest id.
    pub top: Vec<(TokenId, f32)>,
}

/// One lane's token.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneOutput {
    /// Whose.
    pub lane: LaneId,
    /// Chosen, or forced.
    pub token: TokenId,
    /// Its log-probability under the model (temperature, filters and mask aside, penalties and bias included): what a
    /// mask excludes has its share, so the probabilities of the allowed tokens add up to less than 1.
    pub logprob: f32,
    /// The most likely tokens, most likely first, ties to the lowest id; `Sampling::top_logprobs` of them.
    pub top: Vec<(TokenId, f32)>,
    /// Tokens that the step attended exactly.
    pub exact_tokens: usize,
    /// What became of the pages that it selected in host memory.
    pub retrieved: Retrieved,
    /// Share of dense attention that the exact tokens hold, mean over layers and query heads; where measured.
    pub attention_mass: Option<f32>,
}

/// Selected pages of host memory, counted over layers and KV heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retrieved {
    /// Those that a slot held.
    pub hits: u64,
    /// Those that were fetched.
    pub misses: u64,
}

impl std::ops::AddAssign for Retrieved {
    fn add_assign(&mut self, other: Retrieved) {
        self.hits += other.hits;
        self.misses += other.misses;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut Sampling), refused: &str) {
        let mut sampling = Sampling::default();
        change(&mut sampling);
        assert_eq!(sampling.check().err().unwrap_or_default(), refused);
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        check(|_| (), "");
        check(|s| s.temperature = 1e-9, "");
        check(|s| s.temperature = -0.1, "temperature is -0.1 and must lie between 0 and 100");
        check(|s| s.temperature = f32::NAN, "temperature is NaN and must lie between 0 and 100");
        check(|s| s.temperature = f32::INFINITY, "temperature is inf and must lie between 0 and 100");
        check(|s| s.top_p = 0.0, "top_p is 0 and must lie above 0 and at most at 1");
        check(|s| s.top_p = f32::NAN, "top_p is NaN and must lie above 0 and at most at 1");
        check(|s| s.min_p = 1.5, "min_p is 1.5 and must lie between 0 and 1");
        check(|s| s.repetition_penalty = 0.0, "repetition_penalty is 0 and must lie between 0.01 and 100");
        check(|s| s.presence_penalty = 1e4, "presence_penalty is 10000 and must lie between -1000 and 1000");
        check(|s| s.frequency_penalty = f32::NAN, "frequency_penalty is NaN and must lie between -1000 and 1000");
        let bias = "the bias of token 3 is -inf and must lie between -10000 and 10000";
        check(|s| s.logit_bias = vec![(2, 1.0), (3, f32::NEG_INFINITY)], bias);
    }
}
