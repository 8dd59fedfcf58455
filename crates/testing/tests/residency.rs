//! Where pages are never changes an answer: the same tokens to the bit with the pool at 100 %, 50 % and 25 % of what
//! eight sequences take fully resident, and at the least that one of them needs; below that it is refused.

use backend::cpu::CpuBackend;
use engine::{Event, Feed, Metrics, Refusal, Request, Source};
use kv::bucketed_lru::Eviction;
use kv::{Demand, Indexing, Residence, SummaryKey};
use testing::rig::{Answer, Rig, RigOptions, document_and_question, low_limits, needle, wait};

const CASES: [(&str, usize); 8] = [
    ("shadowkv", 1023),
    ("sketch", 1300),
    ("shadowkv+estimate", 900),
    ("shadowkv", 571),
    ("sketch", 640),
    ("shadowkv", 1390),
    ("sketch", 1111),
    ("shadowkv+estimate", 1400),
];

/// Tokens generated: long enough for several units to leave the window.
const GENERATED: usize = 120;

fn request(rig: &Rig, case: usize) -> Request {
    let (name, context) = CASES[case];
    rig.request(document_and_question(context, case as u64), rig.attention(name, low_limits), GENERATED, case as u64)
}

/// What one of the requests takes.
fn demand(rig: &Rig, case: usize, residence: Residence) -> Demand {
    let request = request(rig, case);
    let spec = rig.decoder.algorithms().specs().get(request.attention.algorithm).clone();
    let row_tokens = spec.summary_row_tokens.expect("these algorithms keep summaries");
    let key = SummaryKey { algorithm: request.attention.algorithm.0, row_tokens };
    let start = request.tokens().len();
    let indexing = Indexing { key, selection: request.attention.selection };
    Demand::alone(start, start + GENERATED + 1, indexing, residence)
}

fn rig(pool_rows: usize, dram_rows: usize, eviction: Eviction) -> Rig {
    let options = RigOptions { pool_rows, dram_rows, eviction, unit_seconds: 0.01, ..RigOptions::new(8, 1700) };
    Rig::start(&needle(), None, options)
}

