//! What single days look like, step by step, and what their readers are told.

use engine::{AbortReason, Feed, FinishReason, Request, RequestId, Source};
use testing::simulator::{Simulation, SimulatorConfig, attention, complete, letter, naive, prompt};

/// Plans as text. `script` submits and steps; the trace of its steps is compared.
fn check(config: SimulatorConfig, script: impl Fn(&mut Simulation), expected: &str) {
    let mut simulation = Simulation::new(config);
    script(&mut simulation);
    let trace = simulation.take_trace().join("\n");
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(trace, expected.join("\n"), "\n{trace}\n");
}

/// Units that take `tokens` tokens of a layer, with costs that are known from the start and never vary.
fn exact(pool_rows: usize, max_lanes: usize, unit_seconds: f64) -> SimulatorConfig {
    let mut config = SimulatorConfig::new(pool_rows, max_lanes);
    config.costs.jitter = 0.0;
    config.engine.unit_seconds = unit_seconds;
    config
}

#[test]
fn a_short_prompt_is_one_unit() {
    check(
        exact(20, 2, 1.0),
        |simulation| {
            simulation.submit(complete(prompt(1, 20), 0, 3)).expect("there is room");
            simulation.run();
        },
        "step 1:  s1 layer 0 [0..20) scatter 0 layer 1 [0..20) scatter 1 start lane 0 sample 1
         step 2:  s1 +1
         step 3:  s1 +1",
    );
}

#[test]
fn prompts_are_read_however_little_time_a_unit_has() {
    for max_tokens in [0, 3] {
        let mut simulation = Simulation::new(exact(60, 4, 1e-9));
        let of = |seed| complete(prompt(seed, 20), 1, max_tokens);
        let ids: Vec<_> = (0..4).map(|seed| simulation.submit(of(seed)).expect("there is room")).collect();
        simulation.run();
        ids.into_iter().for_each(|id| assert_eq!(simulation.finished(id)[0].reason, FinishReason::Length));
        simulation.check_empty();
    }
}

#[test]
fn decode_goes_on_between_units_and_a_long_prompt_takes_several_passes() {
    check(
        {
            let mut config = exact(60, 2, 0.001);
            config.engine.prefill_tokens = 64;
            config.engine.decode_share = 0.0;
            config
        },
        |simulation| {
            simulation.submit(complete(prompt(1, 8), 0, 20)).expect("there is room");
            simulation.submit(complete(prompt(2, 100), 0, 1)).expect("there is room");
            for _ in 0..12 {
                simulation.step();
            }
            simulation.abort(RequestId(1));
            simulation.run();
        },
        "step 1:  s1 layer 0 [0..8)
         step 2:  s1 scatter 0
         step 3:  s1 layer 1 [0..8)
         step 4:  s1 scatter 1 start lane 0 sample 1
         step 5:  s2 layer 0 [0..32)  s1 +1
         step 6:  s2 layer 0 [32..64)  s1 +1
         step 7:  s2 scatter 0 layer 1 [0..64) scatter 1 gather 0 [0..64)  s1 +1
         step 8:  s2 layer 0 [64..96)  s1 +1
         step 9:  s2 layer 0 [96..100) scatter 0 gather 1 [0..64) layer 1 [64..100) scatter 1 \
         start lane 1 sample 1  s1 +1
         step 10:  s1 +1
         step 11:  s1 +1
         step 12:  s1 +1",
    );
}

#[test]
fn choices_share_the_prompt_and_part_at_its_end() {
    check(
        exact(20, 4, 1.0),
        |simulation| {
            let mut request = complete(prompt(1, 20), 0, 2);
            request.choices = 3;
            simulation.submit(request).expect("there is room");
            simulation.run();
        },
        "step 1:  s1 layer 0 [0..20) scatter 0 layer 1 [0..20) scatter 1 start lane 0  \
         s2 copy 1 start lane 1  s3 copy 1 start lane 2  s1 sample 3
         step 2:  s1 +1  s2 +1  s3 +1",
    );
}

