//! How fast the selection ops are on this machine: time, bytes read, and what share of the read bandwidth (measured in
//! the same run) that is.
//! `cargo bench -p spindle-backend --bench select -- [--json] [--threads N] [--isa NAME] [--only OP] [--shape NAME]
//! [--rounds N] [--tokens N]`
//!
//! Times are medians of interleaved rounds, of one decode step's ops over all layers of the shape.

use backend::cpu::{CpuBackend, CpuOptions, Isa};
use backend::{
    AlgorithmId, AlgorithmSet, Backend, Buffer, EstimateSource, IndexUnits, LaneStart, Partial, Rope, Rotations,
    Runtime, RuntimeShape, Sampling, StepInput, StepKey, Tensor, TensorData, VectorSummary, Weight, WeightPart,
    WeightRole,
};
use kv::geometry::SKETCH_TOKENS;
use kv::{Geometry, LaneId, PAGE_TOKENS, RowId, Selection, geometry};
use std::hint::black_box;
use std::time::Instant;

const FORM: VectorSummary = VectorSummary::MeanKeyAndValueSum;

struct Case {
    name: &'static str,
    layers: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
}

const CASES: [Case; 2] = [
    Case { name: "needle 64K", layers: 4, q_heads: 4, kv_heads: 2, head_dim: 64, tokens: 65_600 },
    Case { name: "Llama-3.1-8B 64K, 1 layer", layers: 1, q_heads: 32, kv_heads: 8, head_dim: 128, tokens: 65_600 },
];

struct Line {
    case: &'static str,
    op: &'static str,
    microseconds: f64,
    /// The fastest round: what the machine does when nobody else uses it.
    best: f64,
    bytes: f64,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let (json, only) = (args.iter().any(|arg| arg == "--json"), value("--only").map(String::as_str));
    let rounds = value("--rounds").map_or(15, |n| n.parse().expect("--rounds takes a number"));
    let mut options = CpuOptions::default();
    if let Some(threads) = value("--threads") {
        options.threads = threads.parse().expect("--threads takes a number");
    }
    if let Some(isa) = value("--isa") {
        options.isa = Isa::named(isa).expect("--isa takes the name of an instruction set");
    }
    let backend = CpuBackend::new(options).expect("the machine's own instruction set");
    let bandwidth = read_bandwidth();
    let info = backend.info().description;
    let mut cases = CASES;
    if let Some(tokens) = value("--tokens") {
        cases.iter_mut().for_each(|case| case.tokens = tokens.parse().expect("--tokens takes a number"));
    }
    let lines: Vec<Line> = cases
        .iter()
        .filter(|case| value("--shape").is_none_or(|name| case.name.starts_with(name.as_str())))
        .flat_map(|case| run(&backend, case, only, rounds))
        .collect();
    let rate = |line: &Line| line.bytes / line.microseconds / 1e3;
    if json {
        println!(
            "{{\"machine\": \"{info}\", \"read_bandwidth_gb_s\": {bandwidth:.2}, \"rounds\": {rounds}, \"lines\": ["
        );
        for (i, line) in lines.iter().enumerate() {
            let comma = if i + 1 < lines.len() { "," } else { "" };
            println!(
                "  {{\"shape\": \"{}\", \"op\": \"{}\", \"microseconds\": {:.1}, \"best\": {:.1}, \
                 \"bytes\": {}, \"gb_s\": {:.2}, \"share\": {:.3}}}{comma}",
                line.case,
                line.op,
                line.microseconds,
                line.best,
                line.bytes,
                rate(line),
                rate(line) / bandwidth
            );
        }
        println!("]}}");
        return;
    }
    println!("{info}; read bandwidth {bandwidth:.1} GB/s");
    println!("{:<28} {:<28} {:>10} {:>10} {:>9} {:>8} {:>7}", "shape", "op", "us", "best us", "MB", "GB/s", "share");
    for line in &lines {
        let share = 100.0 * rate(line) / bandwidth;
        let (us, mb) = (line.microseconds, line.bytes / 1e6);
        println!(
            "{:<28} {:<28} {us:>10.1} {:>10.1} {mb:>9.2} {:>8.2} {share:>6.1}%",
            line.case,
            line.op,
            line.best,
            rate(line)
        );
    }
}

