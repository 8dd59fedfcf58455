//! The cases: what is run, how much work it is, what it is a share of.

use crate::Limit;
use backend::cpu::CpuBackend;
use backend::{
    AlgorithmId, AlgorithmSet, Backend, Batch, Buffer, KvTarget, LaneStart, PageSource, Partial, Rope, Runtime,
    RuntimeShape, Sampling, StepInput, StepKey, Tensor, TensorData, Weight, WeightPart, WeightRole,
};
use half::bf16;
use kv::{Geometry, LaneId, RowId, Selection, geometry};
use std::sync::Arc;

/// One line of the table.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) limit: Limit,
    /// Operations or bytes of one call.
    pub(crate) amount: f64,
    pub(crate) target: Option<f64>,
    /// Called with 0, 1, 2, ... for as long as a round lasts.
    pub(crate) work: Box<dyn FnMut(usize)>,
    /// One entry a round.
    pub(crate) seconds: Vec<f64>,
}

/// Makes some cases.
type Maker<'a> = Box<dyn Fn() -> Vec<Case> + 'a>;

/// An op with everything that it takes.
type Op = Box<dyn Fn() + Send + Sync>;

/// Every case whose name contains `only`; the others are not even allocated.
pub(crate) fn all(backend: &CpuBackend, only: &str) -> Vec<Case> {
    let mut makers: Vec<(&str, Maker<'_>)> = Vec::new();
    let one = |case: Case| vec![case];
    for [m, n, k] in [[512, 2048, 2048], [512, 1024, 256], [24, 2048, 2048]] {
        makers.push(("gemm", Box::new(move || one(product(backend, m, n, k, (m == 512).then_some(0.6))))));
    }
    for [n, k] in [[16_384, 8_192], [131_072, 1_024]] {
        makers.push(("gemm", Box::new(move || one(product(backend, 1, n, k, Some(0.7))))));
    }
    makers.push(("gemm", Box::new(move || one(product(backend, 4, 16_384, 8_192, None)))));
    for (head_dim, group) in [(64, 2), (128, 4)] {
        for (first, n) in [(0, 512), (3_584, 512), (16_384, 1)] {
            let target = (n > 1).then_some(0.4);
            makers.push(("prefill", Box::new(move || one(prefill(backend, head_dim, group, first, n, target)))));
        }
        for order in [Rows::InOrder, Rows::Scattered] {
            makers.push(("decode", Box::new(move || one(decode(backend, head_dim, group, order)))));
        }
    }
    makers.push(("needle", Box::new(|| small_step(backend))));
    let wanted = makers.iter().filter(|(kind, _)| only.contains(kind) || !KINDS.iter().any(|kind| only.contains(kind)));
    let mut cases: Vec<Case> = wanted.flat_map(|(_, make)| make()).collect();
    cases.retain(|case| case.name.contains(only));
    cases
}

/// What the cases' names begin with, or contain.
const KINDS: [&str; 4] = ["gemm", "prefill", "decode", "needle"];

fn noise(count: usize) -> Vec<f32> {
    // Weyl's sequence: cheap, and no two neighbours alike.
    (0..count).map(|i| (i as f32 * 0.618_034).fract() - 0.5).collect()
}

fn weight(backend: &CpuBackend, n: usize, k: usize) -> Weight {
    let row: Vec<bf16> = noise(k).into_iter().map(bf16::from_f32).collect();
    let elements: Vec<bf16> = (0..n).flat_map(|_| row.iter().copied()).collect();
    let weight = Tensor { name: "weight".into(), shape: vec![n, k], data: TensorData::Bf16(elements.into()) };
    backend.prepare_weight(WeightRole::Down, &[WeightPart { weight, bias: None }]).expect("memory")
}

fn runtime(backend: &CpuBackend, geometry: Geometry, q_heads: usize, rows: usize, tokens: usize) -> Arc<dyn Runtime> {
    let inv_freq = vec![0.01; geometry.head_dim / 2];
    let shape = RuntimeShape {
        geometry,
        q_heads,
        vocab: 512,
        pool_rows: rows,
        dram_rows: 0,
        eviction: kv::bucketed_lru::Eviction::Score,
        max_lanes: 1,
        max_tokens: tokens,
        rope: Rope { inv_freq, attention_factor: 1.0 },
    };
    backend.runtime(&shape).expect("memory")
}

/// A buffer with elements.
fn filled(backend: &CpuBackend, runtime: &Arc<dyn Runtime>, rows: usize, cols: usize) -> Buffer {
    let buffer = backend.buffer("a bench", rows, cols).expect("memory");
    runtime.write(&buffer, &noise(rows * cols));
    buffer
}

const TINY: Geometry = Geometry { layers: 1, kv_heads: 1, head_dim: 16 };

fn product(backend: &CpuBackend, m: usize, n: usize, k: usize, target: Option<f64>) -> Case {
    let runtime = runtime(backend, TINY, 1, 1, 8);
    let weight = weight(backend, n, k);
    let (x, out) = (filled(backend, &runtime, m, k), filled(backend, &runtime, m, n));
    let work = move |_| {
        runtime.enqueue(&mut || runtime.gemm(Batch::Tokens(m), (&x).into(), &weight, (&out).into()));
    };
    let (limit, amount) = match m {
        1..=4 => (Limit::Bytes, (2 * n * k) as f64),
        _ => (Limit::Flops, (2 * m * n * k) as f64),
    };
    Case {
        name: format!("gemm {m} x {n} x {k}, {} MiB of weights", (2 * n * k) >> 20),
        limit,
        amount,
        target,
        work: Box::new(work),
        seconds: Vec::new(),
    }
}

fn prefill(backend: &CpuBackend, head_dim: usize, group: usize, first: usize, n: usize, target: Option<f64>) -> Case {
    let kv_heads = 2;
    let geometry = Geometry { layers: 1, kv_heads, head_dim };
    let q_heads = kv_heads * group;
    let runtime = runtime(backend, geometry, q_heads, 1, first + n);
    let shape = RuntimeShape {
        geometry,
        q_heads,
        vocab: 1,
        pool_rows: 1,
        dram_rows: 0,
        eviction: kv::bucketed_lru::Eviction::Score,
        max_lanes: 1,
        max_tokens: first + n,
        rope: Rope { inv_freq: Vec::new(), attention_factor: 1.0 },
    };
    let staging = backend.staging(&shape, first + n).expect("memory");
    runtime.write(&staging, &noise(2 * kv_heads * (first + n) * head_dim));
    let cols = q_heads * head_dim;
    let (q, out) = (filled(backend, &runtime, n, cols), filled(backend, &runtime, n, cols));
    let work = move |_| {
        runtime.enqueue(&mut || runtime.prefill_attend(&staging, first, n, (&q).into(), (&out).into()));
    };
    let visible: usize = (first + 1..=first + n).sum();
    Case {
        name: format!("prefill attention, head {head_dim}, group {group}, {n} tokens behind {first}"),
        limit: Limit::Flops,
        // Two products of two operations per visible key, query head and element.
        amount: (4 * visible * cols) as f64,
        target,
        work: Box::new(work),
        seconds: Vec::new(),
    }
}

fn selection() -> Selection {
    Selection {
        index_unit_tokens: 8,
        sink_tokens: 8,
        window_tokens: 32,
        budget: 1.0,
        floor_tokens: 0,
        min_context: 1 << 30,
    }
}

/// One lane of `tokens` tokens whose page `i` is row `i * stride % rows`; the stride is prime to the rows.
fn start(runtime: &Arc<dyn Runtime>, tokens: usize, stride: usize, rows: usize) {
    let row = |page: usize| RowId((page * stride % rows) as u32);
    runtime.start_lane(&LaneStart {
        lane: LaneId(0),
        algorithm: AlgorithmId(0),
        selection: selection(),
        len: tokens - 1,
        first: backend::FirstInput::Prompt { token: 1, outputs: 0 },
        kv_rows: (0..geometry::pages(tokens)).map(row).collect(),
        summary_rows: Vec::new(),
        cache_rows: Vec::new(),
        sampling: Sampling::default(),
        prompt: Vec::new(),
        mask: None,
    });
}

fn key() -> StepKey {
    StepKey {
        bucket: 1,
        algorithms: AlgorithmSet::default().with(AlgorithmId(0)),
        measure_mass: false,
        retrieves: false,
    }
}

/// How a sequence's rows lie in the pool.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    /// One after the other, one layer in a row: K and V are one stretch of memory.
    InOrder,
    /// In a scattered order, three layers in a row.
    Scattered,
}

