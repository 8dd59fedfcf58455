//! Lanes with random keys and values, the data beside them, and ways to run selection ops over them.

use super::MakeBackend;
use super::fixture::{Random, bits};
use super::heads::Heads;
use super::precision::{Precision, array, as_products, rounds_products};
use backend::sketch::SketchFrame;
use backend::{
    AlgorithmId, AlgorithmSet, Backend, Buffer, EstimateSource, HomeDelta, IndexUnits, LaneOutput, LaneStart,
    PageSource, Partial, Rope, Rotations, Runtime, RuntimeShape, SampleTarget, Sampling, StepInput, StepKey, Tensor,
    TensorData, VectorSummary, View, Weight, WeightPart, WeightRole,
};
use half::{bf16, f16};
use kv::bucketed_lru::Eviction;
use kv::selection::Selected;
use kv::{Geometry, LaneId, PAGE_TOKENS, RowId, Selection, geometry};
use std::sync::Arc;

/// The layer under test, of two.
pub const LAYER: usize = 1;

/// Lanes of this algorithm are scored by mean keys, units of 8.
pub const MEANS: AlgorithmId = AlgorithmId(1);

/// Lanes of this algorithm are scored by codes, units of 48.
pub const CODES: AlgorithmId = AlgorithmId(4);

/// Tokens of the vocabulary.
const VOCAB: usize = 16;

/// A selection for tests: no lower limits, a window of 10 tokens.
pub fn selection(index_unit_tokens: usize, budget: f64) -> Selection {
    Selection { index_unit_tokens, sink_tokens: 8, window_tokens: 10, budget, floor_tokens: 0, min_context: 0 }
}

/// A lane as it will be in its step: `len` with the step's token included.
#[derive(Clone)]
pub struct RigLane {
    /// Its number.
    pub lane: LaneId,
    /// Whose ops serve it.
    pub algorithm: AlgorithmId,
    /// Which pages it selects.
    pub selection: Selection,
    /// Tokens in rows.
    pub len: usize,
    /// KV row table.
    pub kv_rows: Vec<RowId>,
    /// Summary row table, one row for every page: enough for any form.
    pub summary_rows: Vec<RowId>,
    /// Keys in bf16, `[kv_heads][len][d]`.
    pub keys: Vec<f32>,
    /// Values in bf16, `[kv_heads][len][d]`.
    pub values: Vec<f32>,
}

/// What a rig is made of.
#[derive(Clone, Debug)]
pub struct RigSpec {
    /// Its heads.
    pub heads: Heads,
    /// Algorithm, selection and length of each lane.
    pub lanes: Vec<(AlgorithmId, Selection, usize)>,
    /// Of the data.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
}

/// A runtime with lanes.
pub struct Rig {
    /// Memory and weights.
    pub backend: Arc<dyn Backend>,
    /// The ops.
    pub runtime: Arc<dyn Runtime>,
    /// Layers, heads, head size.
    pub geometry: Geometry,
    /// Query heads.
    pub q_heads: usize,
    /// The lanes, ascending: lane `i` is row `i` of the step's buffers.
    pub lanes: Vec<RigLane>,
    /// Rows of the pool that nobody has: with host memory there are some.
    pub spare_rows: Vec<RowId>,
    /// Queries `[lanes, q_heads d]`.
    pub q: Buffer,
    /// The same, here.
    pub queries: Vec<f32>,
    /// `[kv_heads, d, d]`, for keys and values.
    pub rotations: [Weight; 2],
    /// The same, here.
    pub rotation_elements: [Vec<f32>; 2],
    /// Whether the backend's products take bf16.
    pub rounds_products: bool,
}

impl Rig {
    /// Random keys, values and queries in rows, and lanes that are one token short of their lengths.
    pub fn new(make: MakeBackend<'_>, spec: &RigSpec) -> Self {
        Self::build(make, spec, None)
    }

    /// The same, with host memory behind the pool, and rows of the pool to spare.
    pub fn with_host(make: MakeBackend<'_>, spec: &RigSpec, eviction: Eviction) -> Self {
        Self::build(make, spec, Some(eviction))
    }

