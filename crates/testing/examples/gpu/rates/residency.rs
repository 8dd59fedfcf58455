//! Resolve, Retrieve and copies of rows: lanes whose pages are at home in host memory, with selections made up so that
//! a given share of them is missed.
//!
//! Resolve leaves a list that Retrieve empties, and pages that are there the second time. So a graph has one of each a
//! layer, and what they take is what graphs with and without them differ by.

use super::bed::{D, KV_HEADS, Q_HEADS, median, write_noise};
use super::{Table, Work};
use backend::{
    AlgorithmId, AlgorithmSet, Backend, Buffer, FirstInput, LaneStart, Retrieved, Rope, RowCopy, Runtime, RuntimeShape,
    SampleTarget, Sampling, StepInput, StepKey, VectorSummary,
};
use cuda::CudaBackend;
use kv::bucketed_lru::Eviction;
use kv::{Geometry, LaneId, RowId, Selection, geometry};
use sparse::Specs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testing::conformance::fixture::Random;

/// Lanes; with the KV heads, 160 pairs.
const LANES: usize = 20;

/// Layers of a graph.
const LAYERS: usize = 12;

/// Tokens of each lane.
const TOKENS: usize = 131_072;

/// Steps that a lane may take while the clock runs.
const SLACK: usize = 1024;

/// Cache rows of each lane.
const SLOTS: usize = 1536;

/// Rows of host memory: lanes' homes are among them in turn.
const HOMES: usize = 1024;

/// Rows of the pool with noise, which lanes share as summaries.
const SUMMARIES: usize = TOKENS / 128 + 8;

/// The measurement that sets a step's time against its bytes over the link.
pub(crate) const SPARSE_STEP: &str = "sparse step";

/// Steps after which caches are full.
const WARM: usize = 80;

/// Steps of the clock.
const STEPS: usize = 24;

const VOCAB: usize = 512;

/// Where lanes' cache rows are in the pool.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Contiguous,
    Scattered,
}

/// What a graph has for each layer.
#[derive(Clone, Copy, PartialEq)]
enum Ops {
    Selection,
    Resolve,
    Retrieve,
}

/// A runtime of lanes with caches.
struct Shelf {
    runtime: Arc<dyn Runtime>,
    q: Buffer,
    logits: Buffer,
    algorithm: AlgorithmId,
    selection: Selection,
    graphs: u32,
}

/// One row an op and setting.
pub(crate) fn measure(table: &mut Table<'_>, backend: &Arc<CudaBackend>) {
    if !["resolve", "retrieve", "copy_rows", SPARSE_STEP].iter().any(|op| table.wants(op)) {
        return;
    }
    for (eviction, name) in
        [(Eviction::FadingScore, "fading score"), (Eviction::Score, "score"), (Eviction::Age, "age")]
    {
        if eviction != Eviction::FadingScore && !table.wants("resolve") {
            continue;
        }
        let mut shelf = Shelf::new(backend, eviction);
        for (order, how) in [(Order::Contiguous, "rows side by side"), (Order::Scattered, "rows scattered")] {
            for overlap in [0.89, 0.44] {
                shelf.resolve(table, order, overlap, &format!("by {name}, {how}"));
            }
        }
        if eviction == Eviction::FadingScore {
            // About 4,096 and 1,024 pages a layer are missed.
            for budget in [0.0156, 0.0039] {
                shelf.retrieve(table, budget);
            }
            shelf.copy_rows(table);
        }
    }
}

