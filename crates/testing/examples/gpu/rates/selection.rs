//! Index, Select, and attention over what was selected: 20 lanes of 55K tokens.

use super::bed::{Bed, BedSpec, D, KV_HEADS, Q_HEADS};
use super::{Table, Work};
use backend::sketch::SketchFrame;
use backend::{
    AlgorithmId, Backend, Buffer, EstimateSource, IndexUnits, PageSource, Partial, Rotations, VectorSummary, Weight,
    WeightRole,
};
use cuda::CudaBackend;
use kv::geometry::SKETCH_TOKENS;
use kv::{PAGE_TOKENS, Selection};
use sparse::{Specs, default_rotation, rotation_parts};
use std::sync::Arc;

const LANES: usize = 20;

const TOKENS: usize = 55_000;

/// Several, so that the selected pages of all of them are more than a cache holds.
const LAYERS: usize = 4;

/// The form of `shadowkv+estimate`, whose vectors are every other one.
const WITH_VALUES: VectorSummary = VectorSummary::MeanKeyAndValueSum;

/// What the measurements share.
struct Setting {
    bed: Bed,
    q: Buffer,
    out: Partial,
    /// Of every layer.
    rotation: Weight,
}

/// One row an op.
pub(crate) fn measure(table: &mut Table<'_>, backend: &Arc<CudaBackend>) {
    let ops = ["pool_mean", "rotate_code", "score_dot", "score_codes", "group_reduce", "topk", "attend", "estimate"];
    if !ops.iter().chain(&["merge"]).any(|op| table.wants(op)) {
        return;
    }
    let bed = Bed::new(backend, BedSpec { layers: LAYERS, lanes: LANES, tokens: TOKENS, summaries: true });
    bed.fill();
    let elements = default_rotation(D).repeat(KV_HEADS);
    let parts = rotation_parts(bed.shape.geometry, elements);
    let rotation = backend.prepare_weight(WeightRole::Rotation, &parts).expect("a rotation");
    let (q, out) = (bed.noise(LANES, Q_HEADS * D, 5), bed.partial());
    let setting = Setting { bed, q, out, rotation };
    let specs = Specs::of(setting.bed.shape.geometry);
    let of = |name: &str| {
        let id = specs.by_name(name).expect("a known algorithm");
        (id, specs.get(id).selection())
    };
    setting.shadowkv(table, of("shadowkv"), VectorSummary::MeanKey);
    setting.shadowkv(table, of("shadowkv+estimate"), WITH_VALUES);
    setting.sketch(table, of("sketch"));
    setting.merge(table, of("sketch"));
}

