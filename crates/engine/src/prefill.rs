//! The cursor of one prefill: which part comes next, cut to the time that is left in a unit.
//!
//! ```text
//! positions   0          prefix        pass.first      pass.end         end
//!             |-- others' --|-- passes done --|--- open pass ---|- passes to come -|
//! an open pass, layer by layer:    gather   layer [..) [..) [..)   scatter   index (last pass)
//! ```
//!
//! Pure: knows positions and layers, no rows and no clock.

use crate::cost::{CostModel, Work};
use crate::plan::Pass;
use kv::{Indexing, SequenceId};
use std::ops::Range;

/// Fewest tokens of a layer that are worth a call of their own: below it, matrix products are at their slowest.
const RANGE_TOKENS_MIN: usize = 32;

/// A prefill and how far it is.
#[derive(Clone, Debug)]
pub(crate) struct Prefill {
    /// The model's layers.
    layers: usize,
    /// Longest pass, in tokens.
    pass_tokens: usize,
    /// Tokens whose K and V are there: a parent's, or the prefix cache's.
    prefix: usize,
    /// Tokens with K and V in rows when it is done.
    end: usize,
    /// Summaries that the parent lacks, and computes first.
    parent: Option<ParentIndex>,
    /// What the sequence's own summaries follow.
    indexing: Option<Indexing>,
    /// Tokens of the prefix whose summaries are there, too.
    indexed: usize,
    /// Whether the last token's hidden state is sampled.
    samples: bool,
    /// Whether the prompt's tokens are scored, with so many most likely ones each.
    scores: Option<usize>,
    /// The open pass `first..end`; moved on when its last layer is done.
    pass: Range<usize>,
    /// The pass buffers it has.
    pub(crate) slot: Option<usize>,
    /// What comes next.
    stage: Stage,
    /// Seconds of units that others got while this one waited.
    pub(crate) waited_seconds: f64,
    /// Percent last reported.
    pub(crate) reported_percent: usize,
}

/// Index over a parent's rows for a fork whose algorithm it has no summaries of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ParentIndex {
    /// Whose rows and summaries.
    pub(crate) parent: SequenceId,
    /// What they follow.
    pub(crate) indexing: Indexing,
    /// First token without a summary.
    pub(crate) from: usize,
    /// One past the last.
    pub(crate) to: usize,
}

/// What a prefill consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefillShape {
    pub(crate) layers: usize,
    pub(crate) pass_tokens: usize,
    pub(crate) prefix: usize,
    pub(crate) indexed: usize,
    pub(crate) end: usize,
    pub(crate) parent: Option<ParentIndex>,
    pub(crate) indexing: Option<Indexing>,
    pub(crate) samples: bool,
    pub(crate) scores: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ParentIndex { layer: usize, from: usize },
    Begin,
    Gather { layer: usize },
    Layer { layer: usize, from: usize },
    Scatter { layer: usize },
    Index { layer: usize, from: usize },
    Start,
    Sample,
    Done,
}

/// A part to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Summaries of the parent.
    ParentIndex {
        layer: usize,
        tokens: Range<usize>,
    },
    /// The sequence comes to be: shares the parent's rows, or has those that it shares with the prefix cache.
    Begin,
    Gather {
        layer: usize,
    },
    Layer {
        layer: usize,
        tokens: Range<usize>,
    },
    Scatter {
        layer: usize,
    },
    /// Its own summaries.
    Index {
        layer: usize,
        tokens: Range<usize>,
    },
    /// K, V and summaries are there: choices part, lanes start.
    Start,
    Sample,
}

/// Whether the open pass ended with a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passes {
    Same,
    Next,
}