    fn build(make: MakeBackend<'_>, spec: &RigSpec, host: Option<Eviction>) -> Self {
        let backend = make.backend(spec.threads);
        let (d, heads, q_heads) = (spec.heads.head_dim, spec.heads.kv_heads, spec.heads.q_heads());
        let geometry = Geometry { layers: 2, kv_heads: heads, head_dim: d };
        let longest = spec.lanes.iter().map(|(_, _, len)| *len).max().expect("a rig has lanes");
        let pages: usize = spec.lanes.iter().map(|(_, _, len)| 2 * geometry::pages(*len)).sum();
        let shape = RuntimeShape {
            geometry,
            q_heads,
            vocab: VOCAB,
            pool_rows: if host.is_some() { 3 * pages + 1 } else { pages + 1 },
            dram_rows: if host.is_some() { 2 * pages + 1200 } else { 0 },
            eviction: host.unwrap_or_default(),
            max_lanes: 2 * spec.lanes.len() + 1,
            max_tokens: longest + 1,
            rope: Rope { inv_freq: vec![1.0; d / 2], attention_factor: 1.0 },
        };
        let runtime = backend.runtime(&shape).expect("the rig's runtime fits");
        let mut random = Random(spec.seed);
        let mut rows = (0..pages as u32 + 1).rev().map(RowId);
        let spare_rows = (pages as u32 + 1..shape.pool_rows as u32).map(RowId).collect();
        let mut bf16s = |n: usize| -> Vec<f32> { (0..n).map(|_| bf16::from_f32(random.normal()).to_f32()).collect() };
        let lanes = spec.lanes.iter().enumerate().map(|(i, (algorithm, selection, len))| RigLane {
            lane: LaneId(2 * i as u16 + 1),
            algorithm: *algorithm,
            selection: *selection,
            len: *len,
            kv_rows: rows.by_ref().take(geometry::pages(*len)).collect(),
            summary_rows: rows.by_ref().take(geometry::pages(*len)).collect(),
            keys: bf16s(heads * len * d),
            values: bf16s(heads * len * d),
        });
        let lanes: Vec<RigLane> = lanes.collect();
        let queries = random.normals(lanes.len() * q_heads * d, 1.0);
        let queries = as_products(backend.as_ref(), runtime.as_ref(), &queries);
        let q = array(backend.as_ref(), Precision::Product, lanes.len(), q_heads * d);
        runtime.write(&q, &queries);
        let rounds_products = rounds_products(backend.as_ref(), runtime.as_ref());
        // Heads too small for the sketch get rotations that nobody uses.
        let wide = d.max(SketchFrame::HEAD_DIM_LEAST);
        let elements = sparse::default_rotation(wide);
        // Keys and values are rotated differently, and every head by a matrix of its own: rows in another order.
        let permuted = |by: usize| -> Vec<f32> {
            let row = |head: usize, c: usize| (c * 5 + head * 3 + by) % wide;
            (0..heads * wide).flat_map(|at| elements[row(at / wide, at % wide) * wide..][..wide].to_vec()).collect()
        };
        let rotation_elements = match wide.is_multiple_of(5) {
            true => [elements.repeat(heads), elements.repeat(heads)],
            false => [permuted(0), permuted(7)],
        };
        let rotations = rotation_elements
            .clone()
            .map(|elements| rotation(backend.as_ref(), Geometry { head_dim: wide, ..geometry }, elements));
        let rig = Rig {
            backend,
            runtime,
            geometry,
            q_heads,
            lanes,
            spare_rows,
            q,
            queries,
            rotations,
            rotation_elements,
            rounds_products,
        };
        rig.write_rows();
        rig.start();
        rig
    }