#[test]
fn a_fork_indexes_its_parent_once_and_later_forks_share_it() {
    check(
        exact(60, 4, 1.0),
        |simulation| {
            let mut document = complete(prompt(1, 116), 0, 0);
            document.hold = true;
            let document = simulation.submit(document).expect("there is room");
            simulation.run();
            let parent = simulation.held(document)[0];
            let fork = |feed, seed| Source::Fork { parent, tokens: prompt(seed, 3), feed };
            for seed in 2..4 {
                let request = Request::new(fork(Feed::Decode, seed), attention(3), 2);
                simulation.submit(request).expect("there is room");
            }
            simulation.run();
            let request = Request::new(fork(Feed::Prefill, 4), attention(1), 1);
            simulation.submit(request).expect("there is room");
            simulation.release(parent);
            simulation.run();
            simulation.check_empty();
        },
        "step 1:  s1 layer 0 [0..116) scatter 0 layer 1 [0..96)
         step 2:  s1 layer 1 [96..116) scatter 1
         step 3:  s2 index s1 layer 0 [0..48) index s1 layer 1 [0..48) copy 1 start lane 0
         step 4:  s3 copy 1 start lane 1  s2 +1=227
         step 5:  s2 +1=952  s3 +1=562
         step 6:  s2 +1  s3 +1=730
         step 7:  s2 +1  s3 +1
         step 8:  s3 +1
         step 9:  s4 index s1 layer 0 [0..80) index s1 layer 1 [0..80) copy 2 gather 0 [0..116) layer 0 [116..119) \
         scatter 0 gather 1 [0..116) layer 1 [116..119) scatter 1 start lane 0 sample 1",
    );
}

#[test]
fn forced_tokens_come_first() {
    check(
        exact(20, 4, 1.0),
        |simulation| {
            let mut request = complete(prompt(1, 5), 0, 4);
            request.forced = vec![7, 8, 9];
            let id = simulation.submit(request).expect("there is room");
            simulation.run();
            let tokens = simulation.tokens(id, 0);
            assert_eq!(tokens.iter().map(|token| token.token).take(3).collect::<Vec<_>>(), [7, 8, 9]);
            assert_eq!(
                tokens.iter().map(|token| token.logprob.is_some()).collect::<Vec<_>>(),
                [false, true, true, true]
            );
        },
        "step 1:  s1 layer 0 [0..5) scatter 0 layer 1 [0..5) scatter 1 start lane 0
         step 2:  s1 +1=8
         step 3:  s1 +1=9
         step 4:  s1 +1",
    );
}

#[test]
fn special_tokens_have_text_where_it_is_asked_for() {
    for (skip_special, expected) in [(true, "cb"), (false, "cab")] {
        let mut simulation = Simulation::new(exact(40, 2, 0.05));
        let mut request = complete(prompt(1, 10), 0, 3);
        (request.forced, request.skip_special) = (vec![2, 0, 1], skip_special);
        let id = simulation.submit(request).expect("there is room");
        simulation.run();
        assert_eq!(simulation.text(id, 0), expected);
    }
}

#[test]
fn a_short_prompt_overtakes_a_long_one_that_is_open() {
    check(
        {
            let mut config = exact(200, 3, 0.004);
            config.layers = 3;
            config
        },
        |simulation| {
            let long = simulation.submit(complete(prompt(1, 1000), 0, 1)).expect("there is room");
            for step in 0..6 {
                if step == 3 {
                    simulation.submit(complete(prompt(2, 40), 0, 1)).expect("there is room");
                }
                simulation.step();
            }
            simulation.abort(long);
            simulation.run();
        },
        "step 1:  s1 layer 0 [0..32)
         step 2:  s1 layer 0 [32..64)
         step 3:  s1 layer 0 [64..128)
         step 4:  s2 layer 0 [0..40) scatter 0 layer 1 [0..40) scatter 1
         step 5:  s2 layer 2 [0..32)
         step 6:  s2 layer 2 [32..40) scatter 2 start lane 1 sample 1",
    );
}

#[test]
fn a_long_prompt_is_overtaken_but_not_for_ever() {
    let mut config = SimulatorConfig::new(2000, 8);
    config.engine.unit_seconds = 0.01;
    let mut simulation = Simulation::new(config);
    let long = simulation.submit(complete(prompt(1, 4000), 0, 1)).expect("there is room");
    let mut seed = 2;
    while simulation.finished(long).is_empty() {
        // Always three shorter prompts beside it.
        while simulation.steps.scheduler.metrics().prefilling_sequences < 4 {
            simulation.submit(complete(prompt(seed, 400), 0, 1)).expect("there is room");
            seed += 1;
        }
        simulation.step();
        assert!(seed < 300, "{seed} prompts have overtaken it");
    }
    assert!(10 < seed, "shorter prompts go first: {seed}");
    simulation.run();
    simulation.check_empty();
}

