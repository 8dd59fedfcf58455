//! A runtime with lanes of random keys and values, and the clock.

use backend::{
    AlgorithmId, AlgorithmSet, Backend, Buffer, FirstInput, LaneStart, Partial, Rope, Runtime, RuntimeShape, Sampling,
    StepInput, StepKey,
};
use cuda::CudaBackend;
use kv::{Geometry, LaneId, RowId, Selection, geometry};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use testing::conformance::fixture::Random;

/// Llama-3.1-8B's query heads.
pub(crate) const Q_HEADS: usize = 32;

/// Its KV heads.
pub(crate) const KV_HEADS: usize = 8;

/// Its head size.
pub(crate) const D: usize = 128;

/// Its vocabulary.
pub(crate) const VOCAB: usize = 128_256;

/// Tokens that lanes may grow by while the clock runs.
const SLACK: usize = 512;

/// Seconds that a graph lasts at least, so that its launch does not count.
const GRAPH_SECONDS: f64 = 4e-3;

/// Seconds of a round of the clock.
const ROUND_SECONDS: f64 = 0.05;

/// Rounds; the median counts.
const ROUNDS: usize = 5;

/// Elements after which noise repeats.
const NOISE_PERIOD: usize = 4_194_301;

/// What a measurement needs to have run before it.
pub(crate) type Prepare<'a> = Option<&'a (dyn Fn() + Sync)>;

/// Most repetitions of a kernel in a graph.
const REPETITIONS_MAX: usize = 1024;

/// What a bed is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BedSpec {
    /// Layers: repetitions of a kernel take them in turn.
    pub(crate) layers: usize,
    /// Lanes.
    pub(crate) lanes: usize,
    /// Tokens of each.
    pub(crate) tokens: usize,
    /// Whether lanes have rows for summaries.
    pub(crate) summaries: bool,
}

impl BedSpec {
    /// Where the pool does not matter.
    pub(crate) const SMALL: BedSpec = BedSpec { layers: 1, lanes: 1, tokens: 8, summaries: false };
}

/// A runtime and its lanes.
pub(crate) struct Bed {
    pub(crate) backend: Arc<CudaBackend>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) shape: RuntimeShape,
    pub(crate) spec: BedSpec,
    /// KV and summary rows of every lane.
    pub(crate) tables: Vec<[Vec<RowId>; 2]>,
    lanes: Mutex<Lanes>,
}

/// How every lane starts.
#[derive(Clone, Copy, Debug)]
struct Lanes {
    algorithm: AlgorithmId,
    selection: Selection,
    /// Temperature and top_p; greedy, where there are none.
    sampling: Option<(f32, f32)>,
    /// Graphs so far.
    graphs: u32,
}

impl Bed {
    /// Allocates; keys and values are zeros.
    pub(crate) fn new(backend: &Arc<CudaBackend>, spec: BedSpec) -> Self {
        let max_tokens = spec.tokens + SLACK;
        let pages = geometry::pages(max_tokens + 1);
        // A row of means holds 8 pages at least, one of codes 6.
        let summaries = if spec.summaries { pages / 6 + 2 } else { 0 };
        let half = D / 2;
        let shape = RuntimeShape {
            geometry: Geometry { layers: spec.layers, kv_heads: KV_HEADS, head_dim: D },
            q_heads: Q_HEADS,
            vocab: VOCAB,
            pool_rows: spec.lanes * (pages + summaries),
            dram_rows: 0,
            eviction: kv::bucketed_lru::Eviction::Score,
            max_lanes: spec.lanes,
            max_tokens,
            rope: Rope {
                inv_freq: (0..half).map(|i| 5e5_f64.powf(-(i as f64) / half as f64)).collect(),
                attention_factor: 1.0,
            },
        };
        let runtime = backend.runtime(&shape).unwrap_or_else(|error| panic!("{spec:?}: {error}"));
        // Rows in a random order: what a pool looks like after hours.
        let mut order = Random(7).order(shape.pool_rows).into_iter().map(|row| RowId(row as u32));
        let tables = (0..spec.lanes).map(|_| [pages, summaries].map(|n| order.by_ref().take(n).collect())).collect();
        let dense = Selection::dense();
        let lanes = Lanes { algorithm: AlgorithmId(0), selection: dense, sampling: None, graphs: 0 };
        Bed { backend: backend.clone(), runtime, shape, spec, tables, lanes: Mutex::new(lanes) }
    }

    /// Random keys and values in every row: each lane has the same, in every layer.
    pub(crate) fn fill(&self) {
        let staging = self.backend.staging(&self.shape, self.spec.tokens).expect("staging");
        self.write(&staging, 1);
        for [kv_rows, _] in &self.tables {
            for layer in 0..self.spec.layers {
                let all = 0..self.spec.tokens;
                self.runtime.enqueue(&mut || self.runtime.scatter_layer(&staging, layer, all.clone(), kv_rows));
            }
        }
        self.wait();
    }

    /// See [`write_noise`].
    pub(crate) fn write(&self, buffer: &Buffer, seed: u64) {
        write_noise(self.runtime.as_ref(), buffer, seed);
    }

    /// A product buffer of noise.
    pub(crate) fn noise(&self, rows: usize, cols: usize, seed: u64) -> Buffer {
        let buffer = self.backend.product_buffer("a test", rows, cols).expect("a buffer");
        self.write(&buffer, seed);
        buffer
    }

    /// A product buffer of zeros.
    pub(crate) fn product(&self, rows: usize, cols: usize) -> Buffer {
        self.backend.product_buffer("a test", rows, cols).expect("a buffer")
    }