    /// Writes keys and values of every lane to its rows.
    pub fn write_rows(&self) {
        let d = self.geometry.head_dim;
        for lane in &self.lanes {
            for (page, row) in lane.kv_rows.iter().enumerate() {
                for head in 0..self.geometry.kv_heads {
                    let mut frame = vec![bf16::ZERO; self.geometry.frame_elements()];
                    for t in 0..PAGE_TOKENS.min(lane.len - page * PAGE_TOKENS) {
                        let from = (head * lane.len + page * PAGE_TOKENS + t) * d;
                        for c in 0..d {
                            frame[t * d + c] = bf16::from_f32(lane.keys[from + c]);
                            frame[(PAGE_TOKENS + t) * d + c] = bf16::from_f32(lane.values[from + c]);
                        }
                    }
                    let bytes: Vec<u8> = frame.iter().flat_map(|x| x.to_le_bytes()).collect();
                    self.runtime.write_frame(*row, LAYER, head, &bytes);
                }
            }
        }
    }

    /// Puts every lane (again) one token before its length.
    pub fn start(&self) {
        for lane in &self.lanes {
            self.start_at(lane, lane.len - 1);
        }
    }

    /// Puts a lane at a length, with all its rows.
    pub fn start_at(&self, lane: &RigLane, len: usize) {
        self.runtime.start_lane(&LaneStart {
            lane: lane.lane,
            algorithm: lane.algorithm,
            selection: lane.selection,
            len,
            first: backend::FirstInput::Prompt { token: 0, outputs: 0 },
            kv_rows: lane.kv_rows.clone(),
            summary_rows: lane.summary_rows.clone(),
            cache_rows: Vec::new(),
            sampling: Sampling::default(),
            prompt: Vec::new(),
            mask: None,
        });
    }

    /// One step of every lane; its output is dropped.
    pub fn step(&self, record: impl Fn(&dyn Runtime) + Sync) {
        let active: Vec<LaneId> = self.lanes.iter().map(|lane| lane.lane).collect();
        let algorithms = AlgorithmSet::default().with(MEANS).with(CODES);
        let key = StepKey { bucket: active.len(), algorithms, measure_mass: false, retrieves: false };
        let input = StepInput { active, ..StepInput::default() };
        let ticket = self.runtime.launch(key, &input, &mut || record(self.runtime.as_ref()));
        self.runtime.collect(ticket).expect("the device works");
    }