#[test]
fn an_abort_lets_go_what_the_request_holds() {
    let mut simulation = Simulation::new(SimulatorConfig::new(60, 2));
    let mut request = complete(prompt(1, 30), 1, 3);
    (request.hold, request.choices) = (true, 2);
    let id = simulation.submit(request).expect("there is room");
    simulation.run();
    assert_eq!(simulation.held(id).len(), 2);
    let fork = Source::Fork { parent: simulation.held(id)[0], tokens: vec![1, 2], feed: Feed::Decode };
    let fork = simulation.submit(Request::new(fork, attention(3), 4)).expect("there is room");
    simulation.step();
    simulation.abort(id);
    simulation.run();
    assert_eq!(simulation.finished(fork)[0].reason, FinishReason::Length, "a running fork keeps its parent's rows");
    simulation.check_empty();
}

#[test]
fn an_abort_during_prefill_frees_everything_before_the_next_step() {
    let mut simulation = Simulation::new(exact(60, 2, 0.001));
    let id = simulation.submit(complete(prompt(1, 300), 1, 20)).expect("there is room");
    simulation.step();
    simulation.abort(id);
    simulation.check_empty();
    let end = &simulation.finished(id)[0];
    assert_eq!(end.reason, FinishReason::Aborted(AbortReason::Caller));
    assert!(!simulation.steps.scheduler.is_busy());
}

#[test]
fn a_slow_reader_is_aborted_and_told_so() {
    let mut simulation = Simulation::new(SimulatorConfig::new(60, 2));
    let slow = simulation.submit_impatient(complete(prompt(1, 20), 1, 200), 10).expect("there is room");
    let other = simulation.submit(complete(prompt(2, 20), 1, 200)).expect("there is room");
    simulation.run();
    assert_eq!(simulation.finished(slow)[0].reason, FinishReason::Aborted(AbortReason::SlowReader));
    assert_eq!(simulation.finished(other)[0].reason, FinishReason::Length);
    simulation.check_empty();
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    for steps_in_flight in [1, 2] {
        let mut config = SimulatorConfig::new(60, 2);
        config.steps_in_flight = steps_in_flight;
        let mut simulation = Simulation::new(config);
        let tokens = prompt(3, 20);
        let whole: String =
            naive::completion(&tokens, &[], &[], &backend::Sampling::default(), 40).into_iter().map(letter).collect();
        let stop = whole[10..13].to_string();
        let mut request = complete(tokens, 0, 40);
        request.stop_strings = vec![stop.clone()];
        let id = simulation.submit(request).expect("there is room");
        simulation.run();
        let before = &whole[..whole.find(&stop).expect("it was cut from there")];
        assert_eq!(simulation.text(id, 0), before, "{steps_in_flight} in flight");
        assert_eq!(simulation.finished(id)[0].reason, FinishReason::StopString);
        simulation.check_empty();
    }
}

#[test]
fn timings_are_those_of_the_decode_steps() {
    for steps_in_flight in [1, 2] {
        let mut config = exact(60, 4, 1.0);
        config.steps_in_flight = steps_in_flight;
        let mut simulation = Simulation::new(config);
        let mut document = complete(prompt(1, 30), 0, 0);
        document.hold = true;
        let document = simulation.submit(document).expect("there is room");
        simulation.run();
        let parent = simulation.held(document)[0];
        // Three inputs are fed, so that the third gives the first of two tokens.
        let fork = Source::Fork { parent, tokens: vec![5, 6, 7], feed: Feed::Decode };
        let fed = simulation.submit(Request::new(fork, attention(0), 2)).expect("there is room");
        simulation.run();
        let own = simulation.submit(complete(prompt(2, 20), 0, 3)).expect("there is room");
        simulation.run();
        let [none, fed, own] = [document, fed, own].map(|id| simulation.finished(id)[0].timings);
        assert_eq!((none.decode_steps, none.decode), (0, 0.0));
        assert!(0.0 < none.prefill && none.started == none.ended);
        // A step of one lane takes 4 ms and 0.2 ms.
        for (timings, steps) in [(fed, 4), (own, 2)] {
            assert_eq!(timings.decode_steps, steps);
            assert_eq!(timings.decode, timings.ended - timings.started);
            // The made-up device works when it is asked to: the first of two steps in flight is seen to take nothing.
            let least = (steps + 1 - steps_in_flight) as f64 * 4.2e-3;
            let error = timings.decode - least;
            assert!((-1e-9..1e-3).contains(&error), "{steps_in_flight} in flight: {timings:?}");
        }
        assert!(none.ended <= fed.started && fed.ended <= own.started, "one clock");
        assert!(0.0 < own.prefill);
    }
}

