//! Several sequences on one decoder, each under its own algorithm, without the engine: every step has the same lanes,
//! so that two runs can be compared to the bit.

use backend::{
    AlgorithmId, AlgorithmSet, Backend, BackendError, FirstInput, LaneOutput, LaneStart, RowDelta, RowTableKind,
    Runtime, Sampling, StepInput, StepKey, Ticket,
};
use kv::{LaneId, RowId, Selection, TokenId, geometry};
use model::{Decoder, DecoderLimits, Forward, Opened, PassView};
use std::sync::Arc;

/// A sequence to be.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its algorithm's name.
    pub algorithm: &'static str,
    /// Its prompt.
    pub prompt: Vec<TokenId>,
}

/// A decoder, a pool and the sequences in it.
pub struct Company {
    runtime: Arc<dyn Runtime>,
    decoder: Decoder,
    sequences: Vec<Sequence>,
}

struct Sequence {
    lane: LaneId,
    algorithm: AlgorithmId,
    selection: Selection,
    kv_rows: Vec<RowId>,
    summary_rows: Vec<RowId>,
    len: usize,
}

impl Company {
    /// Loads the model and reads every member's prompt; `adjust` changes the selections.
    ///
    /// # Panics
    /// The model does not load, has no such algorithm, or the device is lost.
    pub fn new(
        backend: &dyn Backend,
        opened: &Opened,
        members: &[Member],
        tokens: usize,
        adjust: impl Fn(&mut Selection),
    ) -> Self {
        let longest = members.iter().map(|member| member.prompt.len()).max().expect("a member");
        let max_tokens = longest + tokens + 1;
        let limits = DecoderLimits { max_lanes: 2 * members.len(), max_tokens, prefill_tokens: max_tokens };
        let decoder = Decoder::load(backend, &opened.checkpoint, limits, &mut |_, _| ()).expect("the model loads");
        // A row for every page, and as many for summaries: enough for any algorithm.
        let pages = geometry::pages(max_tokens + 1);
        let shape = opened.config().runtime_shape(limits, 2 * pages * members.len());
        let runtime = backend.runtime(&shape).expect("the runtime fits");
        let mut rows = (0..(2 * pages * members.len()) as u32).rev().map(RowId);
        let mut sequence = |(i, member): (usize, &Member)| {
            let algorithm = decoder.algorithms().specs().by_name(member.algorithm).expect("a known algorithm");
            let spec = decoder.algorithms().specs().get(algorithm);
            let mut selection = spec.selection();
            if spec.is_sparse() {
                adjust(&mut selection);
            }
            let (kv_rows, summary_rows) = (rows.by_ref().take(pages).collect(), rows.by_ref().take(pages).collect());
            // Every other lane, so that a mix-up of lane and buffer row shows.
            let lane = LaneId(2 * i as u16 + 1);
            Sequence { lane, algorithm, selection, kv_rows, summary_rows, len: member.prompt.len() }
        };
        let sequences = members.iter().enumerate().map(&mut sequence).collect();
        let company = Company { runtime, decoder, sequences };
        members.iter().zip(&company.sequences).for_each(|(member, sequence)| company.read(sequence, &member.prompt));
        company
    }

    fn read(&self, sequence: &Sequence, prompt: &[TokenId]) {
        let (runtime, decoder) = (self.runtime.as_ref(), &self.decoder);
        let Sequence { lane, algorithm, selection, kv_rows, summary_rows, .. } = sequence;
        let pass = PassView { slot: 0, tokens: prompt, first: 0, last_pass: true, kv_rows, score: None };
        runtime.start_lane(&LaneStart {
            lane: *lane,
            algorithm: *algorithm,
            selection: *selection,
            len: prompt.len(),
            first: FirstInput::Sampled,
            kv_rows: kv_rows[..geometry::pages(prompt.len())].to_vec(),
            summary_rows: summary_rows.clone(),
            cache_rows: Vec::new(),
            sampling: Sampling { top_logprobs: 2, ..Sampling::default() },
            prompt: Vec::new(),
            mask: None,
        });
        let indexed = selection.indexed_tokens(prompt.len() + 1);
        runtime.enqueue(&mut || {
            for layer in 0..decoder.layers() {
                decoder.prefill_layer(runtime, &pass, layer, 0..prompt.len());
                decoder.prefill_scatter(runtime, &pass, layer);
                decoder.prefill_index(runtime, *algorithm, layer, kv_rows, summary_rows, (0, indexed));
            }
            decoder.prefill_sample(runtime, &pass, &[*lane]);
        });
        runtime.collect(runtime.fence()).expect("the device works");
    }

    /// Runs `steps` steps of all lanes, as many in flight as the backend allows; a step's outputs are in lane order.
    /// Every `leave`-th step goes without the first sequence.
    ///
    /// # Errors
    /// The device was lost.
    pub fn steps(&mut self, steps: usize, leave: Option<usize>) -> Result<Vec<Vec<LaneOutput>>, BackendError> {
        let (mut outputs, mut in_flight) = (Vec::new(), std::collections::VecDeque::new());
        for step in 0..steps {
            let first = usize::from(leave.is_some_and(|every| step % every == every - 1));
            in_flight.push_back(self.launch(first));
            if in_flight.len() == self.runtime.steps_in_flight() {
                outputs.extend(in_flight.pop_front().map(|ticket| self.collect(ticket)).transpose()?);
            }
        }
        for ticket in in_flight {
            outputs.push(self.collect(ticket)?);
        }
        Ok(outputs)
    }

    fn collect(&self, ticket: Ticket) -> Result<Vec<LaneOutput>, BackendError> {
        Ok(self.runtime.collect(ticket)?.lanes)
    }

    /// Launches a step of the sequences from `first` on.
    fn launch(&mut self, first: usize) -> Ticket {
        let algorithms = self.sequences.iter().fold(AlgorithmSet::default(), |set, one| set.with(one.algorithm));
        let key = StepKey { bucket: self.sequences.len(), algorithms, measure_mass: false, retrieves: false };
        let mut input = StepInput::default();
        for sequence in &mut self.sequences[first..] {
            input.active.push(sequence.lane);
            if sequence.len.is_multiple_of(kv::PAGE_TOKENS) {
                let index = sequence.len / kv::PAGE_TOKENS;
                let (lane, table, row) = (sequence.lane, RowTableKind::Kv, sequence.kv_rows[index]);
                input.rows.push(RowDelta { lane, table, index, row });
            }
            sequence.len += 1;
        }
        let (runtime, decoder) = (self.runtime.as_ref(), &self.decoder);
        runtime.launch(key, &input, &mut || decoder.decode(runtime, key))
    }
}
