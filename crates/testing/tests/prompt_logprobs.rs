//! Log-probabilities of prompts: against the transformers library's logits, against decode steps that are forced the
//! same tokens, and the same to the bit however the prompt was cut.

use backend::cpu::{CpuOptions, Isa};
use engine::{Event, Feed, FinishReason, PromptToken, Request, Source};
use kv::TokenId;
use model::{ModelSource, Opened, needle_text};
use testing::golden::{TinyModel, tiny_models};
use testing::rig::{Rig, RigOptions};
use testing::simulator::{Simulation, SimulatorConfig, attention, complete, naive, prompt};

/// What a request is told of its prompt, and its completion behind it.
fn read(rig: &Rig, request: Request) -> (Vec<PromptToken>, Vec<TokenId>) {
    let (mut prompt, mut completion, mut told) = (Vec::new(), Vec::new(), 0);
    for event in rig.engine.submit(request).expect("the request is taken") {
        match event {
            Event::PromptLogprobs(tokens) => {
                assert!(completion.is_empty(), "before the first token");
                (prompt, told) = (tokens, told + 1);
            }
            Event::Token(token) => completion.push(token.token),
            Event::Finished(finished) => assert_eq!(finished.reason, FinishReason::Length),
            Event::Failed(why) => panic!("the engine failed: {why}"),
            _ => {}
        }
    }
    assert_eq!(told, 1, "told once");
    (prompt, completion)
}

fn echo(rig: &Rig, tokens: &[TokenId], top: usize) -> Request {
    let dense = rig.attention("dense", |_| ());
    let mut request = Request::new(Source::Prompt(tokens.to_vec()), dense, 0);
    request.prompt_logprobs = Some(top);
    request
}

fn check_tiny(model: &TinyModel, cpu: CpuOptions) {
    let (tokens, bound) = (&model.tokens, model.bound());
    let rig = Rig::start(&model.opened, None, RigOptions { cpu, ..RigOptions::new(1, tokens.len() + 1) });
    let (scores, _) = read(&rig, echo(&rig, tokens, 5));
    assert_eq!(scores.iter().map(|score| score.token).collect::<Vec<_>>(), *tokens);
    assert!(scores[0].logprob.is_none() && scores[0].rank.is_none() && scores[0].top.is_empty());
    // Decode steps that are forced the same tokens.
    let mut forced =
        Request::new(Source::Prompt(tokens[..2].to_vec()), rig.attention("dense", |_| ()), tokens.len() - 2);
    forced.forced = tokens[2..].to_vec();
    let steps = rig.engine.submit(forced).expect("the request is taken").filter_map(|event| match event {
        Event::Token(token) => Some(token.logprob),
        _ => None,
    });
    let steps: Vec<Option<f32>> = steps.collect();
    let (mut worst, mut apart) = (0.0_f64, 0.0_f64);
    for at in 1..tokens.len() {
        let (score, want) = (&scores[at], &model.exact[at - 1]);
        let logprob = score.logprob.expect("all but the first have one");
        let of_top = score.top.iter().map(|(token, x)| (f64::from(*x) - want[*token as usize]).abs());
        worst = of_top.fold(worst.max((f64::from(logprob) - want[tokens[at] as usize]).abs()), f64::max);
        // As many tokens are ahead as the reference has, give or take those within the bound.
        let ahead = |by: f64| want.iter().filter(|x| want[tokens[at] as usize] + by < **x).count() as u32;
        let rank = score.rank.expect("all but the first have one");
        assert!(
            (ahead(2.0 * bound) + 1..=ahead(-2.0 * bound) + 1).contains(&rank),
            "{}: rank {rank} at {at}",
            model.name
        );
        let listed = score.top.iter().position(|(token, _)| *token == tokens[at]);
        assert_eq!(listed.map(|place| place as u32 + 1), (rank <= 5).then_some(rank), "{}: rank at {at}", model.name);
        if let Some(step) = at.checked_sub(2).and_then(|at| steps[at]) {
            apart = apart.max((f64::from(step) - f64::from(logprob)).abs());
        }
    }
    println!("{} {}: error {worst:.2e}, from decode {apart:.2e}, bound {bound:.2e}", model.name, cpu.isa.name());
    assert!(worst <= bound && apart <= bound, "{}: {worst} and {apart} above {bound}", model.name);
}

#[test]
fn a_prompts_log_probabilities_are_the_references_and_those_of_decode_steps() {
    let models = tiny_models();
    assert!(7 <= models.len());
    for model in models {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            check_tiny(&model, CpuOptions { isa, threads: 2 });
        }
    }
}

fn needle() -> Opened {
    model::open(&ModelSource::Bundled).expect("the bundled model opens")
}

