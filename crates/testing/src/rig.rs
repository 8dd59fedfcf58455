//! A model on a backend with an engine around it, and a whole answer as one value.

use backend::cpu::{CpuBackend, CpuOptions};
use backend::{Backend, RuntimeShape, Sampling};
use engine::{Attention, CostModel, Engine, EngineConfig, Event, FinishReason, Request, Source, TextFactory};
use kv::bucketed_lru::Eviction;
use kv::{Selection, TokenId};
use model::{Decoder, DecoderLimits, ModelSource, Opened, needle_text};
use std::sync::Arc;

/// A running engine and what it runs.
pub struct Rig {
    /// The engine.
    pub engine: Engine,
    /// Its decoder.
    pub decoder: Arc<Decoder>,
}

/// How a rig is built; `Default` is what most tests want.
#[derive(Clone, Copy, Debug)]
pub struct RigOptions {
    /// Threads and instruction set, where the backend is the CPU's.
    pub cpu: CpuOptions,
    /// The first guess of what prefill costs, from a layer's parameters and the queries' width.
    pub cost: fn(usize, usize) -> CostModel,
    /// Sizes.
    pub limits: DecoderLimits,
    /// Rows of the pool.
    pub pool_rows: usize,
    /// Rows of host memory behind it.
    pub dram_rows: usize,
    /// Which cached pages go first.
    pub eviction: Eviction,
    /// Tokens that a completion gets rows for at a time.
    pub horizon_tokens: usize,
    /// Seconds of a prefill unit.
    pub unit_seconds: f64,
    /// Share of decode while prompts are read.
    pub decode_share: f64,
}

impl RigOptions {
    /// Room for `lanes` sequences of `max_tokens` tokens.
    pub fn new(lanes: usize, max_tokens: usize) -> Self {
        let limits = DecoderLimits { max_lanes: lanes, max_tokens, prefill_tokens: max_tokens.min(32_768) };
        let pool_rows = (lanes + 1) * (kv::geometry::pages(max_tokens) * 5 / 4 + 8);
        let (cpu, cost) = (CpuOptions::default(), CostModel::conservative);
        let eviction = Eviction::default();
        RigOptions {
            cpu,
            cost,
            limits,
            pool_rows,
            dram_rows: 0,
            eviction,
            horizon_tokens: 256,
            unit_seconds: 0.05,
            decode_share: 0.5,
        }
    }

    /// The same for a GPU.
    #[must_use]
    pub fn on_gpu(self) -> Self {
        RigOptions { cost: CostModel::gpu, unit_seconds: 0.01, ..self }
    }
}

/// One choice's answer, for comparisons to the bit.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Tokens.
    pub tokens: Vec<TokenId>,
    /// Bits of their log-probabilities.
    pub logprobs: Vec<u32>,
    /// Text, where the rig makes text.
    pub text: String,
    /// How it ended.
    pub reason: FinishReason,
    /// Tokens that the last step attended exactly.
    pub exact_tokens: usize,
}

impl Rig {
    /// Starts an engine on a model on the CPU.
    ///
    /// # Panics
    /// The model does not load.
    pub fn start(opened: &Opened, texts: Option<TextFactory>, options: RigOptions) -> Self {
        let backend = CpuBackend::new(options.cpu).expect("the instruction set is present");
        Self::start_on(&backend, opened, texts, options)
    }

    /// Starts an engine on a model on any backend.
    ///
    /// # Panics
    /// The model does not load.
    pub fn start_on(backend: &dyn Backend, opened: &Opened, texts: Option<TextFactory>, options: RigOptions) -> Self {
        let (config, limits) = (opened.config(), options.limits);
        let decoder = Decoder::load(backend, &opened.checkpoint, limits, &mut |_, _| ()).expect("it loads");
        let decoder = Arc::new(decoder);
        let RigOptions { pool_rows, dram_rows, eviction, .. } = options;
        let shape = RuntimeShape { dram_rows, eviction, ..config.runtime_shape(limits, pool_rows) };
        let runtime = backend.runtime(&shape).expect("the runtime fits");
        let row_bytes = config.geometry().row_bytes() as u64;
        let engine_config = EngineConfig {
            max_lanes: limits.max_lanes,
            prefill_tokens: limits.prefill_tokens,
            horizon_tokens: options.horizon_tokens,
            unit_seconds: options.unit_seconds,
            decode_share: options.decode_share,
            dram_rows,
            cost: (options.cost)(config.layer_parameters(), config.q_columns()),
            ..EngineConfig::new(pool_rows, row_bytes, limits.max_tokens, config.vocab_size)
        };
        let algorithms = decoder.algorithms().specs().all().to_vec();
        Rig { engine: Engine::start(runtime, decoder.clone(), algorithms, texts, engine_config), decoder }
    }

    /// An attention by name; `adjust` changes its selection where it is sparse.
    ///
    /// # Panics
    /// There is no such algorithm.
    pub fn attention(&self, name: &str, adjust: impl Fn(&mut Selection)) -> Attention {
        let specs = self.decoder.algorithms().specs();
        let algorithm = specs.by_name(name).expect("a known algorithm");
        let mut selection = specs.get(algorithm).selection();
        if specs.get(algorithm).is_sparse() {
            adjust(&mut selection);
        }
        Attention { algorithm, selection }
    }

    /// A request for `max_tokens` tokens behind a prompt, sampled with a seed; its prompt is read to the last token.
    pub fn request(&self, prompt: Vec<TokenId>, attention: Attention, max_tokens: usize, seed: u64) -> Request {
        let mut request = Request::new(Source::Prompt(prompt), attention, max_tokens);
        request.sampling = Sampling { temperature: 0.8, top_p: 0.95, seed, ..Sampling::default() };
        request.cache = false;
        request
    }

    /// Submits a request and waits for its first choice.
    ///
    /// # Panics
    /// It is refused, or the engine fails.
    pub fn answer(&self, request: Request) -> Answer {
        wait(self.engine.submit(request).expect("the request is taken"))
    }
}

/// Waits for a request's first choice, of whose events a handle or a list is given.
///
/// # Panics
/// The engine fails.
pub fn wait(events: impl IntoIterator<Item = Event>) -> Answer {
    let (tokens, logprobs, text) = (Vec::new(), Vec::new(), String::new());
    let mut answer = Answer { tokens, logprobs, text, reason: FinishReason::Length, exact_tokens: 0 };
    for event in events {
        match event {
            Event::Token(token) if token.choice == 0 => {
                answer.tokens.push(token.token);
                answer.logprobs.extend(token.logprob.map(f32::to_bits));
                answer.text += &token.text;
            }
            Event::Finished(finished) if finished.choice == 0 => {
                answer.text += &finished.text;
                answer.reason = finished.reason;
                answer.exact_tokens = finished.attention.exact_tokens;
            }
            Event::Failed(why) => panic!("the engine failed: {why}"),
            _ => {}
        }
    }
    answer
}

/// The bundled model.
///
/// # Panics
/// It does not open.
pub fn needle() -> Opened {
    model::open(&ModelSource::Bundled).expect("the bundled model opens")
}

/// A document with a question behind it.
pub fn document_and_question(context: usize, seed: u64) -> Vec<TokenId> {
    let document = needle_text::document(context, 20, seed);
    let mut tokens = document.ids();
    tokens.extend(needle_text::ids(&document.facts[7].question()));
    tokens
}

/// A selection without lower limits, so that short contexts select too.
pub fn low_limits(selection: &mut Selection) {
    selection.min_context = 0;
    selection.floor_tokens = 0;
    selection.budget = 0.05;
}
