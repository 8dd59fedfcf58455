//! What a prompt shares with those that were read before it, and what becomes of kept rows when others need them.

use engine::{Event, FinishReason, Metrics, Refusal, Request, RequestId, Source};
use kv::TokenId;
use testing::simulator::{Noise, Simulation, SimulatorConfig, attention, complete, naive, prompt};

/// A simulation of exact costs and one unit a prompt.
fn simulation(pool_rows: usize, max_lanes: usize) -> Simulation {
    let mut config = SimulatorConfig::new(pool_rows, max_lanes);
    config.costs.jitter = 0.0;
    config.engine.unit_seconds = 1.0;
    Simulation::new(config)
}

fn metrics(simulation: &Simulation) -> Metrics {
    simulation.steps.scheduler.metrics()
}

/// Runs a request to its end; its tokens are the naive model's. Tells how many of its prompt's were cached.
fn ask(simulation: &mut Simulation, request: Request) -> usize {
    let expected = naive::completion(request.tokens(), &[], &[], &request.sampling, request.max_tokens);
    let id = simulation.submit(request).expect("there is room");
    simulation.run();
    let tokens: Vec<TokenId> = simulation.tokens(id, 0).into_iter().map(|token| token.token).collect();
    assert_eq!(tokens, expected);
    cached(simulation, id)
}

fn cached(simulation: &Simulation, id: RequestId) -> usize {
    simulation.finished(id)[0].usage.cached_tokens
}

fn steps(simulation: &mut Simulation, count: usize) {
    for _ in 0..count {
        simulation.step();
    }
}

/// A text of `tokens` tokens and `more` others behind it.
fn behind(text: &[TokenId], tokens: usize, more: usize) -> Vec<TokenId> {
    [&text[..tokens], &prompt(99, more)].concat()
}

#[test]
fn turn_two_reads_its_own_tokens_and_the_answer_before_them() {
    let mut simulation = simulation(120, 2);
    let first = prompt(1, 250);
    let answer = simulation.submit(complete(first.clone(), 3, 4)).expect("there is room");
    simulation.run();
    let steps = simulation.take_trace().len();
    let answer: Vec<TokenId> = simulation.tokens(answer, 0).into_iter().map(|token| token.token).collect();
    let second = [first, answer, prompt(2, 10)].concat();
    assert_eq!(ask(&mut simulation, complete(second.clone(), 3, 2)), 248);
    // 144 tokens were summarised for turn one's sketch, and are not again.
    let expected = format!(
        "step {}:  s2 gather 0 [0..248) layer 0 [248..264) scatter 0 index s2 layer 0 [144..192) gather 1 [0..248) \
         layer 1 [248..264) scatter 1 index s2 layer 1 [144..192) start lane 0 sample 1\nstep {}:  s2 +1",
        steps + 1,
        steps + 2
    );
    assert_eq!(simulation.take_trace().join("\n"), expected);
    assert_eq!(metrics(&simulation).prefix_queried_tokens_total, 250 + 264);
    assert_eq!(metrics(&simulation).prefix_hit_tokens_total, 248);
    assert_eq!(metrics(&simulation).prefill_tokens_total, 250 + 16);
    // Another algorithm shares K and V and summarises by itself.
    assert_eq!(ask(&mut simulation, complete(second, 1, 2)), 256);
    let trace = simulation.take_trace();
    assert!(trace[0].contains("index s3 layer 0 [0..224)"), "{trace:?}");
    assert_eq!(metrics(&simulation).cached_sequences, 1, "turn two covers turn one");
    simulation.check_empty();
}

#[test]
fn whole_pages_are_shared_and_a_token_is_left_to_read() {
    for (common, own, expected) in
        [(7, 9, 0), (8, 8, 8), (9, 1, 8), (16, 0, 8), (17, 0, 16), (40, 0, 32), (41, 5, 40), (47, 1, 40), (48, 1, 48)]
    {
        let mut simulation = simulation(60, 2);
        let text = prompt(1, 50);
        assert_eq!(ask(&mut simulation, complete(text.clone(), 0, 2)), 0);
        let second = behind(&text, common, own);
        assert_eq!(ask(&mut simulation, complete(second, 0, 2)), expected, "{common} and {own}");
    }
}

