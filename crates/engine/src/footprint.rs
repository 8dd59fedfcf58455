//! What one sequence has in every tier, and what became of the pages that its steps selected: for people who ask why
//! rows are gone or why steps fetch.

use crate::RequestId;
use crate::sequence::{Phase, Sequence};
use backend::Retrieved;
use kv::{HeldRows, Presence, Residence, SequenceId};

/// A sequence's rows, as of the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Its number.
    pub sequence: SequenceId,
    /// Whose it is.
    pub request: RequestId,
    /// Which of the request's completions.
    pub choice: u32,
    /// Where it is in its life.
    pub stage: Stage,
    /// Tokens with K and V in rows.
    pub tokens: usize,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Where the pages behind the sink and before the window are at home.
    pub residence: Residence,
    /// Rows by kind; shared ones count for everybody who has them.
    pub rows: HeldRows,
    /// Pages that its next step selects.
    pub selected_pages: usize,
    /// What became of those that its steps selected in host memory, over layers and KV heads.
    pub retrieved: Retrieved,
}

/// The states between admission and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its prompt is read.
    Prefilling,
    /// It waits for the first choice's prompt.
    Following,
    /// It decodes.
    Running,
    /// It is in host memory, or on its way there or back, and goes on when there is room.
    Parked,
    /// It is finished and keeps its rows.
    Held,
}

impl Stage {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Prefilling => "prefilling",
            Stage::Following => "following",
            Stage::Running => "running",
            Stage::Parked => "parked",
            Stage::Held => "held",
        }
    }
}

impl Footprint {
    pub(crate) fn of(sequence: &Sequence) -> Self {
        let kv = &sequence.kv;
        let stage = match sequence.phase {
            Phase::Prefilling(_) => Stage::Prefilling,
            Phase::Following => Stage::Following,
            Phase::Running(_) if kv.presence() != Presence::Here => Stage::Parked,
            Phase::Running(_) => Stage::Running,
            Phase::Held => Stage::Held,
        };
        Footprint {
            sequence: sequence.id,
            request: sequence.request,
            choice: sequence.choice,
            stage,
            tokens: kv.len(),
            prompt_tokens: sequence.prompt_tokens,
            residence: kv.residence(),
            rows: kv.rows_by_kind(),
            selected_pages: kv.indexing().map_or(0, |indexing| indexing.selection.selected_pages(kv.len() + 1)),
            retrieved: sequence.running().map(|running| running.retrieved).unwrap_or_default(),
        }
    }

    /// Cache rows for each page that a step selects, in eighths, as `kv::budget` counts; `None` where pages are not
    /// cached.
    pub fn slot_eighths(&self) -> Option<usize> {
        let caches = self.stage == Stage::Running && self.residence == Residence::Sparse;
        caches.then(|| (8 * self.rows.cache).checked_div(self.selected_pages)).flatten()
    }
}
