//! One sequence, as the scheduler sees it: where it is in its life, its tokens, its rows and its lane.

use crate::RequestId;
use crate::constraint::Constrained;
use crate::prefill::Prefill;
use crate::scheduler::Span;
use backend::{Retrieved, TokenScore};
use kv::{LaneId, SequenceId, SequenceKv, TokenId};

/// A token stream being generated, or kept for forks.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Its number.
    pub(crate) id: SequenceId,
    /// Whose.
    pub(crate) request: RequestId,
    /// Which of the request's completions.
    pub(crate) choice: u32,
    /// Prompt (the parent's tokens included), then outputs; grows when outputs are committed.
    pub(crate) tokens: Vec<TokenId>,
    /// How many of them are the prompt.
    pub(crate) prompt_tokens: usize,
    /// How many of those had K and V when it was admitted: its parent's, or the prefix cache's.
    pub(crate) cached_tokens: usize,
    /// What the model says of the prompt's tokens behind the first, where that is asked for; grows by `commit`, taken
    /// when the prompt ends.
    pub(crate) scores: Vec<TokenScore>,
    /// Its rows.
    pub(crate) kv: SequenceKv,
    /// From admission to its end; `None` where it does not decode.
    pub(crate) lane: Option<LaneId>,
    /// What its tokens must follow; until its end.
    pub(crate) constraint: Option<Constrained>,
    /// Whether rows are promised to it only for a while, and not to its end: it is extended as it grows, and may be
    /// parked in host memory.
    pub(crate) open: bool,
    /// Where it is.
    pub(crate) phase: Phase,
}

/// The states between admission and end.
///
/// ```text
/// admit -> Prefilling -> Running -> (finish, abort)
///       -> Following ----^     \--> Held -> (release)
/// ```
#[derive(Debug)]
pub(crate) enum Phase {
    /// Its prompt is being prefilled.
    Prefilling(Box<Prefill>),
    /// A further choice; its start is the end of the first choice's prefill.
    Following,
    /// It decodes.
    Running(Running),
    /// It is finished and keeps its rows.
    Held,
}

/// Counters of a running sequence, in outputs: what a step produces for it.
///
/// ```text
/// outputs   0        silent                committed      planned        outputs_max
///           |- prompt -|------ completion ------|- in flight -|- to come -|
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Running {
    /// Outputs that are tokens of the prompt, fed by decode steps.
    pub(crate) silent: usize,
    /// Outputs whose steps are collected.
    pub(crate) committed: usize,
    /// Outputs whose steps are planned.
    pub(crate) planned: usize,
    /// Outputs at the end.
    pub(crate) outputs_max: usize,
    /// Decode steps collected for it, and from the first one's start to the last one's end; grows by `count_step`.
    pub(crate) decoded: Option<(usize, Span)>,
    /// What became of the pages that its steps selected in host memory.
    pub(crate) retrieved: Retrieved,
    /// Sum and number of measured attention masses.
    pub(crate) mass: (f64, usize),
}

impl Running {
    /// A decode step was collected for it.
    pub(crate) fn count_step(&mut self, step: Span) {
        let (steps, first) = self.decoded.unwrap_or((0, step));
        self.decoded = Some((steps + 1, Span { began: first.began, ended: step.ended }));
    }
}

impl Sequence {
    /// Its prefill, while it lasts.
    pub(crate) fn prefill(&self) -> Option<&Prefill> {
        match &self.phase {
            Phase::Prefilling(prefill) => Some(prefill),
            _ => None,
        }
    }

    /// Its counters, while it decodes.
    pub(crate) fn running(&self) -> Option<&Running> {
        match &self.phase {
            Phase::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Its counters, for a change.
    pub(crate) fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.phase {
            Phase::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Tokens generated.
    pub(crate) fn completion_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }
}
