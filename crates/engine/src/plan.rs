//! What the scheduler decided for one step: plain data that a test can read and a simulator can replay.

use crate::RequestId;
use crate::cost::Work;
use backend::{AlgorithmId, CacheChange, LaneStart, RowCopy, StepInput, StepKey};
use kv::{LaneId, SequenceId, SummaryKey, TokenId};
use std::fmt;
use std::ops::Range;

/// One step: a prefill unit (maybe none), then a decode step (maybe none).
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The step's number, from 1.
    pub step: u64,
    /// The prefill unit's pieces, in the order in which they run.
    pub pieces: Vec<Piece>,
    /// The decode step.
    pub decode: Option<DecodePlan>,
    /// Prompts that end with this step's pieces.
    pub ends: Vec<PrefillEnd>,
    /// Requests that left the queue since the last plan.
    pub admitted: Vec<RequestId>,
    /// What the pieces consist of.
    pub work: Work,
    /// What the pieces should take.
    pub unit_seconds: f64,
}

/// A part of one sequence's prefill.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Whose prefill.
    pub sequence: SequenceId,
    /// What happens.
    pub act: Act,
}

/// What a piece does.
#[derive(Clone, Debug)]
pub enum Act {
    /// Rows copied before anything reads them: a fork's incomplete rows, and pages that change their tier.
    Copy(Vec<RowCopy>),
    /// The sequence's lane gets other cache rows.
    Cache(Box<CacheChange>),
    /// K and V of the prefix, from rows to staging.
    Gather {
        /// The pass.
        pass: Pass,
        /// The layer.
        layer: usize,
    },
    /// A layer for positions `tokens`.
    Layer {
        /// The pass.
        pass: Pass,
        /// The layer.
        layer: usize,
        /// The positions.
        tokens: Range<usize>,
        /// How many of them are scored.
        scored: usize,
    },
    /// K and V of the pass, from staging to rows.
    Scatter {
        /// The pass.
        pass: Pass,
        /// The layer.
        layer: usize,
    },
    /// Summaries of positions `tokens` of a layer.
    Index {
        /// Whose rows: the sequence, or the parent it forks from.
        owner: SequenceId,
        /// Which algorithm's.
        algorithm: AlgorithmId,
        /// Which of the owner's summary tables.
        key: SummaryKey,
        /// The layer.
        layer: usize,
        /// The positions, whole Index units.
        tokens: Range<usize>,
    },
    /// The sequence gets to its lane.
    Start(Box<LaneStart>),
    /// The prompt's last token is turned into a first token for each lane.
    Sample {
        /// The pass.
        pass: Pass,
        /// The choices' lanes, in their order.
        lanes: Vec<LaneId>,
    },
}

/// A part of a prompt that goes through all layers, as `PassView` shows it to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Which pass buffers.
    pub slot: usize,
    /// Position of its first token.
    pub first: usize,
    /// One past its last position.
    pub end: usize,
    /// Whether the prompt ends with it.
    pub last: bool,
    /// Whether the prompt's tokens are scored, with so many most likely ones each.
    pub scores: Option<usize>,
}

/// How a prompt ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefillEnd {
    /// A first token is drawn for each of these sequences, in this order.
    Sampled(Vec<SequenceId>),
    /// The first token is given.
    Given(Vec<SequenceId>, TokenId),
    /// It decodes from a token that is part of the prompt.
    Fed,
    /// Nothing follows.
    Done(Vec<SequenceId>),
}

impl PrefillEnd {
    /// The request's choices, the one that was prefilled first; none where the prompt goes on in decode steps.
    pub fn sequences(&self) -> &[SequenceId] {
        match self {
            PrefillEnd::Sampled(sequences) | PrefillEnd::Given(sequences, _) | PrefillEnd::Done(sequences) => sequences,
            PrefillEnd::Fed => &[],
        }
    }
}

/// The decode step.
#[derive(Clone, Debug)]
pub struct DecodePlan {
    /// The sequences, in the order of their lanes.
    pub sequences: Vec<SequenceId>,
    /// What its graph depends on.
    pub key: StepKey,
    /// Pages that leave the pool before the step; added by `Scheduler::reserve`.
    pub copies: Vec<RowCopy>,
    /// What the backend gets; rows are added by `Scheduler::reserve`.
    pub input: StepInput,
    /// What it should take.
    pub seconds: f64,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.pieces.is_empty() && self.decode.is_none() && self.ends.is_empty()
    }

    /// Whether first tokens are drawn for a prompt that ends.
    pub fn samples(&self) -> bool {
        self.ends.iter().any(|end| matches!(end, PrefillEnd::Sampled(_)))
    }

    /// Whether the unit gives something to collect: first tokens or scores.
    pub fn has_prefill_output(&self) -> bool {
        let scores = |piece: &Piece| matches!(piece.act, Act::Layer { scored, .. } if 0 < scored);
        self.samples() || self.pieces.iter().any(scores)
    }

    /// Drops its masks: they were read when the step ran.
    pub(crate) fn let_masks_go(&mut self) {
        self.decode.iter_mut().for_each(|decode| decode.input.masks.clear());
        for piece in &mut self.pieces {
            if let Act::Start(start) = &mut piece.act {
                start.mask = None;
            }
        }
    }

    /// What the decode step should take; `None` without one.
    pub fn decode_seconds(&self) -> Option<f64> {
        self.decode.as_ref().map(|decode| decode.seconds)
    }

    /// The shares of the unit and of the decode step in what the step should take.
    pub fn predicted_shares(&self) -> (f64, f64) {
        let decode = self.decode_seconds().unwrap_or(0.0);
        let total = (self.unit_seconds + decode).max(f64::MIN_POSITIVE);
        (self.unit_seconds / total, decode / total)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}:", self.step)?;
        let mut of = None;
        for piece in &self.pieces {
            if of != Some(piece.sequence) {
                write!(f, "  {}", piece.sequence)?;
                of = Some(piece.sequence);
            }
            write!(f, " {}", piece.act)?;
        }
        for (sequence, lane) in self.decode.iter().flat_map(|decode| decode.sequences.iter().zip(&decode.input.active))
        {
            write!(f, "  {sequence} +1")?;
            let forced = self.decode.iter().flat_map(|decode| &decode.input.forced);
            for (_, token) in forced.filter(|(of, _)| of == lane) {
                write!(f, "={token}")?;
            }
        }
        if self.is_idle() { write!(f, "  idle") } else { Ok(()) }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Copy(copies) => write!(f, "copy {}", copies.len()),
            Act::Cache(change) => {
                write!(f, "cache {} +{}", change.keep, change.join.len())?;
                if change.moves.is_empty() { Ok(()) } else { write!(f, " left {}", change.moves.len()) }
            }
            Act::Gather { pass, layer } => write!(f, "gather {layer} [0..{})", pass.first),
            Act::Layer { layer, tokens, scored, .. } => {
                write!(f, "layer {layer} [{}..{})", tokens.start, tokens.end)?;
                if 0 < *scored { write!(f, " score {scored}") } else { Ok(()) }
            }
            Act::Scatter { layer, .. } => write!(f, "scatter {layer}"),
            Act::Index { owner, layer, tokens, .. } => {
                write!(f, "index {owner} layer {layer} [{}..{})", tokens.start, tokens.end)
            }
            Act::Start(start) => write!(f, "start {}", start.lane),
            Act::Sample { lanes, .. } => write!(f, "sample {}", lanes.len()),
        }
    }
}
