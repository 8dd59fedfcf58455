//! One sequence on one decoder, without the engine: what golden logits and bitwise tests drive.

use backend::{
    AlgorithmSet, Backend, FirstInput, LaneOutput, LaneStart, RowDelta, RowTableKind, Runtime, Sampling, StepInput,
    StepKey,
};
use kv::{LaneId, RowId, Selection, TokenId, geometry};
use model::{Decoder, DecoderLimits, Forward, Opened, PassView};
use sparse::Algorithm;
use std::sync::Arc;

/// A decoder, a pool and one sequence in it.
pub struct Solo {
    runtime: Arc<dyn Runtime>,
    decoder: Decoder,
    algorithm: backend::AlgorithmId,
    selection: Selection,
    kv_rows: Vec<RowId>,
    summary_rows: Vec<RowId>,
    len: usize,
}

impl Solo {
    /// The only lane in use; not 0, so that a mix-up of lane and row shows.
    pub const LANE: LaneId = LaneId(1);

    /// Loads a model for a sequence of at most `max_tokens` under an algorithm; `adjust` changes its selection.
    ///
    /// # Panics
    /// The model does not load or has no such algorithm.
    pub fn new(
        backend: &dyn Backend,
        opened: &Opened,
        max_tokens: usize,
        algorithm: &str,
        adjust: impl Fn(&mut Selection),
    ) -> Self {
        let limits = DecoderLimits { max_lanes: 3, max_tokens, prefill_tokens: max_tokens };
        let decoder = Decoder::load(backend, &opened.checkpoint, limits, &mut |_, _| ()).expect("the model loads");
        let algorithm = decoder.algorithms().specs().by_name(algorithm).expect("a known algorithm");
        let spec = decoder.algorithms().specs().get(algorithm);
        let mut selection = spec.selection();
        adjust(&mut selection);
        let kv = geometry::pages(max_tokens + 1);
        let summaries = spec.summary_row_tokens.map_or(0, |tokens| max_tokens.div_ceil(tokens));
        let shape = opened.config().runtime_shape(limits, kv + summaries);
        // Rows in descending order: a table is never the identity by accident.
        let mut rows = (0..(kv + summaries) as u32).rev().map(RowId);
        Solo {
            runtime: backend.runtime(&shape).expect("the runtime fits"),
            algorithm,
            selection,
            kv_rows: rows.by_ref().take(kv).collect(),
            summary_rows: rows.collect(),
            len: 0,
            decoder,
        }
    }

    /// Puts an observer around each algorithm of the decoder.
    pub fn observe(&mut self, with: impl FnMut(Box<dyn Algorithm>) -> Box<dyn Algorithm>) {
        self.decoder.algorithms_mut().replace_each(with);
    }

    /// The row of each page.
    pub fn kv_rows(&self) -> &[RowId] {
        &self.kv_rows
    }

    /// What it selects by.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Tokens in rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads a prompt in units of `unit` tokens and draws the first token.
    ///
    /// # Panics
    /// The device is lost.
    pub fn prefill(&mut self, tokens: &[TokenId], unit: usize, sampling: Sampling) -> LaneOutput {
        self.begin(tokens, unit, sampling)
    }

    /// Reads a prompt in one unit; the next step's input is `token`, whatever the model would say.
    ///
    /// # Panics
    /// The device is lost.
    pub fn prefill_forced(&mut self, tokens: &[TokenId], sampling: Sampling, token: TokenId) {
        self.begin(tokens, tokens.len(), sampling.clone());
        self.runtime.start_lane(&self.start(sampling, FirstInput::Given(token)));
    }

    fn begin(&mut self, tokens: &[TokenId], unit: usize, sampling: Sampling) -> LaneOutput {
        let pass = PassView { slot: 1, tokens, first: 0, last_pass: true, kv_rows: &self.kv_rows, score: None };
        let (runtime, decoder) = (self.runtime.as_ref(), &self.decoder);
        let indexed = self.selection.indexed_tokens(tokens.len() + 1);
        self.len = tokens.len();
        runtime.start_lane(&self.start(sampling, FirstInput::Sampled));
        runtime.enqueue(&mut || {
            for layer in 0..decoder.layers() {
                for start in (0..tokens.len()).step_by(unit) {
                    decoder.prefill_layer(runtime, &pass, layer, start..tokens.len().min(start + unit));
                }
                decoder.prefill_scatter(runtime, &pass, layer);
                decoder.prefill_index(runtime, self.algorithm, layer, &self.kv_rows, &self.summary_rows, (0, indexed));
            }
            decoder.prefill_sample(runtime, &pass, &[Self::LANE]);
        });
        let mut output = runtime.collect(runtime.fence()).expect("the device works");
        output.prefilled.remove(0)
    }

    /// One decode step; its token is `forced` if given.
    ///
    /// # Panics
    /// The device is lost.
    pub fn step(&mut self, forced: Option<TokenId>, measure_mass: bool) -> LaneOutput {
        let key = StepKey {
            bucket: 1,
            algorithms: AlgorithmSet::default().with(self.algorithm),
            measure_mass,
            retrieves: false,
        };
        let mut input = StepInput { active: vec![Self::LANE], ..StepInput::default() };
        input.forced.extend(forced.map(|token| (Self::LANE, token)));
        let page = self.len / kv::PAGE_TOKENS;
        if self.len.is_multiple_of(kv::PAGE_TOKENS) {
            let (table, row) = (RowTableKind::Kv, self.kv_rows[page]);
            input.rows.push(RowDelta { lane: Self::LANE, table, index: page, row });
        }
        self.len += 1;
        let (runtime, decoder) = (self.runtime.as_ref(), &self.decoder);
        let ticket = runtime.launch(key, &input, &mut || decoder.decode(runtime, key));
        runtime.collect(ticket).expect("the device works").lanes.remove(0)
    }

    fn start(&self, sampling: Sampling, first: FirstInput) -> LaneStart {
        LaneStart {
            lane: Self::LANE,
            algorithm: self.algorithm,
            selection: self.selection,
            len: self.len,
            first,
            kv_rows: self.kv_rows[..geometry::pages(self.len)].to_vec(),
            summary_rows: self.summary_rows.clone(),
            cache_rows: Vec::new(),
            sampling,
            prompt: Vec::new(),
            mask: None,
        }
    }
}