/// Best sum of 256 MiB over one to all threads, in GB/s.
fn read_bandwidth() -> f64 {
    let data = vec![1_u64; 1 << 25];
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut best = 0.0_f64;
    for threads in 1..=threads {
        for _ in 0..5 {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for part in data.chunks(data.len().div_ceil(threads)) {
                    scope.spawn(move || black_box(part.iter().fold(0_u64, |a, b| a.wrapping_add(*b))));
                }
            });
            best = best.max(8.0 * data.len() as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
    }
    best
}

/// A runtime with one lane for each algorithm over the same rows.
struct Bench {
    runtime: std::sync::Arc<dyn Runtime>,
    q: Buffer,
    flat: Buffer,
    rotation: Weight,
    out: Partial,
}

const MEANS: AlgorithmId = AlgorithmId(1);
const CODES: AlgorithmId = AlgorithmId(2);

fn run(backend: &CpuBackend, case: &Case, only: Option<&str>, rounds: usize) -> Vec<Line> {
    let bench = prepare(backend, case);
    let (rt, source) = (bench.runtime.as_ref(), EstimateSource::Codes { value_rotation: &bench.rotation });
    let all = 0..case.layers;
    let q = (&bench.q).into();
    let flat = (&bench.flat).into();
    let pages = (case.tokens / PAGE_TOKENS) as f64;
    let heads = (case.layers * case.kv_heads) as f64;
    let q_heads = (case.layers * case.q_heads) as f64;
    let (d, groups) = (case.head_dim as f64, pages / 6.0);
    let logits = 4.0 * q_heads * 8.0 * pages;
    type Op<'a> = Box<dyn Fn() + Send + Sync + 'a>;
    let ops: Vec<(&'static str, f64, Op<'_>)> = vec![
        ("score_dot", heads * pages * 2.0 * d, Box::new(|| all.clone().for_each(|l| rt.score_dot(MEANS, l, q, FORM)))),
        ("group_reduce", 4.0 * q_heads * pages, Box::new(|| all.clone().for_each(|_| rt.group_reduce(MEANS)))),
        ("topk 1.56 %", 4.0 * heads * pages, Box::new(|| all.clone().for_each(|_| rt.topk(MEANS)))),
        (
            "estimate vectors",
            heads * pages * 2.0 * d,
            Box::new(|| all.clone().for_each(|l| rt.estimate(MEANS, l, EstimateSource::Vectors, q, &bench.out))),
        ),
        (
            "score_codes",
            heads * groups * 16.0 * d,
            Box::new(|| all.clone().for_each(|l| rt.score_codes(CODES, l, q, &bench.rotation))),
        ),
        ("group_reduce (codes)", 4.0 * q_heads * pages, Box::new(|| all.clone().for_each(|_| rt.group_reduce(CODES)))),
        ("topk 0.8 %", 4.0 * heads * pages, Box::new(|| all.clone().for_each(|_| rt.topk(CODES)))),
        (
            "estimate codes",
            heads * groups * (12.0 * d + 192.0) + logits,
            Box::new(|| all.clone().for_each(|l| rt.estimate(CODES, l, source, q, &bench.out))),
        ),
        (
            "score_codes, flat",
            heads * groups * 16.0 * d,
            Box::new(|| all.clone().for_each(|l| rt.score_codes(CODES, l, flat, &bench.rotation))),
        ),
        (
            "estimate codes, flat",
            heads * groups * (12.0 * d + 192.0) + logits,
            Box::new(|| all.clone().for_each(|l| rt.estimate(CODES, l, source, flat, &bench.out))),
        ),
    ];
    let ops: Vec<_> = ops.into_iter().filter(|(op, _, _)| only.is_none_or(|only| *op == only)).collect();
    let mut times = vec![Vec::new(); ops.len()];
    for _ in 0..rounds {
        for ((_, _, op), times) in ops.iter().zip(&mut times) {
            let mut time = 0.0;
            rt.enqueue(&mut || {
                let start = Instant::now();
                op();
                time = start.elapsed().as_secs_f64();
            });
            times.push(1e6 * time);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[0])
    };
    let line = |((op, bytes, _), times): (&(&'static str, f64, Op<'_>), &mut Vec<f64>)| {
        let (microseconds, best) = median(times);
        Line { case: case.name, op, microseconds, best, bytes: bytes.round() }
    };
    let mut lines: Vec<Line> = ops.iter().zip(&mut times).map(line).collect();
    if only.is_none() {
        lines.extend(index(&bench, case));
    }
    lines
}

