//! Checks of whole decode steps and of the engine on the GPU, with the bundled model.

use crate::arguments::Arguments;
use backend::cpu::{CpuBackend, CpuOptions};
use backend::{Backend, Batch, WeightRole};
use model::ModelSource;
use testing::company::{Company, Member};
use testing::conformance::fixture::{Fixture, bits};
use testing::conformance::heads::ANY_HEADS;
use testing::conformance::{Extent, MakeBackend};
use testing::golden_run::MARGIN;
use testing::greedy::{Comparison, ask, choices, request};
use testing::rig::{Rig, RigOptions, document_and_question, low_limits};

const ALGORITHMS: [&str; 4] = ["dense", "shadowkv", "shadowkv+estimate", "sketch"];

/// Lengths of prompts.
fn contexts(arguments: &Arguments) -> &'static [usize] {
    if arguments.extent == Extent::Reduced { &[200, 700] } else { &[200, 1100, 6000] }
}

/// Steps of lanes of every algorithm give the same bits captured, captured again, and called op by op.
pub(crate) fn captured_steps(arguments: &Arguments) -> String {
    let opened = model::open(&ModelSource::Bundled).expect("the bundled model opens");
    let member = |algorithm, context| Member { algorithm, prompt: document_and_question(context, context as u64) };
    let all = ALGORITHMS.iter().flat_map(|name| contexts(arguments).iter().map(|context| member(*name, *context)));
    let members: Vec<Member> = all.collect();
    let steps = if arguments.extent == Extent::Reduced { 12 } else { 120 };
    let run = |capture| {
        let backend = arguments.backend(capture, None);
        let mut company = Company::new(backend.as_ref(), &opened, &members, steps, low_limits);
        company.steps(steps, Some(5)).expect("the device works")
    };
    let captured = run(true);
    assert_eq!(captured.len(), steps);
    assert!(captured == run(true), "two runs of the same captured steps differ");
    assert!(captured == run(false), "a captured step and its ops called one by one differ");
    format!("{steps} steps of {} lanes under {} algorithms", members.len(), ALGORITHMS.len())
}

/// Tokens of many lanes are what each says alone, up to choices that rounding decides.
pub(crate) fn company(arguments: &Arguments) -> String {
    let (opened, backend) = (model::open(&ModelSource::Bundled).expect("it opens"), arguments.backend(true, None));
    let contexts = contexts(arguments);
    let longest = contexts.iter().max().expect("a context") + 200;
    let cases: Vec<(&str, usize)> =
        ALGORITHMS.iter().flat_map(|name| contexts.iter().map(|context| (*name, *context))).collect();
    let rig = Rig::start_on(backend.as_ref(), &opened, None, RigOptions::new(cases.len(), longest).on_gpu());
    let of = |(name, context): &(&str, usize)| {
        let mut request =
            request(document_and_question(*context, *context as u64), rig.attention(name, low_limits), 60);
        request.cache = false;
        request
    };
    let alone: Vec<_> = cases.iter().map(|case| ask(&rig, of(case))).collect();
    let handles: Vec<_> = cases.iter().map(|case| rig.engine.submit(of(case)).expect("it is taken")).collect();
    let mut comparison = Comparison::default();
    for ((case, alone), handle) in cases.iter().zip(&alone).zip(handles) {
        comparison.add(format!("{case:?}"), alone, &choices(handle));
    }
    let unexplained = comparison.unexplained(MARGIN as f32);
    assert!(unexplained.is_empty(), "alone and in company:\n{}", unexplained.join("\n"));
    comparison.summary()
}

/// A budget of 100 % gives dense's tokens.
pub(crate) fn full_budget(arguments: &Arguments) -> String {
    let (opened, backend) = (model::open(&ModelSource::Bundled).expect("it opens"), arguments.backend(true, None));
    let longest = contexts(arguments).iter().max().expect("a context") + 200;
    let rig = Rig::start_on(backend.as_ref(), &opened, None, RigOptions::new(2, longest).on_gpu());
    let (mut comparison, mut to_the_bit) = (Comparison::default(), 0);
    for context in contexts(arguments) {
        let ask = |name: &str, budget: f64| {
            let attention = rig.attention(name, |selection| {
                low_limits(selection);
                selection.budget = budget;
            });
            let mut request = request(document_and_question(*context, 3), attention, 60);
            request.cache = false;
            ask(&rig, request)
        };
        let dense = ask("dense", 1.0);
        for name in ["shadowkv", "sketch"] {
            let full = ask(name, 1.0);
            to_the_bit += usize::from(full == dense);
            comparison.add(format!("{name} at 100 % of {context}"), &dense, &full);
        }
    }
    let unexplained = comparison.unexplained(MARGIN as f32);
    assert!(unexplained.is_empty(), "a full budget and dense:\n{}", unexplained.join("\n"));
    format!("{}, {to_the_bit} to the bit", comparison.summary())
}

/// A random weight has the elements that the CPU's has.
pub(crate) fn random_weights(arguments: &Arguments) -> String {
    let cpu = CpuBackend::new(CpuOptions::default()).expect("the instruction set is present");
    let (cpu, gpu) = (std::sync::Arc::new(cpu), arguments.backend(false, None));
    let columns = |make: &dyn Fn(usize) -> std::sync::Arc<dyn Backend>| {
        let fixture = Fixture::new(MakeBackend::new(make, Extent::Full), ANY_HEADS, 1, 8, 3);
        let weight = fixture.backend.random_weight(WeightRole::Down, [176, 64], false, 5).expect("a weight");
        let identity: Vec<f32> = (0..64 * 64).map(|i| f32::from(u8::from(i % 65 == 0))).collect();
        let (x, out) = (fixture.buffer(64, 64, &identity), fixture.blank(64, 176));
        fixture.runtime.enqueue(&mut || fixture.runtime.gemm(Batch::Tokens(64), (&x).into(), &weight, (&out).into()));
        fixture.runtime.read(&out)
    };
    let want = columns(&|_| cpu.clone());
    assert_eq!(bits(&columns(&|_| gpu.clone())), bits(&want), "noise depends on the device");
    let square: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
    format!("deviation {:.4} of 64 inputs", (square / want.len() as f64).sqrt())
}
