//! What the suites share: a runtime with random pages and lanes, seeded numbers, the error rule.

use super::MakeBackend;
use super::heads::Heads;
use super::precision::{HALF_BF16, Precision, array, as_products, rounds_products};
use backend::{
    AlgorithmId, AlgorithmSet, Backend, Buffer, FirstInput, LaneStart, Rope, Runtime, RuntimeShape, Sampling,
    StepInput, StepKey, Tensor, TensorData, Weight, WeightPart, WeightRole,
};
use half::bf16;
use kv::{Geometry, LaneId, PAGE_TOKENS, RowId, Selection, geometry};
use std::sync::Arc;

/// Seeded numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Near normal: mean 0, deviation 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| self.bits() as f64 / u64::MAX as f64).sum();
        (sum - 6.0) as f32
    }

    /// `count` of them, times `scale`.
    pub fn normals(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.normal() * scale).collect()
    }

    /// The same, rounded to bf16.
    pub fn rounded(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| bf16::from_f32(self.normal() * scale).to_f32()).collect()
    }

    /// `0..count` in a random order.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Checks the error rule; `roundings` are of f32 at the largest exact value.
///
/// # Panics
/// The error is larger.
pub fn check_error(what: &str, got: &[f32], plain: &[f32], exact: &[f64], roundings: f64) {
    assert_eq!([got.len(), plain.len()], [exact.len(); 2], "{what}: number of elements");
    let worst = |x: &[f32]| {
        x.iter().zip(exact).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, |a, b| if b <= a { a } else { b })
    };
    let largest = exact.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    let (error, allowed) = (worst(got), 2.0 * worst(plain) + roundings * largest * f64::from(f32::EPSILON) / 2.0);
    assert!(error <= allowed, "{what}: error {error:.3e}, allowed {allowed:.3e}, largest value {largest:.3e}");
}

/// The rule for log-sum-exps. Where weights are powers of two (`rounds_products`: a GPU), a log-sum-exp is the sum of a
/// largest logit and a logarithm, both of size one or more, however small it is itself.
///
/// # Panics
/// The error is larger.
pub fn check_lse(what: &str, got: &[f32], plain: &[f32], exact: &[f64], rounds_products: bool) {
    let largest = exact.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    let size = if rounds_products { (1.0 / largest).max(1.0) } else { 1.0 };
    check_error(&format!("{what}, lse"), got, plain, exact, 4.0 * size);
}

/// Bits of f32 values, for comparisons to the last one.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// One layer's K and V of a lane, `[kv_heads][tokens][d]`.
#[derive(Clone, Debug)]
pub struct KeysValues {
    /// Keys, bf16 values.
    pub k: Vec<f32>,
    /// Values, bf16 values.
    pub v: Vec<f32>,
    /// Tokens of each head.
    pub tokens: usize,
}

impl KeysValues {
    /// Random ones.
    pub fn random(random: &mut Random, heads: Heads, tokens: usize) -> Self {
        let count = heads.kv_heads * tokens * heads.head_dim;
        KeysValues { k: random.rounded(count, 1.0), v: random.rounded(count, 1.0), tokens }
    }

    /// Keys and values of one head, `[tokens][d]`.
    pub fn head(&self, head: usize, d: usize) -> (&[f32], &[f32]) {
        let part = head * self.tokens * d..(head + 1) * self.tokens * d;
        (&self.k[part.clone()], &self.v[part])
    }
}

/// A backend and a runtime of two layers.
pub struct Fixture {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Its runtime.
    pub runtime: Arc<dyn Runtime>,
    /// What it was sized for.
    pub shape: RuntimeShape,
    /// Its heads.
    pub heads: Heads,
    /// Whether its products take bf16.
    pub rounds_products: bool,
}

/// The layer that the suites work on: not the first, so that a wrong stride shows.
pub const LAYER: usize = 1;

/// The algorithm of all lanes.
pub const ALGORITHM: AlgorithmId = AlgorithmId(0);