    /// Waits until host memory is there.
    pub fn wait_for_host(&self) {
        while self.runtime.dram_grows() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// One step of every lane, in which they select, fetch, and draw from logits that are all the same. What runs
    /// directly behind `retrieve`, which may run beside it, gives what it gives once everything is there: a device
    /// whose products round may add pages in another order.
    pub fn retrieving_step(&self, moves: &[HomeDelta]) -> Vec<LaneOutput> {
        let active: Vec<LaneId> = self.lanes.iter().map(|lane| lane.lane).collect();
        let algorithms = AlgorithmSet::default().with(MEANS).with(CODES);
        let key = StepKey { bucket: active.len(), algorithms, measure_mass: false, retrieves: true };
        let logits = self.backend.buffer("logits", active.len(), VOCAB).expect("a buffer fits");
        let input = StepInput { active, moves: moves.to_vec(), ..StepInput::default() };
        let (attended, estimated) = ([0, 1].map(|_| self.partial()), [0, 1].map(|_| self.partial()));
        let source = EstimateSource::Codes { value_rotation: &self.rotations[1] };
        let ticket = self.runtime.launch(key, &input, &mut || {
            self.runtime.score_dot(MEANS, LAYER, self.q(), VectorSummary::MeanKey);
            self.runtime.score_codes(CODES, LAYER, self.q(), &self.rotations[0]);
            for algorithm in [CODES, MEANS] {
                self.runtime.group_reduce(algorithm);
                self.runtime.topk(algorithm);
                self.runtime.resolve(algorithm, LAYER);
                self.runtime.retrieve(algorithm, LAYER);
                if algorithm == CODES {
                    self.runtime.estimate(CODES, LAYER, source, self.q(), &estimated[0]);
                }
                for out in &attended {
                    self.runtime.attend(algorithm, LAYER, PageSource::PageList, self.q(), out);
                }
            }
            self.runtime.estimate(CODES, LAYER, source, self.q(), &estimated[1]);
            self.runtime.sample((&logits).into(), SampleTarget::Lanes);
        });
        let lanes = self.runtime.collect(ticket).expect("the device works").lanes;
        let read = |out: &Partial| [&out.output, &out.lse].map(|buffer| self.runtime.read(buffer));
        let [beside, behind] = [&estimated[0], &estimated[1]].map(|out| read(out).map(|x| bits(&x)));
        assert!(beside == behind, "an estimate beside retrieve and behind it");
        let [beside, behind] = [&attended[0], &attended[1]].map(|out| read(out).concat());
        let most = if self.rounds_products { 2.0_f32.powi(-12) } else { 0.0 };
        let differs = |(a, b): (&f32, &f32)| a != b && most < (a - b).abs();
        assert!(!beside.iter().zip(&behind).any(differs), "attention beside retrieve and behind it");
        lanes
    }

    /// Codes every indexed token of a lane.
    pub fn index_codes_of(&self, lane: &RigLane) {
        let [key, value] = &self.rotations;
        let whole = (0, lane.selection.indexed_tokens(lane.len));
        self.index(lane, &[whole], |rt, units| rt.rotate_code(CODES, LAYER, units, Rotations { key, value }));
    }

    /// Runs an Index op over whole units of a lane: `units` token ranges.
    pub fn index(&self, lane: &RigLane, ranges: &[(usize, usize)], op: impl Fn(&dyn Runtime, IndexUnits<'_>) + Sync) {
        self.runtime.enqueue(&mut || {
            for tokens in ranges {
                let (kv_rows, summary_rows) = (&lane.kv_rows[..], &lane.summary_rows[..]);
                op(self.runtime.as_ref(), IndexUnits::Rows { kv_rows, summary_rows, tokens: *tokens });
            }
        });
    }

    /// Codes every indexed token of the `CODES` lanes.
    pub fn index_codes(&self) {
        self.lanes.iter().filter(|lane| lane.algorithm == CODES).for_each(|lane| self.index_codes_of(lane));
    }

    /// The queries' view.
    pub fn q(&self) -> View<'_> {
        (&self.q).into()
    }

    /// Query `[d]` of a lane's head.
    pub fn query(&self, lane: usize, q_head: usize) -> &[f32] {
        let d = self.geometry.head_dim;
        &self.queries[(lane * self.q_heads + q_head) * d..][..d]
    }

    /// Replaces the queries.
    pub fn set_queries(&mut self, queries: Vec<f32>) {
        self.runtime.write(&self.q, &queries);
        self.queries = queries;
    }

    /// An empty partial for every lane, filled with numbers that no op may leave.
    pub fn partial(&self) -> Partial {
        let (rows, d) = (self.lanes.len(), self.geometry.head_dim);
        let partial = Partial {
            output: self.backend.buffer("outputs", rows, self.q_heads * d).expect("a partial fits"),
            lse: self.backend.buffer("log-sum-exps", rows, self.q_heads).expect("a partial fits"),
        };
        self.runtime.write(&partial.output, &vec![7.5; rows * self.q_heads * d]);
        self.runtime.write(&partial.lse, &vec![7.5; rows * self.q_heads]);
        partial
    }

    /// Keys of a lane's head: `[len][d]`.
    pub fn keys<'a>(&self, lane: &'a RigLane, head: usize) -> &'a [f32] {
        let len = lane.len * self.geometry.head_dim;
        &lane.keys[head * len..(head + 1) * len]
    }

    /// Values of a lane's head: `[len][d]`.
    pub fn values<'a>(&self, lane: &'a RigLane, head: usize) -> &'a [f32] {
        let len = lane.len * self.geometry.head_dim;
        &lane.values[head * len..(head + 1) * len]
    }

    /// What rounding softmax weights to bf16 costs of the largest result: tensor cores take them so.
    pub fn weight_rounding(&self) -> f64 {
        if self.rounds_products { 2.0_f64.powi(-8) } else { 0.0 }
    }

    /// Whether the backend keeps token logits as f16, as those of every scored lane say.
    pub fn rounds_logits(&self) -> bool {
        let scored = self.lanes.iter().filter(|lane| lane.algorithm == CODES && self.candidates(lane).is_some());
        scored.flat_map(|lane| self.runtime.read_token_logits(lane.lane)).all(|x| f16::from_f32(x).to_f32() == x)
    }

    /// The bytes of a lane's summary frame.
    pub fn summary(&self, lane: &RigLane, row: usize, head: usize) -> Vec<u8> {
        self.runtime.read_frame(lane.summary_rows[row], LAYER, head)
    }

    /// Every summary frame of a lane.
    pub fn summaries(&self, lane: &RigLane) -> Vec<Vec<u8>> {
        let heads = self.geometry.kv_heads;
        (0..lane.summary_rows.len() * heads).map(|at| self.summary(lane, at / heads, at % heads)).collect()
    }

    /// Fills every summary frame of every lane with a byte that no op may leave where it writes.
    pub fn spoil_summaries(&self) {
        for lane in &self.lanes {
            for row in &lane.summary_rows {
                for head in 0..self.geometry.kv_heads {
                    self.runtime.write_frame(*row, LAYER, head, &vec![0x5a; self.geometry.page_bytes()]);
                }
            }
        }
    }

    /// Candidates of a lane in its step, and k; none where all is exact.
    pub fn candidates(&self, lane: &RigLane) -> Option<(std::ops::Range<usize>, usize)> {
        match lane.selection.at(lane.len) {
            Selected::AllExact(_) => None,
            Selected::Pages { sink, indexed, k } => Some((sink..indexed, k)),
        }
    }

    /// The selected pages of a lane's head, from its page list.
    pub fn selected(&self, lane: &RigLane, head: usize) -> Vec<usize> {
        let Some((candidates, _)) = self.candidates(lane) else { return Vec::new() };
        let page = |row: RowId| lane.kv_rows.iter().position(|r| *r == row).expect("a row of the lane");
        let list = self.runtime.read_page_list(lane.lane, head);
        list.iter().map(|entry| page(entry.row())).filter(|page| candidates.contains(page)).collect()
    }
}