impl Setting {
    /// Index of every lane and layer, whole; timed by the first lanes.
    fn index(
        &self,
        table: &mut Table<'_>,
        of: (&str, &str),
        unit: usize,
        work: Work,
        op: &(dyn Fn(usize, IndexUnits<'_>) + Sync),
    ) {
        let record = |i: usize| {
            let [kv_rows, summary_rows] = &self.bed.tables[i / LAYERS % LANES];
            let tokens = (0, TOKENS / unit * unit);
            op(i % LAYERS, IndexUnits::Rows { kv_rows, summary_rows, tokens });
        };
        self.bed.runtime.enqueue(&mut || (0..LANES * LAYERS).for_each(record));
        table.unit(&self.bed, of, work, &record);
    }

    fn shadowkv(&self, table: &mut Table<'_>, (id, selection): (AlgorithmId, Selection), form: VectorSummary) {
        let (bed, runtime) = (&self.bed, &self.bed.runtime);
        let vectors = if form == WITH_VALUES { 2 } else { 1 };
        let name = if form == WITH_VALUES { "mean keys and value sums" } else { "mean keys" };
        let pages = selection.indexed_pages(TOKENS);
        let kv = KV_HEADS * D * 4;
        let work =
            Work::bytes(TOKENS * kv / if form == WITH_VALUES { 1 } else { 2 } + pages * KV_HEADS * vectors * D * 2);
        let pool = |layer: usize, units: IndexUnits<'_>| runtime.pool_mean(id, layer, units, form);
        self.index(table, ("pool_mean", &format!("{name}, {TOKENS} tokens")), PAGE_TOKENS, work, &pool);
        bed.set(id, selection);
        let scores = LANES * Q_HEADS * pages * 4;
        let shape = format!("{name}, {LANES} x {TOKENS}");
        let score = |i: usize| runtime.score_dot(id, i % LAYERS, (&self.q).into(), form);
        let work = Work::bytes(LANES * pages * KV_HEADS * D * 2 + scores);
        table.step(bed, ("score_dot", &shape), work, None, &score);
        self.select(table, (id, selection), &shape, &|| score(0));
        if form == WITH_VALUES {
            let estimate = |i: usize| {
                runtime.estimate(id, i % LAYERS, EstimateSource::Vectors, (&self.q).into(), &self.out);
            };
            let work = Work::bytes(LANES * pages * KV_HEADS * D * 2 + scores);
            table.step(
                bed,
                ("estimate", &format!("vectors, {LANES} x {TOKENS}")),
                work,
                Some(&|| self.choose(id, &|| score(0))),
                &estimate,
            );
        }
    }

    fn sketch(&self, table: &mut Table<'_>, (id, selection): (AlgorithmId, Selection)) {
        let (bed, runtime, frame) = (&self.bed, &self.bed.runtime, SketchFrame { head_dim: D });
        let groups = selection.indexed_tokens(TOKENS) / SKETCH_TOKENS;
        let work = Work::bytes(TOKENS * KV_HEADS * D * 4 + groups * KV_HEADS * bed.shape.geometry.page_bytes());
        let code = |layer: usize, units: IndexUnits<'_>| {
            runtime.rotate_code(id, layer, units, Rotations { key: &self.rotation, value: &self.rotation });
        };
        self.index(table, ("rotate_code", &format!("{TOKENS} tokens")), SKETCH_TOKENS, work, &code);
        bed.set(id, selection);
        let score = |i: usize| runtime.score_codes(id, i % LAYERS, (&self.q).into(), &self.rotation);
        // The key halves of frames; the logits that are written come on top of these.
        let halves = LANES * groups * KV_HEADS * frame.value_codes();
        table.step(bed, ("score_codes", &format!("{LANES} x {TOKENS}")), Work::bytes(halves), None, &score);
        self.select(table, (id, selection), &format!("sketch, {LANES} x {TOKENS}"), &|| score(0));
        let values = LANES * groups * KV_HEADS * (frame.bytes() - frame.value_codes());
        let logits = LANES * groups * SKETCH_TOKENS * Q_HEADS * 2;
        let source = EstimateSource::Codes { value_rotation: &self.rotation };
        let estimate = |i: usize| runtime.estimate(id, i % LAYERS, source, (&self.q).into(), &self.out);
        let of = ("estimate", &*format!("codes, {LANES} x {TOKENS}"));
        table.step(bed, of, Work::bytes(values + logits), Some(&|| self.choose(id, &|| score(0))), &estimate);
    }

    /// The halves of a sparse lane's attention.
    fn merge(&self, table: &mut Table<'_>, (id, selection): (AlgorithmId, Selection)) {
        self.bed.set(id, selection);
        let other = self.bed.partial();
        let merge = |_| self.bed.runtime.merge(id, &self.out, &other);
        let bytes = 3 * LANES * Q_HEADS * (D + 1) * 4;
        table.step(&self.bed, ("merge", &format!("{LANES} lanes")), Work::bytes(bytes), None, &merge);
    }

    /// Scores, and the lists that follow.
    fn choose(&self, id: AlgorithmId, score: &(dyn Fn() + Sync)) {
        score();
        self.bed.runtime.group_reduce(id);
        self.bed.runtime.topk(id);
    }

    /// group_reduce, topk, and attention over the lists.
    fn select(
        &self,
        table: &mut Table<'_>,
        (id, selection): (AlgorithmId, Selection),
        shape: &str,
        score: &(dyn Fn() + Sync),
    ) {
        let (bed, runtime) = (&self.bed, &self.bed.runtime);
        let pages = selection.indexed_pages(TOKENS);
        let (scores, reduced) = (LANES * Q_HEADS * pages * 4, LANES * KV_HEADS * pages * 4);
        let reduce = |_| runtime.group_reduce(id);
        table.step(bed, ("group_reduce", shape), Work::bytes(scores + reduced), Some(score), &reduce);
        let choose = |_| runtime.topk(id);
        let reduced_once = || {
            score();
            runtime.group_reduce(id);
        };
        table.step(bed, ("topk", shape), Work::bytes(reduced), Some(&reduced_once), &choose);
        let exact = selection.exact_tokens(TOKENS);
        let attend = |i: usize| runtime.attend(id, i % LAYERS, PageSource::PageList, (&self.q).into(), &self.out);
        let of = ("attend", &*format!("page lists of {exact} tokens, {shape}"));
        table.step(bed, of, Work::bytes(LANES * exact * KV_HEADS * D * 4), Some(&|| self.choose(id, score)), &attend);
    }
}
