//! The decode step of a plan: every lane whose sequence has outputs to come.

use super::Scheduler;
use super::constrain::{Leave, leave};
use crate::plan::DecodePlan;
use crate::request::Request;
use backend::{AlgorithmSet, HomeDelta, RowCopy, RowDelta, RowTableKind, StepInput, StepKey};
use kv::{Growth, LaneId, Residence, TokenId};

impl Scheduler {
    /// The lanes that decode, ascending, and the tokens that are forced on them or that they may choose.
    pub(super) fn choose_lanes(&mut self) -> Option<DecodePlan> {
        let mut input = StepInput::default();
        let (mut sequences, mut algorithms, mut measure_mass) = (Vec::new(), AlgorithmSet::default(), false);
        for at in 0..self.lanes.len() {
            let Some(id) = self.lanes[at] else { continue };
            let Some(sequence) = self.sequences.get(&id) else { continue };
            let Some(running) = sequence.running().filter(|running| running.planned < running.outputs_max) else {
                continue;
            };
            if !sequence.kv.can_append() {
                continue;
            }
            let request = self.request_of(id);
            let forced = forced_output(&request, running.planned);
            let Leave::Go(mask) = leave(sequence, running, forced) else { continue };
            let lane = LaneId(u16::try_from(at).expect("lanes are numbered by u16"));
            input.active.push(lane);
            input.forced.extend(forced.map(|token| (lane, token)));
            input.masks.extend(mask.map(|mask| (lane, mask)));
            let running = self.sequences.get_mut(&id).and_then(|sequence| sequence.running_mut());
            running.expect("it runs").planned += 1;
            algorithms = algorithms.with(request.attention.algorithm);
            measure_mass |= request.measure_mass;
            sequences.push(id);
        }
        let retrieves = sequences.iter().any(|id| self.sequences[id].kv.residence() == Residence::Sparse);
        let bucket = sequences.len().next_power_of_two().min(self.config.max_lanes);
        let (key, seconds) = (StepKey { bucket, algorithms, measure_mass, retrieves }, self.cost.decode_seconds());
        (!sequences.is_empty()).then_some(DecodePlan { sequences, key, copies: Vec::new(), input, seconds })
    }

    /// One token's rows for every sequence of the step, and the pages that leave the pool before it.
    pub(super) fn append_rows(&mut self, decode: &mut DecodePlan) {
        for (id, &lane) in decode.sequences.iter().zip(&decode.input.active) {
            let sequence = self.sequences.get_mut(id).expect("a planned sequence is alive");
            let Growth { kv, summary, left } = sequence.kv.append(&mut self.tiers);
            self.totals.offloaded_rows += left.len() as u64;
            decode.input.moves.extend(left.iter().map(|left| HomeDelta { lane, page: left.page, row: left.target }));
            decode.copies.extend(left.iter().map(|left| RowCopy { source: left.source, target: left.target }));
            let tables = [(RowTableKind::Kv, kv), (RowTableKind::Summary, summary)];
            let grown = tables.into_iter().filter_map(|(table, grown)| grown.map(|(index, row)| (table, index, row)));
            decode.input.rows.extend(grown.map(|(table, index, row)| RowDelta { lane, table, index, row }));
        }
    }
}

/// The `output`-th output where it is given: the rest of a prompt that is fed, then the request's forced tokens.
pub(super) fn forced_output(request: &Request, output: usize) -> Option<TokenId> {
    let fed = if request.feeds_by_decode() { &request.tokens()[1..] } else { &[] };
    match output.checked_sub(fed.len()) {
        None => Some(fed[output]),
        Some(rest) => request.forced.get(rest).copied(),
    }
}