impl Prefill {
    pub(crate) fn new(shape: PrefillShape) -> Self {
        let PrefillShape { layers, pass_tokens, prefix, indexed, end, parent, indexing, samples, scores } = shape;
        assert!(scores.is_none() || prefix == 0, "a prompt that is scored is read from its first token");
        let parent = parent.filter(|parent| parent.from < parent.to);
        let stage = parent.map_or(Stage::Begin, |parent| Stage::ParentIndex { layer: 0, from: parent.from });
        let pass = prefix..(prefix + pass_tokens).min(end);
        Prefill {
            layers,
            pass_tokens,
            prefix,
            end,
            parent,
            indexing,
            indexed,
            samples,
            scores,
            pass,
            slot: None,
            stage,
            waited_seconds: 0.0,
            reported_percent: 0,
        }
    }

    /// Summaries that its parent still computes.
    pub(crate) fn parent_index(&self) -> Option<ParentIndex> {
        matches!(self.stage, Stage::ParentIndex { .. }).then_some(self.parent).flatten()
    }

    /// Whether everything was planned.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Whether all layers are done.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Start | Stage::Sample)
    }

    /// Whether the part that comes next works in pass buffers.
    pub(crate) fn needs_slot(&self) -> bool {
        matches!(self.stage, Stage::Gather { .. } | Stage::Layer { .. } | Stage::Scatter { .. } | Stage::Sample)
    }

    /// The open pass.
    pub(crate) fn pass(&self) -> Pass {
        let slot = self.slot.expect("a pass that is prefilled has a slot");
        let Range { start: first, end } = self.pass;
        Pass { slot, first, end, last: end == self.end, scores: self.scores }
    }

    /// Tokens that a part scores: all that it takes through the last layer, but for the prompt's last, behind which
    /// there is none.
    pub(crate) fn scored(&self, part: &Part) -> usize {
        match part {
            Part::Layer { layer, tokens } if self.scores.is_some() && layer + 1 == self.layers => {
                tokens.end.min(self.end - 1) - tokens.start
            }
            _ => 0,
        }
    }

    /// Tokens to prefill, and how many of them are done: whole passes, and the open one by its layers.
    pub(crate) fn progress(&self) -> (usize, usize) {
        let tokens = self.pass.len();
        let of_pass = match self.stage {
            Stage::ParentIndex { .. } | Stage::Begin => 0,
            Stage::Gather { layer } => tokens * layer / self.layers,
            Stage::Layer { layer, from } => (tokens * layer + from - self.pass.start) / self.layers,
            Stage::Scatter { layer } | Stage::Index { layer, .. } => tokens * (layer + 1) / self.layers,
            Stage::Start | Stage::Sample | Stage::Done => tokens,
        };
        (self.pass.start - self.prefix + of_pass, self.end - self.prefix)
    }

    /// The part that comes next, cut to about `seconds` (but never below the smallest range worth a call).
    pub(crate) fn next(&self, seconds: f64, cost: &CostModel) -> Option<Part> {
        Some(match self.stage {
            Stage::ParentIndex { layer, from } => {
                let parent = self.parent.expect("this stage has a parent");
                Part::ParentIndex { layer, tokens: self.index_range(from, parent.to, &parent.indexing, seconds, cost) }
            }
            Stage::Begin => Part::Begin,
            Stage::Gather { layer } => Part::Gather { layer },
            Stage::Layer { layer, from } => {
                let fits = |end| cost.seconds(&self.layer_work(layer, from..end)) <= seconds;
                Part::Layer { layer, tokens: from..longest(from, self.pass.end, RANGE_TOKENS_MIN, fits) }
            }
            Stage::Scatter { layer } => Part::Scatter { layer },
            Stage::Index { layer, from } => {
                let indexing = self.indexing.expect("this stage has summaries");
                let to = indexing.indexed_tokens(self.end);
                Part::Index { layer, tokens: self.index_range(from, to, &indexing, seconds, cost) }
            }
            Stage::Start => Part::Start,
            Stage::Sample => Part::Sample,
            Stage::Done => return None,
        })
    }

    /// What a part consists of.
    pub(crate) fn work(&self, part: &Part) -> Work {
        let fixed = Work { fixed: 1.0, ..Work::default() };
        match part {
            Part::ParentIndex { tokens, .. } | Part::Index { tokens, .. } => {
                Work { index: tokens.len() as f64, ..fixed }
            }
            Part::Begin | Part::Start => fixed,
            Part::Gather { .. } => Work { copy: self.pass.start as f64, ..fixed },
            Part::Layer { layer, tokens } => self.layer_work(*layer, tokens.clone()),
            Part::Scatter { .. } => Work { copy: self.pass.len() as f64, ..fixed },
            Part::Sample => Work { sample: 1.0, ..fixed },
        }
    }

    /// The part is planned; the next one follows. A pass that ends gives its buffers back, so that a shorter prompt may
    /// go between two passes of a long one.
    pub(crate) fn advance(&mut self, part: &Part) -> Passes {
        let first = self.pass.start;
        self.stage = match part {
            Part::ParentIndex { layer, tokens } => {
                let parent = self.parent.expect("this stage has a parent");
                match (tokens.end == parent.to, layer + 1 == self.layers) {
                    (false, _) => Stage::ParentIndex { layer: *layer, from: tokens.end },
                    (true, false) => Stage::ParentIndex { layer: layer + 1, from: parent.from },
                    (true, true) => Stage::Begin,
                }
            }
            Part::Begin if self.pass.is_empty() => Stage::Start,
            Part::Begin => self.layer_begins(0),
            Part::Gather { layer } => Stage::Layer { layer: *layer, from: self.pass.start },
            Part::Layer { layer, tokens } if tokens.end < self.pass.end => {
                Stage::Layer { layer: *layer, from: tokens.end }
            }
            Part::Layer { layer, .. } => Stage::Scatter { layer: *layer },
            Part::Scatter { layer } if self.indexes() => Stage::Index { layer: *layer, from: self.indexed },
            Part::Scatter { layer } => self.layer_ends(*layer),
            Part::Index { layer, tokens } if tokens.end < self.indexed_end() => {
                Stage::Index { layer: *layer, from: tokens.end }
            }
            Part::Index { layer, .. } => self.layer_ends(*layer),
            Part::Start if self.samples => Stage::Sample,
            Part::Start | Part::Sample => Stage::Done,
        };
        if self.pass.start == first { Passes::Same } else { Passes::Next }
    }

    /// What is left to do, roughly: enough to say which of two prompts is shorter.
    pub(crate) fn remaining_seconds(&self, cost: &CostModel) -> f64 {
        let (done, total) = self.progress();
        let (first, tokens) = ((self.prefix + done) as f64, (total - done) as f64);
        let attend = tokens * (first + tokens / 2.0);
        let copy = if done < total { first + tokens } else { 0.0 };
        let layer = Work { linear: tokens, attend, copy, fixed: 3.0, ..Work::default() };
        let score = if self.scores.is_some() { tokens } else { 0.0 };
        let index = Work { index: self.remaining_index() as f64, score, ..Work::default() };
        cost.seconds(&layer.times(self.layers as f64).plus(index))
    }

    /// Tokens x layers that Index has yet to see, the parent's included.
    fn remaining_index(&self) -> usize {
        let parent = self.parent_index().map_or(0, |parent| self.layers * (parent.to - parent.from));
        let own = self.layers * self.indexed_end().saturating_sub(self.indexed);
        let done = match self.stage {
            Stage::ParentIndex { layer, from } => {
                let parent = self.parent.expect("this stage has a parent");
                layer * (parent.to - parent.from) + from - parent.from
            }
            Stage::Index { layer, from } => layer * (self.indexed_end() - self.indexed) + from - self.indexed,
            Stage::Gather { layer } | Stage::Layer { layer, .. } | Stage::Scatter { layer } if self.indexes() => {
                layer * (self.indexed_end() - self.indexed)
            }
            Stage::Start | Stage::Sample | Stage::Done => own,
            Stage::Begin | Stage::Gather { .. } | Stage::Layer { .. } | Stage::Scatter { .. } => 0,
        };
        parent + own - done
    }

    fn layer_begins(&self, layer: usize) -> Stage {
        if self.pass.start == 0 { Stage::Layer { layer, from: 0 } } else { Stage::Gather { layer } }
    }

    /// After a layer: the next one, or the next pass, or the end.
    fn layer_ends(&mut self, layer: usize) -> Stage {
        if layer + 1 < self.layers {
            return self.layer_begins(layer + 1);
        }
        if self.pass.end == self.end {
            return Stage::Start;
        }
        self.pass = self.pass.end..(self.pass.end + self.pass_tokens).min(self.end);
        self.layer_begins(0)
    }

    /// Whether the open pass is followed by Index: the last one is.
    fn indexes(&self) -> bool {
        self.pass.end == self.end && self.indexed < self.indexed_end()
    }

    fn indexed_end(&self) -> usize {
        self.indexing.map_or(0, |indexing| indexing.indexed_tokens(self.end))
    }

    fn index_range(&self, from: usize, to: usize, indexing: &Indexing, seconds: f64, cost: &CostModel) -> Range<usize> {
        let work = |end| Work { index: (end - from) as f64, fixed: 1.0, ..Work::default() };
        let units = indexing.selection.index_unit_tokens;
        from..longest(from, to, units * RANGE_TOKENS_MIN.div_ceil(units), |end| cost.seconds(&work(end)) <= seconds)
    }

    fn layer_work(&self, layer: usize, tokens: Range<usize>) -> Work {
        let count = tokens.len() as f64;
        let last = layer + 1 == self.layers;
        // Nobody needs the last layer's output but the prompt's last token, whichever pass the others are in.
        if last && self.scores.is_none() {
            let sees_end = if tokens.end == self.end { tokens.end as f64 } else { 0.0 };
            return Work { last: count, attend: sees_end, fixed: 1.0, ..Work::default() };
        }
        let attend = count * (tokens.start + tokens.end) as f64 / 2.0;
        let score = if last { count } else { 0.0 };
        Work { linear: count, attend, score, fixed: 1.0, ..Work::default() }
    }
}