#[test]
fn they_do_not_depend_on_units_passes_threads_or_company() {
    let opened = needle();
    let documents: Vec<Vec<TokenId>> =
        [1, 650, 333].into_iter().map(|tokens| needle_text::document(700, 4, 1).ids()[..tokens].to_vec()).collect();
    let options = RigOptions {
        unit_seconds: 1e3,
        cpu: CpuOptions { threads: 1, ..CpuOptions::default() },
        ..RigOptions::new(2, 900)
    };
    let alone = Rig::start(&opened, None, options);
    let want: Vec<_> = documents.iter().map(|tokens| read(&alone, echo(&alone, tokens, 3)).0).collect();
    for (prefill_tokens, threads) in [(900, 2), (100, 3), (77, 1)] {
        let cpu = CpuOptions { threads, ..CpuOptions::default() };
        let mut options = RigOptions { unit_seconds: 0.001, cpu, ..RigOptions::new(4, 900) };
        options.limits.prefill_tokens = prefill_tokens;
        let rig = Rig::start(&opened, None, options);
        let running = rig.request(documents[2].clone(), rig.attention("dense", |_| ()), 500, 1);
        let running = rig.engine.submit(running).expect("the request is taken");
        std::thread::scope(|scope| {
            let rig = &rig;
            let one = |tokens: &Vec<TokenId>| {
                let request = echo(rig, tokens, 3);
                scope.spawn(move || read(rig, request).0)
            };
            let threads: Vec<_> = documents.iter().map(one).collect();
            for (thread, want) in threads.into_iter().zip(&want) {
                assert!(thread.join().expect("it ends") == *want, "passes of {prefill_tokens} tokens change a bit");
            }
        });
        drop(running);
    }
}

#[test]
fn who_asks_gets_the_same_completion() {
    let rig = Rig::start(&needle(), None, RigOptions::new(3, 900));
    let tokens = needle_text::document(300, 4, 2).ids();
    let mut request = rig.request(tokens, rig.attention("sketch", |selection| selection.min_context = 0), 20, 5);
    let plain = rig.answer(request.clone()).tokens;
    request.prompt_logprobs = Some(0);
    request.choices = 2;
    let (scores, both) = read(&rig, request);
    assert!(scores.iter().all(|score| score.top.is_empty()) && both.len() == 40);
    let mut rest = both.iter();
    assert!(plain.iter().all(|token| rest.any(|other| other == token)), "the first choice is the answer alone");
}

#[test]
fn a_prompt_that_is_scored_is_read_whole_whatever_is_cached() {
    let mut config = SimulatorConfig::new(60, 2);
    config.engine.prefix_cache = true;
    let mut simulation = Simulation::new(config);
    let tokens = prompt(1, 100);
    let mut request = complete(tokens.clone(), 0, 1);
    for (prompt_logprobs, cached) in [(None, 0), (Some(2), 0), (None, 96)] {
        request.prompt_logprobs = prompt_logprobs;
        let id = simulation.submit(request.clone()).expect("there is room");
        simulation.run();
        assert_eq!(simulation.finished(id)[0].usage.cached_tokens, cached, "{prompt_logprobs:?}");
        let told = simulation.seen(id).into_iter().find_map(|(_, event)| match event {
            Event::PromptLogprobs(told) => Some(told),
            _ => None,
        });
        assert_eq!(told, prompt_logprobs.map(|top| naive::prompt_logprobs(&tokens, top)));
    }
}

#[test]
fn a_unit_scores_one_part_of_one_prompt() {
    let mut config = SimulatorConfig::new(400, 8);
    // Long enough for all prompts at once: what is in flight is bounded by something else.
    config.engine.unit_seconds = 1e3;
    let mut simulation = Simulation::new(config);
    let prompts: Vec<Vec<TokenId>> = (0..8).map(|seed| prompt(seed, 10 + 30 * seed as usize)).collect();
    let ask = |tokens: &Vec<TokenId>| {
        // Without a completion: a first token would end the unit, too.
        let mut request = complete(tokens.clone(), 0, 0);
        request.prompt_logprobs = Some(1);
        simulation.submit(request).expect("there is room")
    };
    let ids: Vec<_> = prompts.iter().map(ask).collect();
    simulation.run();
    let scored = |line: &String| line.matches(" score ").count();
    let lines = simulation.take_trace();
    assert!(lines.iter().all(|line| scored(line) <= 1), "{}", lines.join("\n"));
    assert_eq!(lines.iter().map(scored).sum::<usize>(), prompts.len(), "as many parts as prompts");
    for (tokens, id) in prompts.iter().zip(ids) {
        let told = simulation.seen(id).into_iter().find_map(|(_, event)| match event {
            Event::PromptLogprobs(told) => Some(told),
            _ => None,
        });
        assert_eq!(told, Some(naive::prompt_logprobs(tokens, 1)));
    }
}

#[test]
fn forks_and_long_lists_are_refused() {
    let mut simulation = Simulation::new(SimulatorConfig::new(60, 2));
    let mut refused = |change: &dyn Fn(&mut Request)| {
        let mut request = complete(vec![1, 2, 3], 0, 1);
        request.prompt_logprobs = Some(0);
        change(&mut request);
        simulation.submit(request).expect_err("it is refused").to_string()
    };
    assert_eq!(refused(&|request| request.prompt_logprobs = Some(21)), "prompt_logprobs is 21 and may be at most 20");
    let mut document = complete(vec![1, 2, 3], 0, 0);
    document.hold = true;
    let document = simulation.submit(document).expect("there is room");
    simulation.run();
    let fork = Source::Fork { parent: simulation.held(document)[0], tokens: vec![5], feed: Feed::Prefill };
    let mut fork = Request::new(fork, attention(0), 1);
    fork.prompt_logprobs = Some(0);
    let refusal = simulation.submit(fork).expect_err("it is refused").to_string();
    assert_eq!(refusal, "prompt_logprobs is not for forks: their parents' tokens are not read");
}