/// 64 MiB of K and V of one layer; three of them in turn, so that none is still in a cache when it is read again.
fn decode(backend: &CpuBackend, head_dim: usize, group: usize, order: Rows) -> Case {
    let kv_heads = 2;
    let (layers, pools) = if order == Rows::InOrder { (1, 3) } else { (3, 1) };
    let geometry = Geometry { layers, kv_heads, head_dim };
    let tokens = (64 << 20) / (kv_heads * head_dim * 4);
    let rows = geometry::pages(tokens);
    let q_heads = kv_heads * group;
    let frame: Vec<u8> =
        noise(geometry.frame_elements()).iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    let filled_runtime = |_| {
        let runtime = runtime(backend, geometry, q_heads, rows, tokens);
        for frame_number in 0..rows * layers * kv_heads {
            let (row, part) = (frame_number / (layers * kv_heads), frame_number % (layers * kv_heads));
            runtime.write_frame(RowId(row as u32), part / kv_heads, part % kv_heads, &frame);
        }
        runtime
    };
    let runtimes: Vec<_> = (0..pools).map(filled_runtime).collect();
    let q = filled(backend, &runtimes[0], 1, q_heads * head_dim);
    let output = filled(backend, &runtimes[0], 1, q_heads * head_dim);
    let out = Partial { output, lse: filled(backend, &runtimes[0], 1, q_heads) };
    let work = move |call: usize| {
        let runtime = &runtimes[call % pools];
        start(runtime, tokens, if order == Rows::InOrder { 1 } else { 7_919 }, rows);
        let input = StepInput { active: vec![LaneId(0)], ..StepInput::default() };
        let ticket = runtime.launch(key(), &input, &mut || {
            runtime.attend(AlgorithmId(0), call % layers, PageSource::RowTable, (&q).into(), &out);
        });
        runtime.collect(ticket).expect("the device works");
    };
    let how = if order == Rows::InOrder { "rows in order" } else { "rows scattered, 3 layers" };
    Case {
        name: format!("decode attention, head {head_dim}, group {group}, 64 MiB of KV, {how}"),
        limit: Limit::Bytes,
        amount: (64 << 20) as f64,
        target: (order == Rows::InOrder).then_some(0.7),
        work: Box::new(work),
        seconds: Vec::new(),
    }
}