#[test]
fn answers_say_what_ran() {
    let mut simulation = Simulation::new(SimulatorConfig::new(200, 4));
    let mut short = complete(prompt(1, 100), 3, 3);
    short.attention.selection.min_context = 2048;
    let ids = [
        short,
        complete(prompt(2, 500), 3, 3),
        complete(prompt(3, 50), 0, 3),
        complete(prompt(4, 60), 3, 3),
        complete(prompt(5, 500), 3, 1),
        complete(prompt(5, 300), 0, 0),
    ]
    .map(|request| simulation.submit(request).expect("there is room"));
    simulation.run();
    let said = ids.map(|id| simulation.finished(id)[0].attention.to_string());
    assert_eq!(said[0], "dense: below min-context (102 tokens)");
    assert_eq!(said[1], "sketch at 10.00 %: 118 of 502 tokens exact");
    assert_eq!(said[2], "dense (52 tokens)");
    assert_eq!(said[3], "dense: sink and window hold all 62 tokens");
    assert_eq!(said[4], "dense: only the prompt was read (500 tokens)");
    assert_eq!(said[5], "dense: only the prompt was read (300 tokens)");
    let read = ids.map(|id| simulation.finished(id)[0].attention.kv_bytes);
    assert_eq!(read, [10_200, 118 * 100 + 9 * 20 + 48 * 3, 5_200, 6_200, 0, 0], "exact tokens, 9 groups, 48 pages");

    let mut simulation = Simulation::new(SimulatorConfig::new(200, 1));
    simulation.submit(complete(prompt(1, 10), 3, 100)).expect("there is room");
    let waits = simulation.submit(complete(prompt(2, 10), 3, 100)).expect("there is room");
    simulation.abort(waits);
    assert_eq!(simulation.finished(waits)[0].attention.to_string(), "nothing ran");
    simulation.run();
}

#[test]
fn fed_tokens_count_as_context() {
    let mut simulation = Simulation::new(SimulatorConfig::new(200, 4));
    let mut document = complete(prompt(1, 300), 0, 0);
    document.hold = true;
    let document = simulation.submit(document).expect("there is room");
    simulation.run();
    let fork = Source::Fork { parent: simulation.held(document)[0], tokens: prompt(2, 20), feed: Feed::Decode };
    let fork = simulation.submit(Request::new(fork, attention(3), 4)).expect("there is room");
    simulation.run();
    let used = simulation.finished(fork)[0].attention;
    assert_eq!(used.context_tokens, 323);
    assert_eq!(Some(used.exact_tokens), simulation.tokens(fork, 0)[3].exact_tokens);
}

#[test]
fn stop_strings_wait_for_min_tokens() {
    let tokens = prompt(3, 20);
    let whole: String =
        naive::completion(&tokens, &[], &[], &backend::Sampling::default(), 12).into_iter().map(letter).collect();
    let mut simulation = Simulation::new(SimulatorConfig::new(60, 2));
    let mut request = complete(tokens, 0, 12);
    request.stop_strings = vec![whole[2..4].to_string(), whole[8..10].to_string()];
    request.sampling.min_tokens = 10;
    let id = simulation.submit(request).expect("there is room");
    simulation.run();
    assert_eq!(simulation.text(id, 0), whole[..8], "{whole}");
    assert_eq!(simulation.finished(id)[0].reason, FinishReason::StopString);
}

