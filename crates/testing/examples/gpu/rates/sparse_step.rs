//! Whole decode steps of Llama-3.1-8B's shape, random weights, many lanes with long contexts: fully resident, and with
//! pages at home in host memory, of which a given share is missed.

use super::Table;
use super::bed::{median, write_noise};
use super::residency::{SPARSE_STEP, wait_for_host};
use super::step::CONFIG;
use backend::{
    AlgorithmId, AlgorithmSet, Backend, FirstInput, HomeDelta, IndexUnits, LaneStart, Retrieved, Runtime, Sampling,
    StepInput, StepKey, StepOutput, Ticket, View,
};
use cuda::CudaBackend;
use kv::{LaneId, PAGE_TOKENS, RowId, Selection, geometry};
use model::{Checkpoint, Decoder, DecoderLimits, Forward, ModelConfig};
use serde_json::json;
use sparse::{Algorithm, AttendBuffers};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use testing::conformance::fixture::Random;

const LANES: usize = 20;

/// Of each lane, before its first step.
const TOKENS: usize = 32_768;

/// Steps after which caches are full.
const WARM: usize = 70;

/// Steps of a round of the clock.
const STEPS: usize = 30;

/// Rounds; the median counts.
const ROUNDS: usize = 5;

/// Steps that a lane may take.
const SLACK: usize = WARM + STEPS * ROUNDS + 8;

/// Rows of host memory. All lanes have their homes among them, each its own pages in its own order.
const HOMES: usize = 8192;

/// Cache rows for each page that a step selects.
const ROWS_A_PAGE: usize = 6;

/// An algorithm whose selections are made up, with an overlap that may change before a graph is recorded.
struct MadeUp {
    inner: Box<dyn Algorithm>,
    overlap: Arc<AtomicU32>,
}

impl Algorithm for MadeUp {
    fn index(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, units: IndexUnits<'_>) {
        self.inner.index(runtime, id, layer, units);
    }

    fn select(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>) {
        self.inner.select(runtime, id, layer, q);
        runtime.made_up_selection(id, layer, f32::from_bits(self.overlap.load(Ordering::Relaxed)));
    }

    fn attend(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>, buffers: &AttendBuffers) {
        self.inner.attend(runtime, id, layer, q, buffers);
    }

    fn estimate(
        &self,
        runtime: &dyn Runtime,
        id: AlgorithmId,
        layer: usize,
        q: View<'_>,
        buffers: &AttendBuffers,
    ) -> bool {
        self.inner.estimate(runtime, id, layer, q, buffers)
    }
}

/// A model and the rows of its lanes.
struct Company {
    runtime: Arc<dyn Runtime>,
    decoder: Decoder,
    overlap: Arc<AtomicU32>,
    /// Rows of the pool that hold noise for every page, which fully resident lanes share.
    shared: Vec<RowId>,
    /// Of each lane: its tail, its summaries, its cache.
    own: Vec<[Vec<RowId>; 3]>,
    graphs: u32,
}

/// One row an algorithm and residency.
pub(crate) fn measure(table: &mut Table<'_>, backend: &Arc<CudaBackend>) {
    if !table.wants(SPARSE_STEP) {
        return;
    }
    let mut company = Company::new(backend);
    for (name, overlap) in [("shadowkv", 0.888), ("sketch", 0.894), ("shadowkv+estimate", 0.888)] {
        let id = company.decoder.algorithms().specs().by_name(name).expect("a known algorithm");
        company.index(id);
        let (resident, _) = company.seconds(id, None);
        let (hitting, none) = company.seconds(id, Some(1.0));
        let (missing, found) = company.seconds(id, Some(overlap));
        let of = |what: &str| format!("{LANES} x {TOKENS}, {name}, {what}");
        let share = |found: Retrieved| 100.0 * found.misses as f64 / (found.hits + found.misses) as f64;
        table.note(SPARSE_STEP, &of("fully resident"), resident);
        table.note(SPARSE_STEP, &of(&format!("in host memory, {:.1} % missed", share(none))), hitting);
        table.note(SPARSE_STEP, &of(&format!("in host memory, {:.1} % missed", share(found))), missing);
        let bytes = found.misses as usize * company.decoder.config().head_dim * 32;
        let link = bytes as f64 / table.link_bytes;
        let ratio = missing / resident.max(link);
        println!("{bytes} bytes over the link, {:.2} ms; {ratio:.3} of the larger", 1e3 * link);
        table.keep(json!({
            "kernel": SPARSE_STEP, "shape": of("summary"), "misses": found.misses, "link_bytes": bytes,
            "link_us": 1e6 * link, "resident_us": 1e6 * resident, "measured_us": 1e6 * missing,
            "of_the_larger": ratio, "exposed_share_of_link": (missing - hitting) / link,
        }));
    }
}

