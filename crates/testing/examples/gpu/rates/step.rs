//! A whole decode step of Llama-3.1-8B's shape, random weights, one lane: with attention, and with all but that.

use super::{Table, Work};
use backend::{
    AlgorithmId, AlgorithmSet, Backend, FirstInput, LaneStart, Runtime, Sampling, StepInput, StepKey, Ticket,
};
use cuda::CudaBackend;
use kv::{LaneId, RowId, Selection, geometry};
use model::{Checkpoint, Decoder, DecoderLimits, Forward, ModelConfig, PassView};
use std::sync::Arc;
use std::time::Instant;

/// The shape.
pub(crate) const CONFIG: &[u8] = include_bytes!("../../../../../models/shapes/llama-3.1-8b/config.json");

/// Tokens before the first step.
const TOKENS: usize = 1024;

/// Steps of a round of the clock: the first one's launch does not count beside them.
const STEPS: usize = 100;

/// Rounds; the median counts.
const ROUNDS: usize = 7;

const LANE: LaneId = LaneId(0);

const DENSE: AlgorithmId = AlgorithmId(0);

/// A model and its one sequence.
struct Lane {
    runtime: Arc<dyn Runtime>,
    decoder: Decoder,
    rows: Vec<RowId>,
}

/// One row with dense attention, and one without any.
pub(crate) fn measure(table: &mut Table<'_>, backend: &Arc<CudaBackend>) {
    if !table.wants("step") {
        return;
    }
    let config = ModelConfig::from_hugging_face(CONFIG, "config.json", "llama-3.1-8b").expect("the shape is ours");
    let matrices = config.layers * config.layer_parameters() + config.vocab_size * config.hidden;
    let keys = config.layers * 2 * config.kv_heads * config.head_dim * TOKENS;
    let lane = Lane::new(backend, config);
    // With attention first: what the other step's products read is then no zeros.
    for (what, algorithms, elements) in [
        ("dense", AlgorithmSet::default().with(DENSE), matrices + keys),
        ("without attention", AlgorithmSet::default(), matrices),
    ] {
        let seconds = lane.step_seconds(algorithms);
        table.add("step", &format!("one lane at {TOKENS}, {what}"), Work::bytes(2 * elements), seconds);
    }
}

impl Lane {
    fn new(backend: &Arc<CudaBackend>, config: ModelConfig) -> Self {
        let max_tokens = TOKENS + STEPS + 8;
        let limits = DecoderLimits { max_lanes: 1, max_tokens, prefill_tokens: TOKENS };
        let pages = geometry::pages(max_tokens + 1);
        let runtime = backend.runtime(&config.runtime_shape(limits, pages)).expect("the runtime fits");
        let checkpoint = Checkpoint::random(config, 1);
        let decoder = Decoder::load(backend.as_ref(), &checkpoint, limits, &mut |_, _| ()).expect("the model fits");
        let lane = Lane { runtime, decoder, rows: (0..pages as u32).map(RowId).collect() };
        lane.read();
        lane
    }

    /// Keys and values of a prompt.
    fn read(&self) {
        let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * 97 % 100_000).collect();
        let pass = PassView { slot: 0, tokens: &tokens, first: 0, last_pass: true, kv_rows: &self.rows, score: None };
        let (runtime, decoder) = (self.runtime.as_ref(), &self.decoder);
        runtime.enqueue(&mut || {
            for layer in 0..decoder.layers() {
                decoder.prefill_layer(runtime, &pass, layer, 0..TOKENS);
                decoder.prefill_scatter(runtime, &pass, layer);
            }
        });
        self.collect(runtime.fence());
    }

    fn start(&self) {
        self.runtime.start_lane(&LaneStart {
            lane: LANE,
            algorithm: DENSE,
            selection: Selection::dense(),
            len: TOKENS,
            first: FirstInput::Prompt { token: 1, outputs: 0 },
            kv_rows: self.rows.clone(),
            summary_rows: Vec::new(),
            cache_rows: Vec::new(),
            sampling: Sampling::default(),
            prompt: Vec::new(),
            mask: None,
        });
        self.collect(self.runtime.fence());
    }

    fn collect(&self, ticket: Ticket) {
        self.runtime.collect(ticket).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Seconds from step to step, two in flight as the engine has them. No algorithm in the key, no attention: every
    /// other kernel of the step is in its graph.
    fn step_seconds(&self, algorithms: AlgorithmSet) -> f64 {
        let key = StepKey { bucket: 1, algorithms, measure_mass: false, retrieves: false };
        let input = StepInput { active: vec![LANE], ..StepInput::default() };
        let launch = || self.runtime.launch(key, &input, &mut || self.decoder.decode(self.runtime.as_ref(), key));
        let run = || {
            self.start();
            let start = Instant::now();
            let mut before = launch();
            for _ in 1..STEPS {
                self.collect(std::mem::replace(&mut before, launch()));
            }
            self.collect(before);
            start.elapsed().as_secs_f64() / STEPS as f64
        };
        run();
        super::bed::median((0..ROUNDS).map(|_| run()).collect())
    }
}
