//! The real scheduler and step loop over a made-up device, without threads and in virtual time: whole serving days in
//! a second, replayed from a seed.
//!
//! The device knows no model. It writes a tag for every token, a hash of the tokens so far, where K and V would be, and
//! a completion's next token is a hash of all tags that its lane can read; a row shared too early, copied too late or
//! freed too soon gives other tokens than the naive model in `simulator/naive.rs`.

pub mod naive;

pub mod noise;

pub mod device;

mod fake;

pub use device::{Costs, Device};
pub use noise::Noise;

use backend::AlgorithmId;
use engine::outbox::{Delivered, EventSink, TextFactory, TextOptions, TextStream};
use engine::plan::Act;
use engine::{
    Attention, Engine, EngineConfig, Event, Finished, Outbox, Progress, Refusal, Request, RequestId, Scheduler, Source,
    Steps, TokenEvent,
};
use fake::{FakeForward, FakeRuntime, HostRows};
use kv::{Selection, SequenceId, TokenId};
use sparse::{AlgorithmSpec, StepReads};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a simulation is made of.
#[derive(Clone, Debug)]
pub struct SimulatorConfig {
    /// The engine's sizes.
    pub engine: EngineConfig,
    /// The model's layers.
    pub layers: usize,
    /// The backend's steps in flight.
    pub steps_in_flight: usize,
    /// What things take.
    pub costs: Costs,
    /// Whether host memory comes bit by bit.
    pub dram_grows: bool,
    /// Rows of host memory that there will be in the end: fewer than were asked for where the system refuses more.
    pub dram_rows_most: usize,
    /// Decode steps after which the device is lost.
    pub lost_after: Option<u64>,
    /// For the costs' jitter.
    pub seed: u64,
}

/// A serving day.
pub struct Simulation {
    /// The real thing.
    pub steps: Steps,
    /// The made-up one.
    pub device: Arc<Device>,
    readers: BTreeMap<RequestId, Reader>,
    trace: Arc<Mutex<Vec<String>>>,
}

/// What a request's reader has seen, with the virtual time of each event.
pub type Seen = Vec<(f64, Event)>;

#[derive(Clone)]
struct Reader {
    seen: Arc<Mutex<Seen>>,
    device: Arc<Device>,
    /// Events after which it reads no more.
    patience: usize,
}

/// Tokens are letters: `a` for 0, and round again after `z`; token 0 is special, and has text where that is asked for.
struct Letters(TextOptions);

/// The algorithms of a simulation: the real ones' sizes, by `AlgorithmId`.
pub fn algorithms() -> Vec<AlgorithmSpec> {
    let spec = |name, index_unit_tokens, summary_row_tokens, window_tokens| AlgorithmSpec {
        name,
        index_unit_tokens,
        summary_row_tokens,
        sink_tokens: 8,
        window_tokens,
        budget: 0.1,
        reads: StepReads { token_bytes: 100, unit_bytes: 20, rest_page_bytes: 3 },
    };
    vec![
        spec("dense", 8, None, 0),
        spec("shadowkv", 8, Some(128), 32),
        spec("shadowkv+estimate", 8, Some(64), 32),
        spec("sketch", 48, Some(48), 64),
    ]
}

/// An algorithm of the list above with its own selection.
pub fn attention(algorithm: u8) -> Attention {
    let spec = &algorithms()[usize::from(algorithm)];
    let selection = match spec.summary_row_tokens {
        None => Selection::dense(),
        Some(_) => Selection { floor_tokens: 0, min_context: 0, ..spec.selection() },
    };
    Attention { algorithm: AlgorithmId(algorithm), selection }
}

/// Tokens that the made-up model knows.
pub const VOCAB: usize = 1024;

/// A prompt of `tokens` tokens that no other seed has.
pub fn prompt(seed: u64, tokens: usize) -> Vec<TokenId> {
    let mut noise = Noise(seed);
    (0..tokens).map(|_| 1 + noise.below(1000) as TokenId).collect()
}

impl SimulatorConfig {
    /// A small CPU with `pool_rows` rows and `max_lanes` lanes.
    pub fn new(pool_rows: usize, max_lanes: usize) -> Self {
        let mut engine = EngineConfig::new(pool_rows, 1 << 20, 1 << 17, VOCAB);
        engine.max_lanes = max_lanes;
        let (costs, dram_grows) = (Costs::default(), false);
        SimulatorConfig {
            engine,
            layers: 2,
            steps_in_flight: 1,
            costs,
            dram_grows,
            dram_rows_most: 1 << 26,
            lost_after: None,
            seed: 0,
        }
    }
}

impl SimulatorConfig {
    /// The engine with its thread and in real time, over the made-up device.
    pub fn start(self) -> Engine {
        let (_, runtime, forward) = self.parts();
        Engine::start(runtime, forward, algorithms(), Some(letters()), self.engine)
    }

    fn host(&self) -> HostRows {
        HostRows { most: self.dram_rows_most.min(self.engine.dram_rows), grows: self.dram_grows }
    }

    fn parts(&self) -> (Arc<Device>, Arc<FakeRuntime>, Arc<FakeForward>) {
        let (rows, lanes) = ([self.engine.pool_rows, self.engine.dram_rows], self.engine.max_lanes);
        let device = Arc::new(Device::new(rows, self.layers, lanes, self.costs, self.seed));
        let runtime = Arc::new(FakeRuntime::new(device.clone(), self.steps_in_flight, self.lost_after, self.host()));
        let forward = Arc::new(FakeForward::new(device.clone()));
        (device, runtime, forward)
    }
}

fn letters() -> TextFactory {
    Arc::new(|options| Box::new(Letters(options.clone())))
}