/// Index of 6,144 tokens of every layer, from rows, once warm.
fn index(bench: &Bench, case: &Case) -> Vec<Line> {
    let tokens = 128 * SKETCH_TOKENS;
    let rows = |first: usize, n: usize| (first..first + n).map(|row| RowId(row as u32)).collect::<Vec<_>>();
    let kv_rows = rows(0, tokens / PAGE_TOKENS);
    // The last rows of the pool: behind both lanes' tables.
    let summary_rows = rows(pool_rows(case) - tokens / PAGE_TOKENS, tokens / PAGE_TOKENS);
    let units = IndexUnits::Rows { kv_rows: &kv_rows, summary_rows: &summary_rows, tokens: (0, tokens) };
    let rotations = Rotations { key: &bench.rotation, value: &bench.rotation };
    let rt = bench.runtime.as_ref();
    let bytes = (tokens * case.layers * case.kv_heads * case.head_dim * 4) as f64;
    let mut times = [f64::MAX; 2];
    for _ in 0..3 {
        rt.enqueue(&mut || {
            let start = Instant::now();
            (0..case.layers).for_each(|l| rt.pool_mean(MEANS, l, units, FORM));
            times[0] = times[0].min(1e6 * start.elapsed().as_secs_f64());
            let start = Instant::now();
            (0..case.layers).for_each(|l| rt.rotate_code(CODES, l, units, rotations));
            times[1] = times[1].min(1e6 * start.elapsed().as_secs_f64());
        });
    }
    let line = |op, microseconds| Line { case: case.name, op, microseconds, best: microseconds, bytes };
    vec![line("pool_mean, 6,144 tokens", times[0]), line("rotate_code, 6,144 tokens", times[1])]
}

fn pool_rows(case: &Case) -> usize {
    let kv = geometry::pages(case.tokens + 2);
    kv + kv / 8 + 1 + kv / 6 + 1 + 128 * SKETCH_TOKENS / PAGE_TOKENS
}