#[test]
fn a_running_prompt_is_shared_from_its_first_token_on() {
    for steps_in_flight in [1, 2] {
        let mut config = SimulatorConfig::new(120, 3);
        config.steps_in_flight = steps_in_flight;
        let mut simulation = Simulation::new(config);
        let text = prompt(1, 200);
        let first = simulation.submit(complete(text.clone(), 1, 60)).expect("there is room");
        while simulation.tokens(first, 0).is_empty() {
            simulation.step();
        }
        let second = simulation.submit(complete(behind(&text, 200, 5), 1, 60)).expect("there is room");
        simulation.step();
        // The one that they share it with ends before both.
        simulation.abort(first);
        let third = simulation.submit(complete(behind(&text, 100, 5), 3, 60)).expect("there is room");
        simulation.run();
        assert_eq!((cached(&simulation, second), cached(&simulation, third)), (200, 96));
        assert_eq!(simulation.finished(second)[0].reason, FinishReason::Length);
        simulation.check_empty();
    }
}

#[test]
fn an_aborted_prompt_is_kept_once_it_is_read() {
    let mut simulation = simulation(60, 2);
    let text = prompt(1, 80);
    let id = simulation.submit(complete(text.clone(), 0, 100)).expect("there is room");
    steps(&mut simulation, 4);
    simulation.abort(id);
    assert_eq!(ask(&mut simulation, complete(behind(&text, 80, 1), 0, 2)), 80);
}

#[test]
fn choices_share_a_cached_prompt() {
    let mut simulation = simulation(120, 4);
    let text = prompt(1, 100);
    ask(&mut simulation, complete(text.clone(), 2, 2));
    let mut request = complete(behind(&text, 100, 7), 2, 30);
    request.choices = 3;
    let id = simulation.submit(request.clone()).expect("there is room");
    simulation.run();
    for choice in 0..3 {
        let tokens: Vec<TokenId> = simulation.tokens(id, choice).into_iter().map(|token| token.token).collect();
        let sampling = backend::Sampling { choice, ..Default::default() };
        assert_eq!(tokens, naive::completion(request.tokens(), &[], &[], &sampling, 30), "choice {choice}");
    }
    assert!(simulation.finished(id).iter().all(|end| end.usage.cached_tokens == 96));
    simulation.check_empty();
}

#[test]
fn who_opts_out_reads_everything_and_leaves_nothing() {
    let text = prompt(1, 100);
    let twice = |engine_on: bool, first_on: bool, second_on: bool| {
        let mut config = SimulatorConfig::new(60, 2);
        config.engine.prefix_cache = engine_on;
        let mut simulation = Simulation::new(config);
        let mut request = complete(text.clone(), 1, 3);
        request.cache = first_on;
        ask(&mut simulation, request.clone());
        request.cache = second_on;
        let cached = ask(&mut simulation, request);
        (cached, metrics(&simulation).cached_rows)
    };
    // 12 pages; 64 of their tokens are summarised, half a row.
    assert_eq!(twice(true, true, true), (96, 12));
    assert_eq!(twice(true, false, true), (0, 12));
    assert_eq!(twice(true, true, false), (0, 12));
    assert_eq!(twice(true, false, false), (0, 0));
    assert_eq!(twice(false, true, true), (0, 0));
}

#[test]
fn a_prompt_that_is_scored_is_read_from_its_first_token_and_kept() {
    let mut simulation = simulation(60, 2);
    let text = prompt(1, 100);
    ask(&mut simulation, complete(text.clone(), 1, 2));
    let mut scored = complete(behind(&text, 100, 20), 1, 2);
    scored.prompt_logprobs = Some(1);
    assert_eq!(ask(&mut simulation, scored), 0);
    assert_eq!(metrics(&simulation).prefix_queried_tokens_total, 100);
    assert_eq!(ask(&mut simulation, complete(behind(&text, 100, 30), 1, 2)), 120);
    simulation.check_empty();
}

#[test]
fn kept_rows_are_given_up_before_anybody_waits() {
    let mut simulation = simulation(40, 3);
    let texts: Vec<Vec<TokenId>> = (1..4).map(|seed| prompt(seed, 96)).collect();
    for text in &texts {
        assert_eq!(ask(&mut simulation, complete(text.clone(), 0, 2)), 0);
    }
    assert_eq!(metrics(&simulation).cached_rows, 36);
    // 13 rows beside a running one of 13: everything but 10 rows, of which the second's are the oldest.
    let running = simulation.submit(complete(prompt(7, 90), 0, 10)).expect("there is room");
    simulation.step();
    ask_now(&mut simulation, complete(prompt(8, 90), 0, 10));
    simulation.run();
    assert_eq!(simulation.finished(running)[0].reason, FinishReason::Length);
    let known = |simulation: &mut Simulation, text: &[TokenId]| ask(simulation, complete(behind(text, 96, 1), 0, 1));
    assert_eq!(known(&mut simulation, &texts[2]), 96, "the latest one is still there");
    assert_eq!(known(&mut simulation, &texts[0]), 0, "the first one went first");
}

/// The request is admitted with the next step.
fn ask_now(simulation: &mut Simulation, request: Request) {
    simulation.submit(request).expect("there is room");
    assert_eq!(metrics(simulation).waiting_requests, 0, "nobody waits for kept rows");
}

