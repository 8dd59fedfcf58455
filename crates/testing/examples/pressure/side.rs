//! One engine, driven step by step in this thread.

use crate::requests::{SEQUENCES, Workload};
use backend::Backend;
use backend::cpu::CpuBackend;
use engine::outbox::{Delivered, EventSink};
use engine::{CostModel, EngineConfig, Event, Metrics, Outbox, RequestId, Scheduler, Steps, SystemClock};
use model::{Decoder, DecoderLimits, Forward, Opened};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use testing::rig::{self, Answer};

/// Seconds of a prefill unit: long ones, so that few steps decode before the last prompt is read.
const UNIT_SECONDS: f64 = 5.0;

/// How many rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// All sequences fully resident.
    Roomy,
    /// K and V of a quarter of them; the rest of everything is host memory's.
    Pressed,
}

/// A running engine and what its readers have seen.
pub(crate) struct Side {
    steps: Steps,
    seen: Vec<Seen>,
}

/// Events of one request.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Event>>>);

impl EventSink for Seen {
    fn send(&mut self, event: Event) -> Delivered {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        Delivered::Taken
    }
}

impl Side {
    /// An engine with all requests in its queue.
    pub(crate) fn start(backend: &CpuBackend, opened: &Opened, workload: &Workload, pool: Pool) -> Self {
        let (config, sizes) = (opened.config(), workload.sizes());
        let max_tokens = sizes.longest;
        let limits = DecoderLimits { max_lanes: SEQUENCES, max_tokens, prefill_tokens: max_tokens };
        let decoder = Decoder::load(backend, &opened.checkpoint, limits, &mut |_, _| ()).expect("it loads");
        let pool_rows = match pool {
            Pool::Roomy => sizes.kv_rows + sizes.summary_rows,
            Pool::Pressed => sizes.pressed_rows,
        };
        let mut shape = config.runtime_shape(limits, pool_rows);
        shape.dram_rows = sizes.kv_rows;
        let runtime = backend.runtime(&shape).expect("the runtime fits");
        let engine_config = EngineConfig {
            max_lanes: SEQUENCES,
            prefill_tokens: max_tokens,
            unit_seconds: UNIT_SECONDS,
            decode_share: 0.0,
            dram_rows: shape.dram_rows,
            cost: CostModel::conservative(config.layer_parameters(), config.q_columns()),
            ..EngineConfig::new(pool_rows, sizes.row_bytes as u64, max_tokens, config.vocab_size)
        };
        let scheduler = Scheduler::new(engine_config, workload.algorithms.clone(), decoder.layers());
        let clock = Arc::new(SystemClock::new());
        let mut steps = Steps::new(scheduler, Outbox::new(None), runtime, Arc::new(decoder), clock);
        let seen: Vec<Seen> = workload.requests.iter().map(|_| Seen::default()).collect();
        for (i, (request, seen)) in workload.requests.iter().zip(&seen).enumerate() {
            steps.submit(RequestId(i as u64), request.clone(), Box::new(seen.clone()));
        }
        Side { steps, seen }
    }

    /// Goes on until every sequence decodes.
    pub(crate) fn read_prompts(&mut self) {
        while self.metrics().running_sequences < SEQUENCES {
            self.step();
            assert_eq!(self.metrics().finished_requests_total, 0, "the first has ended before the last has begun");
        }
    }

    /// So many decode steps, of all sequences each; the seconds that they took.
    pub(crate) fn decode(&mut self, steps: usize) -> f64 {
        let (before, start) = (self.metrics().decode_tokens_total, Instant::now());
        (0..steps).for_each(|_| self.step());
        let seconds = start.elapsed().as_secs_f64();
        let after = self.metrics();
        assert_eq!(after.decode_tokens_total - before, (steps * SEQUENCES) as u64, "a token a sequence and step");
        assert_eq!(after.running_sequences, SEQUENCES, "all of them run on");
        seconds
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.steps.metrics()
    }

    /// Goes on to the end; every answer.
    pub(crate) fn finish(mut self) -> Vec<Answer> {
        while self.metrics().finished_requests_total < SEQUENCES as u64 {
            self.step();
        }
        let events = |seen: &Seen| std::mem::take(&mut *seen.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.seen.iter().map(events).map(rig::wait).collect()
    }

    fn step(&mut self) {
        self.steps.step().expect("the device is there");
    }
}
