//! Invariants 2 and 3 through the whole engine: a full budget gives dense's answers, and an answer is the same to the
//! bit whatever ran beside it, on however many threads, and however its prompt was cut.

use backend::cpu::{CpuOptions, Isa};
use kv::Selection;
use model::{ModelSource, Opened, needle_text};
use testing::rig::{Answer, Rig, RigOptions, wait};

const ALGORITHMS: [&str; 4] = ["dense", "shadowkv", "shadowkv+estimate", "sketch"];

/// Tokens generated: long enough for several units to become indexed.
const GENERATED: usize = 60;

fn needle() -> Opened {
    model::open(&ModelSource::Bundled).expect("the bundled model opens")
}

/// A document with a question behind it.
fn prompt(context: usize, seed: u64) -> Vec<u32> {
    let document = needle_text::document(context, 20, seed);
    let mut tokens = document.ids();
    tokens.extend(needle_text::ids(&document.facts[7].question()));
    tokens
}

fn low_limits(selection: &mut Selection) {
    selection.min_context = 0;
    selection.floor_tokens = 0;
    selection.budget = 0.05;
}

#[test]
fn a_full_budget_without_estimation_is_dense_to_the_bit() {
    let rig = Rig::start(&needle(), None, RigOptions::new(3, 1400));
    for context in [200, 1100] {
        let ask = |name: &str, budget: f64| {
            let attention = rig.attention(name, |selection| {
                low_limits(selection);
                selection.budget = budget;
            });
            rig.answer(rig.request(prompt(context, 3), attention, GENERATED, 11))
        };
        let dense = ask("dense", 1.0);
        for name in ["shadowkv", "sketch"] {
            assert_eq!(ask(name, 1.0), dense, "{name} at 100 %, context {context}");
            assert!(ask(name, 0.02).exact_tokens < dense.exact_tokens, "{name} at 2 % leaves tokens out");
        }
    }
}

/// What one request answers alone, on one thread, its prompt in one piece.
fn alone(opened: &Opened, isa: Isa, name: &str, context: usize, seed: u64) -> Answer {
    let options = RigOptions { cpu: CpuOptions { threads: 1, isa }, unit_seconds: 1e3, ..RigOptions::new(2, 1400) };
    let rig = Rig::start(opened, None, options);
    let request = rig.request(prompt(context, seed), rig.attention(name, low_limits), GENERATED, seed);
    rig.answer(request)
}

fn check_company(isa: Isa, contexts: &[usize]) {
    let opened = needle();
    let cases: Vec<(&str, usize, u64)> = ALGORITHMS
        .iter()
        .flat_map(|name| contexts.iter().enumerate().map(|(seed, context)| (*name, *context, seed as u64)))
        .collect();
    let want: Vec<Answer> =
        cases.iter().map(|(name, context, seed)| alone(&opened, isa, name, *context, *seed)).collect();
    for threads in [1, 2, 3] {
        // Short units, so that prompts are cut often and decode steps come between.
        let options =
            RigOptions { cpu: CpuOptions { threads, isa }, unit_seconds: 0.002, ..RigOptions::new(cases.len(), 1400) };
        let rig = Rig::start(&opened, None, options);
        let submit = |(name, context, seed): &(&str, usize, u64)| {
            let request = rig.request(prompt(*context, *seed), rig.attention(name, low_limits), GENERATED, *seed);
            rig.engine.submit(request).expect("the request is taken")
        };
        let handles: Vec<_> = cases.iter().map(submit).collect();
        for ((case, want), handle) in cases.iter().zip(&want).zip(handles) {
            assert_eq!(&wait(handle), want, "{case:?} among {} on {threads} threads", cases.len());
        }
    }
}

#[test]
fn answers_do_not_depend_on_company_threads_or_units() {
    check_company(Isa::detect(), &[130, 571, 1023]);
}

#[test]
fn nor_do_they_on_the_portable_kernels() {
    check_company(Isa::Portable, &[301]);
}