    /// A full buffer of noise.
    pub(crate) fn full_noise(&self, rows: usize, cols: usize, seed: u64) -> Buffer {
        let buffer = self.backend.buffer("a test", rows, cols).expect("a buffer");
        self.write(&buffer, seed);
        buffer
    }

    /// A partial for every lane.
    pub(crate) fn partial(&self) -> Partial {
        let lanes = self.spec.lanes;
        let buffer = |cols| self.backend.buffer("a test", lanes, cols).expect("a buffer");
        Partial { output: buffer(Q_HEADS * D), lse: buffer(Q_HEADS) }
    }

    /// From now on, lanes run this algorithm.
    pub(crate) fn set(&self, algorithm: AlgorithmId, selection: Selection) {
        let mut lanes = self.lanes();
        (lanes.algorithm, lanes.selection) = (algorithm, selection);
    }

    /// From now on, lanes sample with this temperature and top_p; greedily, where there is none.
    pub(crate) fn set_sampling(&self, sampling: Option<(f32, f32)>) {
        self.lanes().sampling = sampling;
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().expect("no measurement panicked")
    }

    fn start_lanes(&self) {
        let Lanes { algorithm, selection, sampling, .. } = *self.lanes();
        for (lane, [kv_rows, summary_rows]) in self.tables.iter().enumerate() {
            let sampling = match sampling {
                Some((temperature, top_p)) => Sampling { temperature, top_p, seed: 3, ..Sampling::default() },
                None => Sampling::default(),
            };
            self.runtime.start_lane(&LaneStart {
                lane: Bed::lane(lane),
                algorithm,
                selection,
                len: self.spec.tokens - 1,
                first: FirstInput::Prompt { token: 1, outputs: 0 },
                kv_rows: kv_rows.clone(),
                summary_rows: summary_rows.clone(),
                cache_rows: Vec::new(),
                sampling,
                prompt: Vec::new(),
                mask: None,
            });
        }
    }

    fn wait(&self) {
        self.runtime.collect(self.runtime.fence()).unwrap_or_else(|error| panic!("{error}"));
    }

    /// A key of the lanes' algorithm that no graph has: bits above the algorithms' tell graphs apart.
    fn next_key(&self) -> StepKey {
        let mut lanes = self.lanes();
        lanes.graphs += 1;
        let algorithms = AlgorithmSet(lanes.graphs << 8).with(lanes.algorithm);
        StepKey { bucket: self.spec.lanes, algorithms, measure_mass: false, retrieves: false }
    }

    /// A lane's name.
    pub(crate) fn lane(number: usize) -> LaneId {
        LaneId(number as u16)
    }

    /// One step of some lanes, which begins where they do.
    pub(crate) fn step(&self, lanes: &[usize], record: &(dyn Fn() + Sync)) {
        self.start_lanes();
        let input = StepInput { active: lanes.iter().map(|lane| Bed::lane(*lane)).collect(), ..StepInput::default() };
        let ticket = self.runtime.launch(self.next_key(), &input, &mut || record());
        self.runtime.collect(ticket).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Seconds of a repetition of `record` in a captured graph; `floor` is about what one takes. `prepare` runs in a
    /// step of its own before, and leaves what `record` reads.
    pub(crate) fn step_seconds(&self, floor: f64, prepare: Prepare<'_>, record: &(dyn Fn(usize) + Sync)) -> f64 {
        let repetitions = ((GRAPH_SECONDS / floor.max(1e-9)) as usize).clamp(2 * self.spec.layers, REPETITIONS_MAX);
        let active = (0..self.spec.lanes).map(Bed::lane).collect();
        let input = StepInput { active, ..StepInput::default() };
        let collect = |ticket| self.runtime.collect(ticket).unwrap_or_else(|error| panic!("{error}"));
        self.start_lanes();
        if let Some(prepare) = prepare {
            collect(self.runtime.launch(self.next_key(), &input, &mut || prepare()));
        }
        let key = self.next_key();
        let launch = || self.runtime.launch(key, &input, &mut || (0..repetitions).for_each(record));
        let run = |launches: usize| {
            self.start_lanes();
            self.wait();
            let start = Instant::now();
            let mut before = launch();
            for _ in 1..launches {
                collect(std::mem::replace(&mut before, launch()));
            }
            collect(before);
            start.elapsed().as_secs_f64()
        };
        run(2);
        let launches = ((ROUND_SECONDS / run(1)) as usize).clamp(3, SLACK / 2);
        median((0..ROUNDS).map(|_| run(launches) / (launches * repetitions) as f64).collect())
    }

    /// Seconds of a call of `record` outside a step.
    pub(crate) fn unit_seconds(&self, floor: f64, record: &(dyn Fn(usize) + Sync)) -> f64 {
        let calls = ((ROUND_SECONDS / floor.max(1e-9)) as usize).clamp(2, 200);
        let run = || {
            let start = Instant::now();
            self.runtime.enqueue(&mut || (0..calls).for_each(record));
            self.wait();
            start.elapsed().as_secs_f64()
        };
        run();
        median((0..ROUNDS).map(|_| run() / calls as f64).collect())
    }
}

/// Uniform noise of deviation 1 in a buffer; its period is a prime, so that no two heads' vectors are alike.
pub(crate) fn write_noise(runtime: &dyn Runtime, buffer: &Buffer, seed: u64) {
    let (mut random, count) = (Random(seed), buffer.rows() * buffer.cols());
    let element = |_| ((random.bits() >> 40) as f32 / 8_388_608.0 - 1.0) * 1.732;
    let period: Vec<f32> = (0..count.min(NOISE_PERIOD)).map(element).collect();
    let elements: Vec<f32> = period.iter().copied().cycle().take(count).collect();
    runtime.write(buffer, &elements);
}

/// The middle one.
pub(crate) fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