impl Company {
    fn new(backend: &Arc<CudaBackend>) -> Self {
        let config = ModelConfig::from_hugging_face(CONFIG, "config.json", "llama-3.1-8b").expect("the shape is ours");
        let max_tokens = TOKENS + SLACK;
        let limits = DecoderLimits { max_lanes: LANES, max_tokens, prefill_tokens: 1024 };
        let pages = geometry::pages(max_tokens + 1);
        let (tail, summaries, cache) = (SLACK / PAGE_TOKENS + 24, pages / 6 + 2, ROWS_A_PAGE * 64);
        let mut shape = config.runtime_shape(limits, pages + LANES * (tail + summaries + cache));
        shape.dram_rows = HOMES;
        let runtime = backend.runtime(&shape).expect("the runtime fits");
        let mut order = Random(7).order(shape.pool_rows).into_iter().map(|row| RowId(row as u32));
        let mut some = |n: usize| -> Vec<RowId> { order.by_ref().take(n).collect() };
        let shared = some(pages);
        let own = (0..LANES).map(|_| [tail, summaries, cache].map(&mut some)).collect();
        let checkpoint = Checkpoint::random(config, 1);
        let mut decoder = Decoder::load(backend.as_ref(), &checkpoint, limits, &mut |_, _| ()).expect("the model fits");
        let overlap = Arc::new(AtomicU32::new(0));
        decoder.algorithms_mut().replace_each(|inner| Box::new(MadeUp { inner, overlap: overlap.clone() }));
        let company = Company { runtime, decoder, overlap, shared, own, graphs: 0 };
        company.fill(backend, &shape);
        company
    }

    /// Keys and values of noise in the pool and in host memory.
    fn fill(&self, backend: &Arc<CudaBackend>, shape: &backend::RuntimeShape) {
        let staging = backend.staging(shape, TOKENS).expect("staging");
        write_noise(self.runtime.as_ref(), &staging, 3);
        wait_for_host(self.runtime.as_ref(), HOMES);
        let homes: Vec<RowId> = (0..HOMES as u32).map(RowId::dram).collect();
        let tails: Vec<RowId> = self.own.iter().flat_map(|[tail, ..]| tail.iter().copied()).collect();
        for layer in 0..self.decoder.layers() {
            for rows in [&self.shared, &homes, &tails].into_iter().flat_map(|rows| rows.chunks(TOKENS / PAGE_TOKENS)) {
                let tokens = 0..rows.len() * PAGE_TOKENS;
                self.runtime.enqueue(&mut || self.runtime.scatter_layer(&staging, layer, tokens.clone(), rows));
            }
        }
        self.collect(self.runtime.fence());
    }

