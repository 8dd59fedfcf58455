//! Invariants 2 and 3 through the whole engine: a full budget gives dense's answers, and an answer is the same to the
//! bit whatever ran beside it, on however many threads, and however its prompt was cut.

use backend::cpu::{CpuOptions, Isa};
use engine::{Event, Feed, Request, Source};
use model::Opened;
use testing::constraints::{Fixed, Residue};
use testing::rig::{Answer, Rig, RigOptions, document_and_question, low_limits, needle, wait};

const ALGORITHMS: [&str; 4] = ["dense", "shadowkv", "shadowkv+estimate", "sketch"];

/// Tokens generated: long enough for several units to become indexed.
const GENERATED: usize = 60;

#[test]
fn a_full_budget_without_estimation_is_dense_to_the_bit() {
    let rig = Rig::start(&needle(), None, RigOptions::new(3, 1400));
    for context in [200, 1100] {
        let ask = |name: &str, budget: f64| {
            let attention = rig.attention(name, |selection| {
                low_limits(selection);
                selection.budget = budget;
            });
            rig.answer(rig.request(document_and_question(context, 3), attention, GENERATED, 11))
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
    let request = rig.request(document_and_question(context, seed), rig.attention(name, low_limits), GENERATED, seed);
    rig.answer(request)
}

fn check_company(isa: Isa, contexts: &[usize], prefill_tokens: usize) {
    let opened = needle();
    let cases: Vec<(&str, usize, u64)> = ALGORITHMS
        .iter()
        .flat_map(|name| contexts.iter().enumerate().map(|(seed, context)| (*name, *context, seed as u64)))
        .collect();
    let want: Vec<Answer> =
        cases.iter().map(|(name, context, seed)| alone(&opened, isa, name, *context, *seed)).collect();
    for threads in [1, 2, 3] {
        // Short units, so that prompts are cut often and decode steps come between.
        let cpu = CpuOptions { threads, isa };
        let mut options = RigOptions { cpu, unit_seconds: 0.002, ..RigOptions::new(cases.len(), 1400) };
        options.limits.prefill_tokens = prefill_tokens;
        let rig = Rig::start(&opened, None, options);
        let submit = |(name, context, seed): &(&str, usize, u64)| {
            let request =
                rig.request(document_and_question(*context, *seed), rig.attention(name, low_limits), GENERATED, *seed);
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
    check_company(Isa::detect(), &[130, 571, 1023], 1400);
}

#[test]
fn nor_on_how_many_passes_a_prompt_takes() {
    check_company(Isa::detect(), &[130, 1023], 100);
}

#[test]
fn nor_do_they_on_the_kernels_of_lesser_machines() {
    for isa in Isa::ALL.into_iter().filter(|isa| *isa != Isa::detect() && isa.is_available()) {
        check_company(isa, &[301], 128);
    }
}

#[test]
fn short_prompts_that_overtake_a_long_one_leave_its_first_token_alone() {
    let opened = needle();
    let want = alone(&opened, Isa::detect(), "sketch", 1300, 5);
    let options = RigOptions { unit_seconds: 0.0005, ..RigOptions::new(64, 1400) };
    let rig = Rig::start(&opened, None, options);
    for _ in 0..5 {
        let long = rig.request(document_and_question(1300, 5), rig.attention("sketch", low_limits), GENERATED, 5);
        let long = rig.engine.submit(long).expect("the request is taken");
        // Arrive one after the other while the long prompt is read, and while it is indexed.
        let shorts: Vec<_> = (0..60)
            .map(|seed| {
                let request = rig.request(document_and_question(70, seed), rig.attention("dense", low_limits), 1, seed);
                rig.engine.submit(request).expect("the request is taken")
            })
            .collect();
        shorts.into_iter().for_each(|short| drop(wait(short)));
        assert_eq!(wait(long), want);
    }
}

#[test]
fn a_suffix_behind_a_held_prompt_is_the_whole_prompt_to_the_bit() {
    let opened = needle();
    let rig = Rig::start(&opened, None, RigOptions::new(4, 1400));
    let whole = document_and_question(1000, 2);
    for name in ALGORITHMS {
        let attention = rig.attention(name, low_limits);
        let want = rig.answer(rig.request(whole.clone(), attention, GENERATED, 9));
        for cut in [1, 7, 8, 500, whole.len() - 1] {
            let dense = rig.attention("dense", low_limits);
            let held = eval::Document::read(&rig.engine, whole[..cut].to_vec(), dense, |_, _| ()).expect("it fits");
            let mut request = rig.request(Vec::new(), attention, GENERATED, 9);
            let tokens = whole[cut..].to_vec();
            request.source = Source::Fork { parent: held.sequence(), tokens, feed: Feed::Prefill };
            assert_eq!(rig.answer(request), want, "{name} cut at {cut}");
        }
    }
}

#[test]
fn choices_share_a_prompt_and_differ_by_their_noise_alone() {
    let opened = needle();
    let rig = Rig::start(&opened, None, RigOptions::new(6, 1400));
    for (name, context) in [("dense", 333), ("sketch", 1001), ("shadowkv", 1004)] {
        let ask = |choice: u32, choices: usize| {
            let mut request =
                rig.request(document_and_question(context, 4), rig.attention(name, low_limits), GENERATED, 21);
            request.sampling.choice = choice;
            request.sampling.temperature = 1.5;
            request.choices = choices;
            request
        };
        let together = eval_choices(&rig, ask(0, 3));
        assert_eq!(together.len(), 3);
        assert_ne!(together[0], together[1], "{name}: noise differs by choice");
        assert_eq!(together[0], rig.answer(ask(0, 1)).tokens, "{name}: the first choice is the answer alone");
        assert_eq!(eval_choices(&rig, ask(0, 3)), together, "{name}: and all of them repeat");
    }
}

fn eval_choices(rig: &Rig, request: Request) -> Vec<Vec<u32>> {
    let mut tokens = vec![Vec::new(); request.choices];
    for event in rig.engine.submit(request).expect("the request is taken") {
        if let Event::Token(token) = event {
            tokens[token.choice as usize].push(token.token);
        }
    }
    tokens
}

#[test]
fn constrained_answers_do_not_depend_on_company() {
    let opened = needle();
    let ask = |rig: &Rig, name: &str, seed: u64| {
        let mut request =
            rig.request(document_and_question(300, seed), rig.attention(name, low_limits), GENERATED, seed);
        request.constraint = match seed {
            0 => Some(Residue::factory(2, 0, &[])),
            1 => Some(Fixed::factory(&[7; GENERATED])),
            _ => None,
        };
        (request.sampling.temperature, request.sampling.top_logprobs) = (if seed == 0 { 1.5 } else { 0.0 }, 3);
        request
    };
    let cases: Vec<(&str, u64)> =
        ["dense", "sketch"].into_iter().flat_map(|name| (0..3).map(move |seed| (name, seed))).collect();
    let one = RigOptions { cpu: CpuOptions { threads: 1, ..CpuOptions::default() }, ..RigOptions::new(1, 500) };
    let want: Vec<Answer> = cases
        .iter()
        .map(|(name, seed)| {
            let rig = Rig::start(&opened, None, one);
            let answer = rig.answer(ask(&rig, name, *seed));
            assert_eq!(answer.tokens.len(), GENERATED);
            answer
        })
        .collect();
    for (answer, (_, seed)) in want.iter().zip(&cases) {
        match seed {
            0 => assert!(answer.tokens.iter().all(|token| token % 2 == 0), "{:?}", answer.tokens),
            1 => assert_eq!(answer.tokens, [7; GENERATED]),
            _ => {}
        }
        assert!(answer.logprobs.iter().all(|bits| f32::from_bits(*bits).is_finite()), "log-probabilities are finite");
    }
    let rig = Rig::start(&opened, None, RigOptions { unit_seconds: 0.002, ..RigOptions::new(6, 500) });
    let handles: Vec<_> =
        cases.iter().map(|(name, seed)| rig.engine.submit(ask(&rig, name, *seed)).expect("it is taken")).collect();
    for (handle, want) in handles.into_iter().zip(&want) {
        assert_eq!(wait(handle), *want);
    }
    let mut request = ask(&rig, "dense", 0);
    request.choices = 3;
    let choices = eval_choices(&rig, request);
    assert!(choices.iter().flatten().all(|token| token % 2 == 0) && choices[0] != choices[1]);
    assert_eq!(choices[0], want[0].tokens, "the first choice is the answer alone");
}