/// Waits until so many rows of host memory are there.
pub(crate) fn wait_for_host(runtime: &dyn Runtime, rows: usize) {
    while runtime.dram_rows() < rows {
        assert!(runtime.dram_grows(), "the system refuses to pin memory");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Shelf {
    fn new(backend: &Arc<CudaBackend>, eviction: Eviction) -> Self {
        let geometry = Geometry { layers: LAYERS, kv_heads: KV_HEADS, head_dim: D };
        let shape = RuntimeShape {
            geometry,
            q_heads: Q_HEADS,
            vocab: VOCAB,
            pool_rows: SUMMARIES + LANES * SLOTS,
            dram_rows: HOMES,
            eviction,
            max_lanes: LANES,
            max_tokens: TOKENS + SLACK,
            rope: Rope { inv_freq: vec![1.0; D / 2], attention_factor: 1.0 },
        };
        let runtime = backend.runtime(&shape).unwrap_or_else(|error| panic!("{error}"));
        let specs = Specs::of(geometry);
        let algorithm = specs.by_name("shadowkv").expect("a known algorithm");
        let selection = specs.get(algorithm).selection();
        let q = backend.product_buffer("a test", LANES, Q_HEADS * D).expect("a buffer");
        let logits = backend.buffer("a test", LANES, VOCAB).expect("a buffer");
        let tokens = SUMMARIES * kv::PAGE_TOKENS;
        let staging = backend.staging(&shape, tokens).expect("staging");
        for (buffer, seed) in [(&q, 1), (&logits, 2), (&staging, 3)] {
            write_noise(runtime.as_ref(), buffer, seed);
        }
        wait_for_host(runtime.as_ref(), HOMES);
        let shelf = Shelf { runtime, q, logits, algorithm, selection, graphs: 0 };
        for layer in 0..LAYERS {
            let rows: Vec<RowId> = (0..SUMMARIES as u32).map(RowId).collect();
            shelf.runtime.enqueue(&mut || shelf.runtime.scatter_layer(&staging, layer, 0..tokens, &rows));
            let homes: Vec<RowId> = (0..SUMMARIES.min(HOMES) as u32).map(RowId::dram).collect();
            let tokens = homes.len() * kv::PAGE_TOKENS;
            shelf.runtime.enqueue(&mut || shelf.runtime.scatter_layer(&staging, layer, 0..tokens, &homes));
        }
        shelf.wait();
        shelf
    }

    fn wait(&self) {
        self.runtime.collect(self.runtime.fence()).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Puts all lanes at their length, their caches empty.
    fn start(&self, order: Order) {
        let mut slots: Vec<usize> = match order {
            Order::Contiguous => (0..LANES * SLOTS).collect(),
            Order::Scattered => Random(7).order(LANES * SLOTS),
        };
        for lane in 0..LANES {
            let homes = (0..geometry::pages(TOKENS + SLACK)).map(|page| RowId::dram((page % HOMES) as u32));
            let cache_rows = slots.drain(..SLOTS).map(|slot| RowId((SUMMARIES + slot) as u32));
            self.runtime.start_lane(&LaneStart {
                lane: LaneId(lane as u16),
                algorithm: self.algorithm,
                selection: self.selection,
                len: TOKENS,
                first: FirstInput::Prompt { token: 1, outputs: 0 },
                kv_rows: homes.collect(),
                summary_rows: (0..SUMMARIES as u32).map(RowId).collect(),
                cache_rows: cache_rows.collect(),
                sampling: Sampling::default(),
                prompt: Vec::new(),
                mask: None,
            });
        }
        self.wait();
    }

    /// The median of steps with some ops, and what one of them found.
    fn steps(&mut self, ops: Ops, overlap: f32, count: usize) -> (f64, Retrieved) {
        self.graphs += 1;
        let algorithms = AlgorithmSet(self.graphs << 8).with(self.algorithm);
        let key = StepKey { bucket: LANES, algorithms, measure_mass: false, retrieves: true };
        let input = StepInput { active: (0..LANES as u16).map(LaneId).collect(), ..StepInput::default() };
        let (runtime, id) = (self.runtime.as_ref(), self.algorithm);
        let mut record = || {
            runtime.score_dot(id, 0, (&self.q).into(), VectorSummary::MeanKey);
            runtime.group_reduce(id);
            runtime.topk(id);
            for layer in 0..LAYERS {
                runtime.made_up_selection(id, layer, overlap);
                if ops != Ops::Selection {
                    runtime.resolve(id, layer);
                }
                if ops == Ops::Retrieve {
                    runtime.retrieve(id, layer);
                }
            }
            runtime.sample((&self.logits).into(), SampleTarget::Lanes);
        };
        let mut total = Retrieved::default();
        let mut step = || {
            let start = Instant::now();
            let ticket = runtime.launch(key, &input, &mut record);
            let output = runtime.collect(ticket).unwrap_or_else(|error| panic!("{error}"));
            let seconds = start.elapsed().as_secs_f64();
            output.lanes.iter().for_each(|lane| total += lane.retrieved);
            if ops == Ops::Resolve {
                runtime.enqueue(&mut || runtime.retrieve(id, 0));
                runtime.collect(runtime.fence()).unwrap_or_else(|error| panic!("{error}"));
            }
            seconds
        };
        let seconds = median((0..count).map(|_| step()).collect());
        let share = |n: u64| n / count as u64;
        (seconds, Retrieved { hits: share(total.hits), misses: share(total.misses) })
    }

    fn resolve(&mut self, table: &mut Table<'_>, order: Order, overlap: f32, what: &str) {
        if !table.wants("resolve") {
            return;
        }
        self.start(order);
        // The first step's misses of all layers together do not fit the list.
        self.steps(Ops::Retrieve, overlap, WARM);
        let (with, found) = self.steps(Ops::Resolve, overlap, STEPS);
        let (without, _) = self.steps(Ops::Selection, overlap, STEPS);
        let selected = (found.hits + found.misses) as f64;
        let share = 100.0 * found.misses as f64 / selected;
        let k = selected / (LAYERS * LANES * KV_HEADS) as f64;
        let shape = format!("{} pairs, k {k:.0}, {SLOTS} slots, {what}, {share:.1} % missed", LANES * KV_HEADS);
        let work = Work::bytes(LANES * KV_HEADS * SLOTS * 10);
        table.add("resolve", &shape, work, (with - without) / LAYERS as f64);
    }

    fn retrieve(&mut self, table: &mut Table<'_>, budget: f64) {
        if !table.wants("retrieve") && !table.wants(SPARSE_STEP) {
            return;
        }
        let overlap = 0.89;
        self.selection.budget = budget;
        self.start(Order::Scattered);
        self.steps(Ops::Retrieve, overlap, WARM);
        let (with, found) = self.steps(Ops::Retrieve, overlap, STEPS);
        let (without, _) = self.steps(Ops::Resolve, overlap, STEPS);
        let (pages, seconds) = (found.misses as usize / LAYERS, (with - without) / LAYERS as f64);
        table.link_bytes = table.over_link("retrieve", &format!("{pages} pages"), pages * D * 32, seconds);
    }

    fn copy_rows(&self, table: &mut Table<'_>) {
        if !table.wants("copy_rows") {
            return;
        }
        let rows = 256;
        let bytes = rows * LAYERS * KV_HEADS * D * 32;
        let copies = |source: fn(u32) -> RowId, target: fn(u32) -> RowId| -> Vec<RowCopy> {
            (0..rows as u32).map(|n| RowCopy { source: source(3 * n), target: target(3 * n + 1) }).collect()
        };
        for (what, copies) in
            [("pool to host", copies(RowId, RowId::dram)), ("host to pool", copies(RowId::dram, RowId))]
        {
            let run = || {
                let start = Instant::now();
                self.runtime.copy_rows(&copies);
                self.wait();
                start.elapsed().as_secs_f64()
            };
            run();
            let seconds = median((0..STEPS).map(|_| run()).collect());
            table.over_link("copy_rows", &format!("{rows} rows, {what}"), bytes, seconds);
        }
    }
}