impl Simulation {
    /// A day at its morning.
    pub fn new(config: SimulatorConfig) -> Self {
        let (device, runtime, forward) = config.parts();
        let scheduler = Scheduler::new(config.engine, algorithms(), config.layers);
        let mut steps = Steps::new(scheduler, Outbox::new(Some(letters())), runtime, forward, device.clone());
        let trace = Arc::new(Mutex::new(Vec::new()));
        let lines = trace.clone();
        steps.set_trace(Box::new(move |plan| {
            let scores = plan.pieces.iter().filter(|piece| matches!(piece.act, Act::Layer { scored: 1.., .. })).count();
            assert!(scores <= 1, "a unit scores one part of a prompt: {plan}");
            lines.lock().expect("one thread").push(plan.to_string());
        }));
        Simulation { steps, device, readers: BTreeMap::new(), trace }
    }

    /// Submits a request.
    ///
    /// # Errors
    /// It is refused.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, Refusal> {
        self.submit_impatient(request, 1 << 30)
    }

    /// Submits a request whose reader reads `patience` events and then lets them fill.
    ///
    /// # Errors
    /// It is refused.
    pub fn submit_impatient(&mut self, request: Request, patience: usize) -> Result<RequestId, Refusal> {
        let id = RequestId(self.readers.len() as u64 + 1);
        let reader = Reader { seen: Arc::default(), device: self.device.clone(), patience };
        self.readers.insert(id, reader.clone());
        self.steps.submit(id, request, Box::new(reader));
        self.check_integrity();
        match self.seen(id).pop() {
            Some((_, Event::Refused(refusal))) => Err(*refusal),
            _ => Ok(id),
        }
    }

    /// Ends a request.
    pub fn abort(&mut self, request: RequestId) {
        self.steps.abort(request, engine::AbortReason::Caller);
        self.check_integrity();
    }

    /// Lets a held sequence go.
    pub fn release(&mut self, sequence: SequenceId) {
        self.steps.release(sequence);
        self.check_integrity();
    }

    /// One step, and everything recounted after it.
    pub fn step(&mut self) -> Progress {
        let progress = self.steps.step().expect("the made-up device is never lost");
        self.check_integrity();
        progress
    }

    /// Steps until there is nothing to do.
    pub fn run(&mut self) {
        for _ in 0..1_000_000 {
            if self.step() == Progress::Idle {
                return;
            }
        }
        panic!("a million steps do not end the day");
    }

    /// What a request's reader has seen.
    pub fn seen(&self, request: RequestId) -> Seen {
        self.readers[&request].seen.lock().expect("one thread").clone()
    }

    /// The tokens of one of a request's choices.
    pub fn tokens(&self, request: RequestId, choice: u32) -> Vec<TokenEvent> {
        let tokens = self.seen(request).into_iter().filter_map(|(_, event)| match event {
            Event::Token(token) if token.choice == choice => Some(*token),
            _ => None,
        });
        tokens.collect()
    }

    /// How a request's choices ended, in the order in which they did.
    pub fn finished(&self, request: RequestId) -> Vec<Finished> {
        let ends = self.seen(request).into_iter().filter_map(|(_, event)| match event {
            Event::Finished(finished) => Some(*finished),
            _ => None,
        });
        ends.collect()
    }

    /// The sequences that a request holds.
    pub fn held(&self, request: RequestId) -> Vec<SequenceId> {
        let held = self.seen(request).into_iter().filter_map(|(_, event)| match event {
            Event::Held { sequence, .. } => Some(sequence),
            _ => None,
        });
        held.collect()
    }

    /// The text of one of a request's choices.
    pub fn text(&self, request: RequestId, choice: u32) -> String {
        let mut text: String = self.tokens(request, choice).into_iter().map(|token| token.text).collect();
        text.extend(self.finished(request).into_iter().filter(|end| end.choice == choice).map(|end| end.text));
        text
    }

    /// Takes the plans since the last call, one line each.
    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut *self.trace.lock().expect("one thread"))
    }

    /// Panics unless every row, promise and lane is free, but for what the prefix cache keeps.
    pub fn check_empty(&self) {
        let metrics = self.steps.scheduler.metrics();
        assert_eq!(metrics.free_rows + metrics.cached_rows, metrics.pool_rows, "rows leak: {metrics:?}");
        assert_eq!((metrics.reserved_rows, metrics.held_sequences, metrics.waiting_requests), (0, 0, 0), "{metrics:?}");
        assert_eq!(metrics.lanes_free, metrics.lanes, "lanes leak: {metrics:?}");
        let dram = (metrics.dram_free_rows, metrics.dram_reserved_rows);
        assert_eq!(dram, (metrics.dram_rows, 0), "rows of host memory leak: {metrics:?}");
    }

    fn check_integrity(&self) {
        self.steps.scheduler.check_integrity().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A request of a prompt.
pub fn complete(tokens: Vec<TokenId>, algorithm: u8, max_tokens: usize) -> Request {
    Request::new(Source::Prompt(tokens), attention(algorithm), max_tokens)
}

impl EventSink for Reader {
    fn send(&mut self, event: Event) -> Delivered {
        let mut seen = self.seen.lock().expect("one thread");
        let full = self.patience <= seen.len();
        if !full || matches!(event, Event::Finished(_)) {
            seen.push((engine::Clock::seconds(self.device.as_ref()), event));
        }
        if full { Delivered::Full } else { Delivered::Taken }
    }
}

impl TextStream for Letters {
    fn push(&mut self, token: TokenId) -> String {
        if token == 0 && self.0.skip_special { String::new() } else { letter(token).to_string() }
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

/// A token's text.
pub fn letter(token: TokenId) -> char {
    char::from(b'a' + (token % 26) as u8)
}