fn prepare(backend: &CpuBackend, case: &Case) -> Bench {
    let geometry = Geometry { layers: case.layers, kv_heads: case.kv_heads, head_dim: case.head_dim };
    let d = case.head_dim;
    let runtime = backend
        .runtime(&RuntimeShape {
            geometry,
            q_heads: case.q_heads,
            vocab: 16,
            pool_rows: pool_rows(case),
            dram_rows: 0,
            eviction: kv::bucketed_lru::Eviction::Score,
            max_lanes: 2,
            max_tokens: case.tokens + 2,
            rope: Rope { inv_freq: vec![1.0; d / 2], attention_factor: 1.0 },
        })
        .expect("the runtime fits");
    let mut seed = 1_u64;
    let mut normal = || {
        let mut sum = -6.0;
        for _ in 0..12 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (seed >> 40) as f32 / (1_u64 << 24) as f32;
        }
        sum
    };
    // One block of random bf16, from which frames are cut at changing places.
    let noise: Vec<u8> = (0..1 << 18).flat_map(|_| half::bf16::from_f32(normal()).to_le_bytes()).collect();
    let kv_pages = geometry::pages(case.tokens + 2);
    for page in 0..kv_pages {
        for at in 0..case.layers * case.kv_heads {
            let from = ((page * 31 + at * 17) * 2 * 7919) % (noise.len() - geometry.page_bytes()) / 2 * 2;
            let (layer, head) = (at / case.kv_heads, at % case.kv_heads);
            runtime.write_frame(RowId(page as u32), layer, head, &noise[from..from + geometry.page_bytes()]);
        }
    }
    let identity: Vec<f32> =
        (0..case.kv_heads * d * d).map(|i| f32::from(u8::from((i % (d * d)).is_multiple_of(d + 1)))).collect();
    let name = "identity".to_string();
    let weight = Tensor { name, shape: vec![case.kv_heads, d, d], data: TensorData::F32(identity.into()) };
    let rotation = backend
        .prepare_weight(WeightRole::Rotation, &[WeightPart { weight, bias: None }])
        .expect("the identity is orthogonal");
    let buffer = |cols: usize| backend.buffer("bench", 2, cols).expect("a buffer fits");
    let (q, flat) = (buffer(case.q_heads * d), buffer(case.q_heads * d));
    let query: Vec<f32> = (0..2 * case.q_heads * d).map(|_| normal()).collect();
    // Logits of deviation 8, as heads that look something up have; and of deviation 1.
    runtime.write(&q, &query.iter().map(|x| 8.0 * x).collect::<Vec<_>>());
    runtime.write(&flat, &query);
    let out = Partial { output: buffer(case.q_heads * d), lse: buffer(case.q_heads) };
    let bench = Bench { runtime, q, flat, rotation, out };
    start(&bench, case, kv_pages);
    bench
}

/// Lanes, their summaries, and one whole step of selection.
fn start(bench: &Bench, case: &Case, kv_pages: usize) {
    let rt = bench.runtime.as_ref();
    let rows = |first: usize, n: usize| (first..first + n).map(|row| RowId(row as u32)).collect::<Vec<_>>();
    let kv_rows = rows(0, kv_pages);
    let summaries = [rows(kv_pages, kv_pages / 8 + 1), rows(kv_pages + kv_pages / 8 + 1, kv_pages / 6 + 1)];
    for (i, (algorithm, unit, budget)) in [(MEANS, 8, 0.0156), (CODES, SKETCH_TOKENS, 0.008)].into_iter().enumerate() {
        let selection = Selection {
            index_unit_tokens: unit,
            sink_tokens: 8,
            window_tokens: 64,
            budget,
            floor_tokens: 0,
            min_context: 0,
        };
        let units = IndexUnits::Rows {
            kv_rows: &kv_rows,
            summary_rows: &summaries[i],
            tokens: (0, selection.indexed_tokens(case.tokens)),
        };
        rt.enqueue(&mut || {
            for layer in 0..case.layers {
                match algorithm {
                    MEANS => rt.pool_mean(MEANS, layer, units, FORM),
                    _ => {
                        let rotations = Rotations { key: &bench.rotation, value: &bench.rotation };
                        rt.rotate_code(CODES, layer, units, rotations);
                    }
                }
            }
        });
        rt.start_lane(&LaneStart {
            lane: LaneId(i as u16),
            algorithm,
            selection,
            len: case.tokens - 1,
            first: backend::FirstInput::Prompt { token: 0, outputs: 0 },
            kv_rows: kv_rows.clone(),
            summary_rows: summaries[i].clone(),
            cache_rows: Vec::new(),
            sampling: Sampling::default(),
            prompt: Vec::new(),
            mask: None,
        });
    }
    let algorithms = AlgorithmSet::default().with(MEANS).with(CODES);
    let input = StepInput { active: vec![LaneId(0), LaneId(1)], ..StepInput::default() };
    let key = StepKey { bucket: 2, algorithms, measure_mass: false, retrieves: false };
    let ticket = rt.launch(key, &input, &mut || {
        let q = (&bench.q).into();
        rt.score_dot(MEANS, 0, q, FORM);
        rt.score_codes(CODES, 0, q, &bench.rotation);
        for algorithm in [MEANS, CODES] {
            rt.group_reduce(algorithm);
            rt.topk(algorithm);
        }
    });
    rt.collect(ticket).expect("the device works");
}