/// Metrics when everything has come back.
fn at_rest(rig: &Rig) -> Metrics {
    for _ in 0..200 {
        let metrics = rig.engine.metrics();
        let free = (metrics.free_rows + metrics.cached_rows, metrics.dram_free_rows, metrics.reserved_rows);
        if free == (metrics.pool_rows, metrics.dram_rows, 0) && metrics.dram_reserved_rows == 0 {
            return metrics;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("rows leak: {:?}", rig.engine.metrics());
}

/// Every case's answer, all asked for at once.
fn answers(rig: &Rig) -> (Vec<Answer>, Metrics) {
    let handles: Vec<_> =
        (0..CASES.len()).map(|case| rig.engine.submit(request(rig, case)).expect("it is taken")).collect();
    let answers = handles.into_iter().map(wait).collect();
    (answers, at_rest(rig))
}

fn alone() -> (Rig, Vec<Answer>, usize) {
    let roomy = rig(4000, 0, Eviction::default());
    let want = (0..CASES.len()).map(|case| roomy.answer(request(&roomy, case))).collect();
    let all = (0..CASES.len()).map(|case| demand(&roomy, case, Residence::Full).total().pool()).sum();
    (roomy, want, all)
}

#[test]
fn answers_are_the_same_however_few_rows_there_are() {
    let (roomy, want, all) = alone();
    let least = (0..CASES.len()).map(|case| demand(&roomy, case, Residence::Sparse).pool_least());
    let least = least.max().expect("there are cases");
    for pool_rows in [all, all / 2, all / 4, least] {
        for eviction in [Eviction::Age, Eviction::Score, Eviction::FadingScore] {
            let (got, metrics) = answers(&rig(pool_rows, 3000, eviction));
            assert_eq!(got, want, "{pool_rows} of {all} rows, {eviction:?}");
            let fetched = metrics.page_misses_total;
            println!("{pool_rows} of {all} rows, {eviction:?}: {} hits, {fetched} misses", metrics.page_hits_total);
            assert_eq!(0 < fetched, pool_rows < all, "pages are fetched where they do not fit: {metrics:?}");
        }
    }
}

#[test]
fn nor_do_they_depend_on_where_host_memory_is() {
    let (_, want, all) = alone();
    let options = RigOptions { pool_rows: all / 4, dram_rows: 3000, unit_seconds: 0.01, ..RigOptions::new(8, 1700) };
    let backend = CpuBackend::new(options.cpu).expect("a CPU").with_host_folder(std::env::temp_dir());
    let (got, metrics) = answers(&Rig::start_on(&backend, &needle(), None, options));
    assert_eq!(got, want, "pages in a file");
    assert!(0 < metrics.page_misses_total, "{metrics:?}");
}

#[test]
fn below_one_sequences_least_it_is_refused_with_both_sizes() {
    let needs = demand(&rig(4000, 0, Eviction::default()), 7, Residence::Sparse);
    let least = needs.pool_least();
    let small = rig(least - 1, 3000, Eviction::default());
    let refusal = small.engine.submit(request(&small, 7)).map(drop).expect_err("a row is missing");
    assert!(matches!(refusal, Refusal::NeverFits { wanted_rows, .. } if wanted_rows == least), "{refusal}");
    let dram = needs.total().dram;
    let small = rig(least, dram - 1, Eviction::default());
    let refusal = small.engine.submit(request(&small, 7)).map(drop).expect_err("a row of host memory is missing");
    assert!(matches!(refusal, Refusal::NeverFitsDram { wanted_rows, .. } if wanted_rows == dram), "{refusal}");
    rig(least, dram, Eviction::default()).answer(request(&small, 7));
}

/// Long answers under dense attention and others, with penalties, which lanes count.
fn long_answers(rig: &Rig) -> Vec<Answer> {
    let cases = [("dense", 640), ("dense", 333), ("dense", 801), ("sketch", 500), ("dense", 57), ("shadowkv", 420)];
    let ask = |(seed, (name, context)): (usize, &(&str, usize))| {
        let tokens = document_and_question(*context, seed as u64);
        let mut request = rig.request(tokens, rig.attention(name, low_limits), 300 + 40 * seed, seed as u64);
        (request.sampling.repetition_penalty, request.sampling.presence_penalty) = (1.1, 0.3);
        request.ignore_eos = true;
        rig.engine.submit(request).expect("it is taken")
    };
    let handles: Vec<_> = cases.iter().enumerate().map(ask).collect();
    handles.into_iter().map(wait).collect()
}

#[test]
fn who_is_preempted_goes_on_where_it_was() {
    let want = long_answers(&rig(4000, 0, Eviction::default()));
    let mut preemptions = 0;
    for (pool_rows, horizon_tokens) in [(400, 16), (300, 16), (250, 8), (200, 1)] {
        let options = RigOptions::new(8, 1700);
        let options = RigOptions { pool_rows, dram_rows: 3000, horizon_tokens, unit_seconds: 0.01, ..options };
        let small = Rig::start(&needle(), None, options);
        assert_eq!(long_answers(&small), want, "{pool_rows} rows, {horizon_tokens} tokens at a time");
        let metrics = at_rest(&small);
        println!("{pool_rows} rows, {horizon_tokens} tokens at a time: {} preemptions", metrics.preemptions_total);
        preemptions += metrics.preemptions_total;
    }
    assert!(0 < preemptions, "there is not room for all of them");
}

/// A held document and questions of every algorithm behind it, of which there is no room for all.
fn forks(rig: &Rig) -> Vec<Answer> {
    let mut document = rig.request(document_and_question(1400, 5), rig.attention("sketch", low_limits), 0, 5);
    document.hold = true;
    let mut handle = rig.engine.submit(document).expect("it is taken");
    let held = handle.find_map(|event| match event {
        Event::Held { sequence, .. } => Some(sequence),
        _ => None,
    });
    let parent = held.expect("the document is held");
    let names = ["sketch", "dense", "shadowkv", "sketch", "shadowkv+estimate", "shadowkv"];
    let ask = |(seed, name): (usize, &&str)| {
        let tokens = document_and_question(200, seed as u64)[..20 + seed].to_vec();
        let feed = if seed % 2 == 0 { Feed::Decode } else { Feed::Prefill };
        let source = Source::Fork { parent, tokens, feed };
        let mut request = Request { source, ..rig.request(vec![1], rig.attention(name, low_limits), 40, 9) };
        request.choices = 1 + usize::from(seed == 3);
        rig.engine.submit(request).expect("it is taken")
    };
    let handles: Vec<_> = names.iter().enumerate().map(ask).collect();
    let answers = handles.into_iter().map(wait).collect();
    rig.engine.release(parent);
    at_rest(rig);
    answers
}

#[test]
fn forks_answer_the_same_wherever_their_parent_is() {
    let want = forks(&rig(4000, 0, Eviction::default()));
    for pool_rows in [700, 450, 420] {
        assert_eq!(forks(&rig(pool_rows, 3000, Eviction::default())), want, "{pool_rows} rows");
    }
}