/// A prepared rotation `[kv_heads, d, d]`.
pub fn rotation(backend: &dyn Backend, geometry: Geometry, elements: Vec<f32>) -> Weight {
    let parts: [WeightPart<'_>; 1] = [WeightPart {
        weight: Tensor {
            name: "rotation".to_string(),
            shape: vec![geometry.kv_heads, geometry.head_dim, geometry.head_dim],
            data: TensorData::F32(elements.into()),
        },
        bias: None,
    }];
    backend.prepare_weight(WeightRole::Rotation, &parts).expect("the rotation is orthogonal")
}

/// The error rule of CONTRIBUTING.md: `got` is at most twice as far from `exact` (f64) as the plain f32 form is at its
/// worst, plus the rounding of a number of the largest result's size.
pub fn check_error(what: &str, got: &[f32], plain: &[f32], exact: &[f64]) {
    check_error_rounded(what, got, plain, exact, 0.0);
}

/// The same for an op whose definition rounds on the way: `rounding` is what that may cost.
pub fn check_error_rounded(what: &str, got: &[f32], plain: &[f32], exact: &[f64], rounding: f64) {
    assert!(got.len() == exact.len() && plain.len() == exact.len(), "{what}: {} of {}", got.len(), exact.len());
    let largest = exact.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
    let error = |x: &[f32]| x.iter().zip(exact).fold(0.0_f64, |a, (x, y)| a.max((f64::from(*x) - y).abs()));
    let bound = 2.0 * error(plain) + 4.0 * f64::from(f32::EPSILON) * largest + rounding;
    let got_error = error(got);
    assert!(
        got_error <= bound,
        "{what}: off by {got_error:e}, the rule allows {bound:e}; plain f32 {:e}",
        error(plain)
    );
}