impl Fixture {
    /// A runtime with `lanes` lanes of `max_tokens` tokens, on a backend of two threads.
    ///
    /// # Panics
    /// The backend refuses.
    pub fn new(make: MakeBackend<'_>, heads: Heads, lanes: usize, max_tokens: usize, vocab: usize) -> Self {
        let half = heads.head_dim / 2;
        let inv_freq = (0..half).map(|i| 10_000_f64.powf(-(i as f64) / half as f64)).collect();
        let shape = RuntimeShape {
            geometry: Geometry { layers: 2, kv_heads: heads.kv_heads, head_dim: heads.head_dim },
            q_heads: heads.q_heads(),
            vocab,
            pool_rows: lanes * geometry::pages(max_tokens + 1) + 1,
            dram_rows: 0,
            eviction: kv::bucketed_lru::Eviction::Score,
            max_lanes: lanes,
            max_tokens,
            rope: Rope { inv_freq, attention_factor: 1.25 },
        };
        let backend = make.backend(2);
        let runtime = backend.runtime(&shape).expect("a runtime");
        let rounds_products = rounds_products(backend.as_ref(), runtime.as_ref());
        Fixture { backend, runtime, shape, heads, rounds_products }
    }

    /// Precisions of a buffer that differ on this backend.
    pub fn precisions(&self) -> &'static [Precision] {
        if self.rounds_products { &[Precision::Full, Precision::Product] } else { &[Precision::Full] }
    }

    /// The same, of an op's input and its output.
    pub fn pairs(&self) -> Vec<(Precision, Precision)> {
        let all = self.precisions();
        all.iter().flat_map(|input| all.iter().map(|output| (*input, *output))).collect()
    }

    /// Roundings that storing a result costs.
    pub fn store_roundings(&self, precision: Precision) -> f64 {
        if self.rounds_products && precision == Precision::Product { HALF_BF16 } else { 0.0 }
    }

    /// Roundings that softmax weights cost: tensor cores take them as bf16.
    pub fn weight_roundings(&self) -> f64 {
        if self.rounds_products { HALF_BF16 } else { 0.0 }
    }

    /// Elements as products take them.
    pub fn as_products(&self, elements: &[f32]) -> Vec<f32> {
        as_products(self.backend.as_ref(), self.runtime.as_ref(), elements)
    }

    /// A buffer of a precision, and the elements that it keeps.
    pub fn held(&self, precision: Precision, rows: usize, cols: usize, elements: &[f32]) -> (Buffer, Vec<f32>) {
        let buffer = array(self.backend.as_ref(), precision, rows, cols);
        self.runtime.write(&buffer, elements);
        let kept = self.runtime.read(&buffer);
        (buffer, kept)
    }

    /// A buffer of a precision that is all NaN, so that what an op leaves out shows.
    pub fn blank_in(&self, precision: Precision, rows: usize, cols: usize) -> Buffer {
        self.held(precision, rows, cols, &vec![f32::NAN; rows * cols]).0
    }

    /// A buffer with these elements.
    ///
    /// # Panics
    /// No memory.
    pub fn buffer(&self, rows: usize, cols: usize, elements: &[f32]) -> Buffer {
        let buffer = self.backend.buffer("a test", rows, cols).expect("a buffer");
        self.runtime.write(&buffer, elements);
        buffer
    }

    /// A buffer that is all NaN, so that what an op leaves out shows.
    pub fn blank(&self, rows: usize, cols: usize) -> Buffer {
        self.buffer(rows, cols, &vec![f32::NAN; rows * cols])
    }

    /// A prepared weight of one part.
    ///
    /// # Panics
    /// The backend refuses it.
    pub fn weight(&self, role: WeightRole, shape: &[usize], elements: &[f32]) -> Weight {
        let weight = tensor("weight", shape, elements);
        self.backend.prepare_weight(role, &[WeightPart { weight, bias: None }]).expect("a weight")
    }

    /// Rows of lane `lane`'s table: the lanes' pages lie among each other, in descending order.
    pub fn rows(&self, lane: usize, tokens: usize) -> Vec<RowId> {
        let lanes = self.shape.max_lanes;
        let row = |page: usize| RowId((self.shape.pool_rows - 1 - (page * lanes + lane)) as u32);
        (0..geometry::pages(tokens)).map(row).collect()
    }

    /// Writes K and V of a lane's tokens into its rows of [`LAYER`].
    pub fn fill_rows(&self, rows: &[RowId], kv: &KeysValues) {
        let d = self.heads.head_dim;
        for head in 0..self.heads.kv_heads {
            let (k, v) = kv.head(head, d);
            for (page, row) in rows.iter().enumerate() {
                let tokens = page * PAGE_TOKENS..kv.tokens.min((page + 1) * PAGE_TOKENS);
                let mut frame = vec![0_u8; 2 * 2 * PAGE_TOKENS * d];
                for (half, source) in [k, v].into_iter().enumerate() {
                    let elements = &source[tokens.start * d..tokens.end * d];
                    let bytes = elements.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes());
                    let at = half * 2 * PAGE_TOKENS * d;
                    frame[at..].iter_mut().zip(bytes).for_each(|(target, byte)| *target = byte);
                }
                self.runtime.write_frame(*row, LAYER, head, &frame);
            }
        }
    }

    /// Starts a lane that has `len` tokens in rows.
    pub fn start(&self, lane: usize, len: usize, selection: Selection, sampling: Sampling) {
        self.start_from(lane, len, selection, sampling, FirstInput::Prompt { token: 1, outputs: 0 });
    }

    /// The same with another first input.
    pub fn start_from(&self, lane: usize, len: usize, selection: Selection, sampling: Sampling, first: FirstInput) {
        self.runtime.start_lane(&self.lane_start(lane, len, selection, sampling, first));
    }

    /// What such a lane starts with.
    pub fn lane_start(
        &self,
        lane: usize,
        len: usize,
        selection: Selection,
        sampling: Sampling,
        first: FirstInput,
    ) -> LaneStart {
        LaneStart {
            lane: LaneId(lane as u16),
            algorithm: ALGORITHM,
            selection,
            len,
            first,
            kv_rows: self.rows(lane, len + 1),
            summary_rows: Vec::new(),
            cache_rows: Vec::new(),
            sampling,
            prompt: Vec::new(),
            mask: None,
        }
    }

    /// Waits for what was enqueued.
    ///
    /// # Panics
    /// The device is lost.
    pub fn fence(&self) -> backend::StepOutput {
        self.runtime.collect(self.runtime.fence()).expect("the device works")
    }

    /// Runs ops as a decode step over these lanes.
    ///
    /// # Panics
    /// The device is lost.
    pub fn step(&self, active: &[usize], ops: impl Fn() + Send + Sync) -> backend::StepOutput {
        let active: Vec<LaneId> = active.iter().map(|lane| LaneId(*lane as u16)).collect();
        let input = StepInput { active, ..StepInput::default() };
        let ticket = self.runtime.launch(key(self.shape.max_lanes), &input, &mut || ops());
        self.runtime.collect(ticket).expect("the device works")
    }
}

/// The key of a step of these lanes.
pub fn key(lanes: usize) -> StepKey {
    StepKey {
        bucket: lanes,
        algorithms: AlgorithmSet::default().with(ALGORITHM),
        measure_mass: false,
        retrieves: false,
    }
}

/// A host tensor in f32.
pub fn tensor<'a>(name: &str, shape: &[usize], elements: &'a [f32]) -> Tensor<'a> {
    Tensor { name: name.to_owned(), shape: shape.to_vec(), data: TensorData::F32(elements.into()) }
}

/// A selection under which every token is exact.
pub fn all_exact() -> Selection {
    Selection {
        index_unit_tokens: PAGE_TOKENS,
        sink_tokens: PAGE_TOKENS,
        window_tokens: 4 * PAGE_TOKENS,
        budget: 1.0,
        floor_tokens: 0,
        min_context: 1 << 30,
    }
}