#[test]
fn a_request_that_takes_the_whole_pool_is_admitted_beside_its_own_prefix() {
    for algorithm in 0..4 {
        for other in 0..4 {
            let text = prompt(1, 200);
            let mut request = complete(behind(&text, 160, 30), algorithm, 50);
            request.choices = 2;
            let mut probe = Simulation::new(SimulatorConfig::new(10, 2));
            let refusal = probe.submit(request.clone()).expect_err("it does not fit");
            let Refusal::NeverFits { wanted_rows, .. } = refusal else { panic!("{refusal}") };
            let mut simulation = simulation(wanted_rows, 2);
            ask(&mut simulation, complete(text.clone(), other, 1));
            assert_eq!(ask(&mut simulation, request), 160, "{algorithm} behind {other}");
            simulation.check_empty();
        }
    }
}

#[test]
fn a_fork_takes_kept_rows_as_well_and_held_ones_stay() {
    let mut simulation = simulation(40, 2);
    let text = prompt(1, 80);
    let mut document = complete(text.clone(), 0, 0);
    document.hold = true;
    let document = simulation.submit(document).expect("there is room");
    simulation.run();
    ask(&mut simulation, complete(prompt(2, 200), 0, 2));
    assert_eq!(metrics(&simulation).cached_rows, 25);
    let source =
        Source::Fork { parent: simulation.held(document)[0], tokens: prompt(3, 100), feed: engine::Feed::Prefill };
    ask_now(&mut simulation, Request::new(source, attention(0), 50));
    simulation.run();
    // The held document's rows serve new prompts too, but are never given up.
    assert_eq!(ask(&mut simulation, complete(behind(&text, 80, 100), 0, 50)), 80);
    let refused = simulation.submit(complete(prompt(4, 240), 0, 8)).expect_err("held rows are in its way");
    assert!(matches!(refused, Refusal::HeldRows { wanted_rows: 32, held_rows: 10, .. }), "{refused:?}");
    simulation.release(simulation.held(document)[0]);
    assert_eq!(ask(&mut simulation, complete(prompt(4, 240), 0, 8)), 0);
    simulation.check_empty();
}

#[test]
fn nobody_starves_and_nothing_leaks_in_the_smallest_pool() {
    for seed in 0..60 {
        let mut noise = Noise(seed);
        let texts: Vec<Vec<TokenId>> = (0..3).map(|_| prompt(noise.number(), 150)).collect();
        let requests: Vec<Request> = (0..40)
            .map(|_| {
                let text = &texts[noise.below(3)];
                let tokens = [&text[..noise.below(150)], &prompt(noise.number(), 1 + noise.below(20))].concat();
                let mut request = complete(tokens, noise.below(4) as u8, noise.below(30));
                request.choices = 1 + noise.below(2);
                request
            })
            .collect();
        // The largest one just fits.
        let wants = |request: &Request| match Simulation::new(SimulatorConfig::new(1, 2)).submit(request.clone()) {
            Err(Refusal::NeverFits { wanted_rows, .. }) => wanted_rows,
            other => panic!("one row is not enough: {other:?}"),
        };
        let rows = requests.iter().map(wants).max().expect("there are requests");
        let mut config = SimulatorConfig::new(rows, 2 + noise.below(3));
        config.steps_in_flight = 1 + noise.below(2);
        config.engine.prefill_tokens = [32, 1000][noise.below(2)];
        let mut simulation = Simulation::new(config);
        let mut ids = Vec::new();
        for request in requests {
            ids.push((simulation.submit(request.clone()).expect("the queue is long"), request));
            steps(&mut simulation, noise.below(12));
            if noise.once_in(6) {
                simulation.abort(ids[noise.below(ids.len())].0);
            }
        }
        simulation.run();
        for (id, request) in ids {
            let ends = simulation.finished(id);
            assert_eq!(ends.len(), request.choices, "seed {seed}: {id}");
            assert!(!simulation.seen(id).iter().any(|(_, event)| matches!(event, Event::Refused(_))));
        }
        simulation.check_empty();
        let metrics = metrics(&simulation);
        assert!(0 < metrics.prefix_hit_tokens_total && 0 < metrics.prefix_evicted_tokens_total, "seed {seed}");
    }
}

#[test]
fn a_lost_day_leaves_nothing_in_the_cache() {
    let mut simulation = simulation(40, 2);
    ask(&mut simulation, complete(prompt(1, 100), 0, 2));
    simulation.steps.abandon("made up");
    let metrics = metrics(&simulation);
    assert_eq!((metrics.free_rows, metrics.cached_sequences), (40, 0));
    simulation.check_empty();
}
