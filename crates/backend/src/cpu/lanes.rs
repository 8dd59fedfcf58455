//! Per-lane state: what a CUDA backend keeps in device arrays.

use crate::{
    AlgorithmId, FirstInput, HomeDelta, LaneOutput, LaneStart, Retrieved, RowDelta, RowTableKind, Sampling, StepInput,
    TokenMask, TokenScore,
};
use kv::{LaneId, RowId, Selection, TokenId};

/// One running sequence as the ops see it.
pub struct Lane {
    /// Whose ops serve it.
    pub algorithm: AlgorithmId,
    /// Which pages its steps select.
    pub selection: Selection,
    /// Tokens with K and V in rows; during a step the current one included.
    pub len: usize,
    /// Last token: the next step's input.
    pub token: TokenId,
    /// Overrides the step's sampled token; set by `begin`, taken by `sample`.
    pub forced: Option<TokenId>,
    /// Tokens that `sample` may choose; set by `start` and `begin`, taken by `sample`.
    pub mask: Option<TokenMask>,
    /// KV row table.
    pub kv_rows: Vec<RowId>,
    /// Summary row table.
    pub summary_rows: Vec<RowId>,
    /// Slots for pages at home in host memory; none of a fully resident sequence.
    pub cache_rows: Vec<RowId>,
    /// What became of the selected ones of them in the step in work.
    pub retrieved: Retrieved,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Occurrences in the completion, by token id; empty where no penalty needs them.
    pub counts: Vec<u32>,
    /// Whether the prompt has the token; empty where no penalty needs it.
    pub in_prompt: Vec<bool>,
    /// Tokens of the completion so far; grows by `emit`.
    pub generated: usize,
    /// Outputs to come that are tokens of the prompt; shrinks by `emit`.
    pub prompt_outputs: usize,
    /// Sum of measured attention mass over the step's layers and query heads, and how many were added.
    pub mass: (f64, usize),
}

impl Lane {
    /// An output: the next step's input, and a token of the completion once the prompt has ended.
    pub fn emit(&mut self, token: TokenId) {
        self.token = token;
        if 0 < self.prompt_outputs {
            self.prompt_outputs -= 1;
            return;
        }
        self.generated += 1;
        if let Some(count) = self.counts.get_mut(token as usize) {
            *count += 1;
        }
    }
}

/// All lanes and the step in work.
pub struct Lanes {
    lanes: Vec<Option<Lane>>,
    /// Lanes of the step in work, ascending: row `i` of its buffers is lane `active[i]`.
    pub active: Vec<LaneId>,
    /// What `sample` produced in the step in work.
    pub output: Vec<LaneOutput>,
    /// What it produced at the ends of prefills that are not collected yet.
    pub prefilled: Vec<LaneOutput>,
    /// What `score_tokens` produced that is not collected yet.
    pub scores: Vec<TokenScore>,
}

impl Lanes {
    /// `count` empty lanes.
    pub fn new(count: usize) -> Self {
        Lanes {
            lanes: (0..count).map(|_| None).collect(),
            active: Vec::new(),
            output: Vec::new(),
            prefilled: Vec::new(),
            scores: Vec::new(),
        }
    }

    /// See `Runtime::start_lane`.
    pub fn start(&mut self, start: &LaneStart, vocab: usize) {
        let s = &start.sampling;
        let penalised = s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0;
        let mut in_prompt = if penalised { vec![false; vocab] } else { Vec::new() };
        for token in start.prompt.iter().filter(|_| penalised) {
            in_prompt[*token as usize] = true;
        }
        let mut lane = Lane {
            algorithm: start.algorithm,
            selection: start.selection,
            len: start.len,
            token: 0,
            forced: None,
            mask: start.mask.clone(),
            kv_rows: start.kv_rows.clone(),
            summary_rows: start.summary_rows.clone(),
            cache_rows: start.cache_rows.clone(),
            retrieved: Retrieved::default(),
            sampling: start.sampling.clone(),
            counts: if penalised { vec![0; vocab] } else { Vec::new() },
            in_prompt,
            generated: 0,
            prompt_outputs: 0,
            mass: (0.0, 0),
        };
        match start.first {
            FirstInput::Sampled => {}
            FirstInput::Given(token) => lane.emit(token),
            FirstInput::Prompt { token, outputs } => (lane.token, lane.prompt_outputs) = (token, outputs),
        }
        self.lanes[start.lane.at()] = Some(lane);
    }

    /// Applies a step's input: rows join tables, forced tokens are noted, every active lane grows by one token.
    pub fn begin(&mut self, input: &StepInput) {
        assert!(input.active.is_sorted_by(|a, b| a < b), "active lanes ascend: {:?}", input.active);
        for RowDelta { lane, table, index, row } in &input.rows {
            let lane = self.lane_mut(*lane);
            let rows = match table {
                RowTableKind::Kv => &mut lane.kv_rows,
                RowTableKind::Summary => &mut lane.summary_rows,
            };
            assert_eq!(*index, rows.len(), "rows join a table at its end");
            rows.push(*row);
        }
        for HomeDelta { lane, page, row } in &input.moves {
            self.lane_mut(*lane).kv_rows[*page] = *row;
        }
        for (lane, token) in &input.forced {
            self.lane_mut(*lane).forced = Some(*token);
        }
        for (lane, mask) in &input.masks {
            self.lane_mut(*lane).mask = Some(mask.clone());
        }
        for lane in &input.active {
            let lane = self.lane_mut(*lane);
            lane.len += 1;
            lane.mass = (0.0, 0);
            lane.retrieved = Retrieved::default();
        }
        self.active.clone_from(&input.active);
        self.output.clear();
    }

    /// A started lane.
    pub fn lane(&self, lane: LaneId) -> &Lane {
        self.lanes[lane.at()].as_ref().expect("a lane is started before it is used")
    }

    /// A started lane, to change.
    pub fn lane_mut(&mut self, lane: LaneId) -> &mut Lane {
        self.lanes[lane.at()].as_mut().expect("a lane is started before it is used")
    }

    /// `(i, lane)` for the active lanes of an algorithm: `i` is the lane's row in the step's buffers.
    pub fn of(&self, algorithm: AlgorithmId) -> Vec<(usize, &Lane)> {
        let lanes = self.active.iter().enumerate().map(|(i, lane)| (i, self.lane(*lane)));
        lanes.filter(|(_, lane)| lane.algorithm == algorithm).collect()
    }

    /// The buffer row of an active lane.
    pub fn position_of(&self, lane: LaneId) -> usize {
        self.active.binary_search(&lane).expect("the lane is active")
    }
}