/// The farthest end of a range from `from` that fits, in whole grains behind `from`; at least one grain, at most `to`.
fn longest(from: usize, to: usize, grain: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut over) = (1, (to - from).div_ceil(grain) + 1);
    while fitting + 1 < over {
        let middle = (fitting + over) / 2;
        if fits((from + middle * grain).min(to)) { fitting = middle } else { over = middle }
    }
    (from + fitting * grain).min(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::{Selection, SummaryKey};

    #[test]
    fn what_is_left_of_index_shrinks_with_every_part_to_nothing() {
        let selection = Selection { index_unit_tokens: 48, sink_tokens: 8, window_tokens: 64, ..Selection::dense() };
        let indexing = Indexing { key: SummaryKey { algorithm: 3, row_tokens: 48 }, selection };
        let parent = ParentIndex { parent: SequenceId(1), indexing, from: 0, to: indexing.indexed_tokens(500) };
        let (layers, end) = (3, 2000);
        let shape = PrefillShape {
            layers,
            pass_tokens: 700,
            prefix: 500,
            indexed: indexing.indexed_tokens(500),
            end,
            parent: Some(parent),
            indexing: Some(indexing),
            samples: true,
            scores: None,
        };
        let mut prefill = Prefill::new(shape);
        let (cost, mut left) = (CostModel::default(), layers * indexing.indexed_tokens(end));
        assert_eq!(prefill.remaining_index(), left, "the parent's and its own");
        while let Some(part) = prefill.next(0.05, &cost) {
            if let Part::ParentIndex { tokens, .. } | Part::Index { tokens, .. } = &part {
                left -= tokens.len();
            }
            prefill.advance(&part);
            assert_eq!(prefill.remaining_index(), left, "behind {part:?}");
        }
        assert_eq!(left, 0);
        assert!(prefill.remaining_seconds(&cost) < 0.001, "calls alone are left: {}", prefill.remaining_seconds(&cost));
    }
}
