//! The engine with less room than its sequences take: the same tokens, up to choices that rounding decides.

use crate::arguments::Arguments;
use backend::Backend;
use kv::Selection;
use model::ModelSource;
use testing::golden_run::MARGIN;
use testing::greedy::{Comparison, choices, request};
use testing::rig::{Rig, RigOptions, document_and_question};

const CASES: [(&str, usize); 6] = [
    ("shadowkv", 6000),
    ("sketch", 5500),
    ("shadowkv+estimate", 3000),
    ("shadowkv", 1300),
    ("sketch", 6100),
    ("dense", 900),
];

/// Tokens generated: several pages leave each window.
const GENERATED: usize = 150;

fn low_limits(selection: &mut Selection) {
    selection.min_context = 0;
    selection.floor_tokens = 64;
    selection.budget = 0.03;
}

/// Who is parked in host memory while an older one gets its rows goes on where it was.
fn preempted(backend: &dyn Backend, comparison: &mut Comparison) -> String {
    let opened = model::open(&ModelSource::Bundled).expect("it opens");
    let answers = |pool_rows, dram_rows| {
        let options = RigOptions { pool_rows, dram_rows, horizon_tokens: 32, ..RigOptions::new(4, 3000).on_gpu() };
        let rig = Rig::start_on(backend, &opened, None, options);
        // Places to park in are there when host memory is.
        while rig.engine.metrics().dram_rows < dram_rows {
            rig.answer(request(document_and_question(100, 3), rig.attention("dense", low_limits), 8));
        }
        let of = |context: usize| {
            let mut request = request(document_and_question(context, 3), rig.attention("dense", low_limits), 500);
            (request.cache, request.ignore_eos, request.sampling.repetition_penalty) = (false, true, 1.1);
            request
        };
        let handles = [1500, 900, 2100, 600].map(|context| rig.engine.submit(of(context)).expect("it is taken"));
        (handles.map(choices), rig.engine.metrics().preemptions_total)
    };
    let ((want, _), (got, preemptions)) = (answers(2000, 0), answers(720, 3000));
    assert!(0 < preemptions, "there is no room for all of them");
    for (at, (want, got)) in want.iter().zip(&got).enumerate() {
        comparison.add(format!("dense answer {at}, preempted"), want, got);
    }
    format!("{preemptions} preemptions")
}

/// With a pool for all of them, for half of them, and for little more than the largest one's working set.
pub(crate) fn check(arguments: &Arguments) -> String {
    let (opened, backend) = (model::open(&ModelSource::Bundled).expect("it opens"), arguments.backend(true, None));
    let answers = |pool_rows, dram_rows| {
        let options = RigOptions { pool_rows, dram_rows, ..RigOptions::new(CASES.len(), 6500).on_gpu() };
        let rig = Rig::start_on(backend.as_ref(), &opened, None, options);
        let of = |(name, context): &(&str, usize)| {
            let mut request =
                request(document_and_question(*context, *context as u64), rig.attention(name, low_limits), GENERATED);
            request.cache = false;
            request
        };
        let handles: Vec<_> = CASES.iter().map(|case| rig.engine.submit(of(case)).expect("it is taken")).collect();
        let answers: Vec<_> = handles.into_iter().map(choices).collect();
        (answers, rig.engine.metrics())
    };
    let (want, roomy) = answers(6000, 0);
    assert_eq!((roomy.page_hits_total, roomy.page_misses_total), (0, 0), "with room nothing is fetched");
    let (mut comparison, mut fetched) = (Comparison::default(), Vec::new());
    for pool_rows in [1800, 420] {
        let (got, metrics) = answers(pool_rows, 6000);
        for ((case, want), got) in CASES.iter().zip(&want).zip(&got) {
            comparison.add(format!("{case:?} on {pool_rows} rows"), want, got);
        }
        assert!(0 < metrics.page_hits_total && 0 < metrics.page_misses_total, "{metrics:?}");
        fetched.push(format!("{} hits {} misses", metrics.page_hits_total, metrics.page_misses_total));
    }
    fetched.push(preempted(backend.as_ref(), &mut comparison));
    let unexplained = comparison.unexplained(MARGIN as f32);
    assert!(unexplained.is_empty(), "with room and without:\n{}", unexplained.join("\n"));
    format!("{}; {}", comparison.summary(), fetched.join(", "))
}