    fn collect(&self, ticket: Ticket) -> StepOutput {
        self.runtime.collect(ticket).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Summaries of every lane.
    fn index(&self, id: AlgorithmId) {
        let spec = self.decoder.algorithms().specs().get(id);
        let unit = spec.index_unit_tokens;
        let tokens = (0, spec.selection().indexed_tokens(TOKENS + 1) / unit * unit);
        for (layer, [_, summaries, _]) in
            (0..self.decoder.layers()).flat_map(|n| self.own.iter().map(move |own| (n, own)))
        {
            self.runtime.enqueue(&mut || {
                self.decoder.prefill_index(self.runtime.as_ref(), id, layer, &self.shared, summaries, tokens);
            });
        }
        self.collect(self.runtime.fence());
    }

    /// A page's home in host memory.
    fn home(lane: usize, page: usize) -> RowId {
        RowId::dram(((page * 5 + lane * 1613) % HOMES) as u32)
    }

    /// A lane's row table: `cached` pages behind the sink are in host memory.
    fn table(&self, lane: usize, selection: Selection, sparse: bool) -> Vec<RowId> {
        let (cached, mut tail) = (selection.cached_pages(TOKENS + 1), self.own[lane][0].iter());
        let page = |page: usize| match (cached.contains(&page), sparse) {
            (true, true) => Self::home(lane, page),
            (true, false) => self.shared[page],
            (false, _) => *tail.next().expect("a row for each page outside"),
        };
        (0..geometry::pages(TOKENS + SLACK)).map(page).collect()
    }

    fn start(&self, id: AlgorithmId, sparse: bool) {
        let selection = self.decoder.algorithms().specs().get(id).selection();
        let slots = if sparse { ROWS_A_PAGE * selection.selected_pages(TOKENS) } else { 0 };
        for (lane, [_, summaries, cache]) in self.own.iter().enumerate() {
            self.runtime.start_lane(&LaneStart {
                lane: LaneId(lane as u16),
                algorithm: id,
                selection,
                len: TOKENS,
                first: FirstInput::Prompt { token: 1, outputs: 0 },
                kv_rows: self.table(lane, selection, sparse),
                summary_rows: summaries.clone(),
                cache_rows: cache[..slots].to_vec(),
                sampling: Sampling::default(),
                prompt: Vec::new(),
                mask: None,
            });
        }
        self.collect(self.runtime.fence());
    }

    /// Seconds from step to step, two in flight as the engine has them, and what became of a step's pages; with an
    /// overlap of selections, candidates are in host memory. Pages that leave windows change their homes, but are not
    /// copied.
    fn seconds(&mut self, id: AlgorithmId, overlap: Option<f32>) -> (f64, Retrieved) {
        self.overlap.store(overlap.unwrap_or(1.0).to_bits(), Ordering::Relaxed);
        self.graphs += 1;
        let (algorithms, retrieves) = (AlgorithmSet(self.graphs << 8).with(id), overlap.is_some());
        let key = StepKey { bucket: LANES, algorithms, measure_mass: false, retrieves };
        let selection = self.decoder.algorithms().specs().get(id).selection();
        self.start(id, retrieves);
        let (mut len, mut found) = (TOKENS, Retrieved::default());
        let mut launch = || {
            let (before, now) = (selection.cached_end(len.max(TOKENS + 1)), selection.cached_end(len + 1));
            len += 1;
            let leaving = (before..now.max(before)).filter(|_| retrieves);
            let moves = leaving.flat_map(|page| {
                (0..LANES).map(move |lane| HomeDelta { lane: LaneId(lane as u16), page, row: Self::home(lane, page) })
            });
            let active = (0..LANES as u16).map(LaneId).collect();
            let input = StepInput { active, moves: moves.collect(), ..StepInput::default() };
            self.runtime.launch(key, &input, &mut || self.decoder.decode(self.runtime.as_ref(), key))
        };
        let mut run = |steps: usize| {
            found = Retrieved::default();
            let start = Instant::now();
            let mut before = launch();
            let mut add = |output: StepOutput| output.lanes.iter().for_each(|lane| found += lane.retrieved);
            for _ in 1..steps {
                add(self.collect(std::mem::replace(&mut before, launch())));
            }
            add(self.collect(before));
            start.elapsed().as_secs_f64() / steps as f64
        };
        run(WARM);
        let seconds = median((0..ROUNDS).map(|_| run(STEPS)).collect());
        let share = |n: u64| n / STEPS as u64;
        (seconds, Retrieved { hits: share(found.hits), misses: share(found.misses) })
    }
}