/// Ops of a decode step of the needle model (4 query heads, 2 KV heads of 64, hidden size 256): 100 calls a step.
fn small_step(backend: &CpuBackend) -> Vec<Case> {
    const CALLS: usize = 100;
    let (geometry, hidden, mlp) = (Geometry { layers: 4, kv_heads: 2, head_dim: 64 }, 256, 512);
    let tokens = 1_024;
    let case = |name: &str, op: &dyn Fn(&Arc<dyn Runtime>) -> Op| {
        let runtime = runtime(backend, geometry, 4, 128, tokens);
        let op = op(&runtime);
        let work = move |_: usize| {
            start(&runtime, tokens, 1, 128);
            let input = StepInput { active: vec![LaneId(0)], ..StepInput::default() };
            let ticket = runtime.launch(key(), &input, &mut || (0..CALLS).for_each(|_| op()));
            runtime.collect(ticket).expect("the device works");
        };
        Case {
            name: format!("{CALLS} calls, one lane of the needle model: {name}"),
            limit: Limit::Time,
            amount: 0.0,
            target: None,
            work: Box::new(work),
            seconds: Vec::new(),
        }
    };
    let mut cases = Vec::new();
    for (name, n, k) in [
        ("qkv", 512, hidden),
        ("attention output", hidden, 256),
        ("gate and up", 2 * mlp, hidden),
        ("down", hidden, mlp),
    ] {
        cases.push(case(&format!("{name} {n} x {k}"), &|runtime| {
            let (weight, runtime) = (weight(backend, n, k), runtime.clone());
            let (x, out) = (filled(backend, &runtime, 1, k), filled(backend, &runtime, 1, n));
            Box::new(move || runtime.gemm(Batch::Lanes, (&x).into(), &weight, (&out).into()))
        }));
    }
    cases.push(case("add_norm", &|runtime| {
        let norm = Tensor { name: "norm".into(), shape: vec![hidden], data: TensorData::F32(noise(hidden).into()) };
        let norm =
            backend.prepare_weight(WeightRole::Norm, &[WeightPart { weight: norm, bias: None }]).expect("memory");
        let runtime = runtime.clone();
        let [x, delta, out] = [0; 3].map(|_| filled(backend, &runtime, 1, hidden));
        Box::new(move || {
            runtime.add_norm(Batch::Lanes, (&x).into(), Some((&delta).into()), &norm, 1e-5, (&out).into());
        })
    }));
    cases.push(case("silu_mul", &|runtime| {
        let runtime = runtime.clone();
        let (x, out) = (filled(backend, &runtime, 1, 2 * mlp), filled(backend, &runtime, 1, mlp));
        Box::new(move || runtime.silu_mul(Batch::Lanes, (&x).into(), (&out).into()))
    }));
    cases.push(case("qkv_append", &|runtime| {
        let runtime = runtime.clone();
        let (x, q) = (filled(backend, &runtime, 1, 512), filled(backend, &runtime, 1, 256));
        Box::new(move || {
            runtime.qkv_append(1, Batch::Lanes, (&x).into(), None, KvTarget::Lanes, (&q).into());
        })
    }));
    cases.push(case("attend 1,024 tokens", &|runtime| {
        let runtime = runtime.clone();
        let (q, output, lse) =
            (filled(backend, &runtime, 1, 256), filled(backend, &runtime, 1, 256), filled(backend, &runtime, 1, 4));
        let out = Partial { output, lse };
        Box::new(move || runtime.attend(AlgorithmId(0), 1, PageSource::RowTable, (&q).into(), &out))
    }));
    cases
}