#[test]
fn a_sequence_makes_room_while_it_decodes_and_gets_rows_back_when_nobody_waits() {
    let mut config = exact(60, 4, 1.0);
    config.engine.dram_rows = 500;
    check(
        config,
        |simulation| {
            simulation.submit(complete(prompt(1, 380), 1, 12)).expect("there is room");
            for _ in 0..3 {
                simulation.step();
            }
            simulation.submit(complete(prompt(2, 300), 1, 2)).expect("there is room when the first gives some");
            simulation.run();
        },
        "step 1:  s1 layer 0 [0..192)
         step 2:  s1 layer 0 [192..380) scatter 0 index s1 layer 0 [0..344) layer 1 [0..224)
         step 3:  s1 layer 1 [224..380) scatter 1 index s1 layer 1 [0..344) start lane 0 sample 1
         step 4:  s1 copy 42 cache 0 +23 left 42  s1 +1
         step 5:  s2 layer 0 [0..300) scatter 0 index s2 layer 0 [0..264) layer 1 [0..300) scatter 1 \
         index s2 layer 1 [0..264) start lane 1 sample 1  s1 +1
         step 6:  s1 +1  s2 +1
         step 7:  s1 cache 23 +19  s1 +1
         step 8:  s1 +1
         step 9:  s1 +1
         step 10:  s1 +1
         step 11:  s1 +1
         step 12:  s1 +1
         step 13:  s1 +1
         step 14:  s1 +1",
    );
}

/// A pool of 60 rows and host memory; one sequence that decodes, and another one that needs some of its rows.
fn pressed(unit_seconds: f64, decode_share: f64) -> (Simulation, RequestId) {
    let mut config = exact(60, 4, unit_seconds);
    (config.engine.dram_rows, config.engine.decode_share) = (500, decode_share);
    let mut simulation = Simulation::new(config);
    let first = simulation.submit(complete(prompt(1, 380), 1, 40)).expect("there is room");
    while simulation.tokens(first, 0).is_empty() {
        simulation.step();
    }
    (simulation, first)
}

#[test]
fn who_waits_for_room_gets_it_when_the_one_that_makes_it_ends() {
    // A unit has time for a page or two: room is not made at once.
    let (mut simulation, first) = pressed(1e-6, 0.5);
    let second = simulation.submit(complete(prompt(2, 300), 1, 2)).expect("there is room when the first gives some");
    simulation.step();
    simulation.abort(first);
    simulation.run();
    assert_eq!(simulation.finished(second)[0].reason, FinishReason::Length);
    simulation.check_empty();
}

#[test]
fn who_made_room_for_somebody_who_is_gone_keeps_its_rows() {
    let (mut simulation, _) = pressed(1e-6, 0.0);
    let second = simulation.submit(complete(prompt(2, 300), 1, 2)).expect("there is room when the first gives some");
    (0..3).for_each(|_| assert_eq!(simulation.step(), engine::Progress::Worked));
    assert_eq!(simulation.steps.metrics().made_sparse_total, 0, "room is not made yet");
    assert!(0 < simulation.steps.metrics().offloaded_rows_total, "but it is being made");
    simulation.abort(second);
    simulation.run();
    assert_eq!(simulation.steps.metrics().made_sparse_total, 0);
    simulation.check_empty();
}

#[test]
fn host_memory_that_grows_no_further_leaves_nobody_waiting() {
    let mut config = exact(40, 4, 1.0);
    (config.engine.dram_rows, config.dram_rows_most, config.dram_grows) = (500, 20, true);
    let mut simulation = Simulation::new(config);
    let large = simulation.submit(complete(prompt(1, 600), 1, 5)).expect("as long as memory is being made");
    simulation.run();
    let refused = simulation.seen(large).pop().expect("it is told").1;
    assert!(matches!(refused, engine::Event::Refused(refusal)
        if matches!(*refusal, engine::Refusal::NeverFitsDram { dram_rows: 20, .. })));
    let small = simulation.submit(complete(prompt(1, 200), 1, 5)).expect("there is room");
    simulation.run();
    assert_eq!(simulation.finished(small)[0].reason, FinishReason::Length);
    assert!(simulation.submit(complete(prompt(1, 600), 1, 5)).is_err(), "by now it is known that it never fits");
}

#[test]
fn a_prefix_that_is_kept_is_not_in_the_way_of_the_prompt_that_has_it() {
    let mut config = exact(60, 4, 1.0);
    config.engine.dram_rows = 500;
    let mut simulation = Simulation::new(config);
    let text = prompt(1, 440);
    let first = simulation.submit(complete(text.clone(), 1, 5)).expect("there is room");
    simulation.run();
    let second = simulation.submit(complete([&text[..], &prompt(2, 60)].concat(), 1, 5)).expect("in host memory");
    simulation.run();
    for (id, cached) in [(first, 0), (second, 0)] {
        assert_eq!(simulation.finished(id)[0].reason, FinishReason::Length);
        assert_eq!(simulation.finished(id)[0].usage.cached_tokens, cached);
    }
    simulation.check_empty();
}
