//! What the engine does not take, and what it says of it.

use engine::{Event, Feed, FinishReason, Refusal, Request, RequestId, Source};
use kv::SequenceId;
use testing::simulator::{Simulation, SimulatorConfig, attention, complete, prompt};

/// A request's refusal, as people read it.
fn check_refusal(request: Request, expected: &str) {
    let mut config = SimulatorConfig::new(20, 2);
    config.engine.max_model_len = 1000;
    config.engine.max_queue = 1;
    let mut simulation = Simulation::new(config);
    let refusal = simulation.submit(request).expect_err("it can never run");
    assert_eq!(refusal.to_string(), expected);
    simulation.check_empty();
}

#[test]
fn what_can_never_run_is_refused_with_both_sizes() {
    check_refusal(
        complete(prompt(1, 1001), 0, 10),
        "the prompt has 1001 tokens and a sequence may have 1000, completion included: shorten the prompt or raise \
         --max-model-len",
    );
    check_refusal(
        complete(prompt(1, 200), 0, 10),
        "the request needs 27 rows of KV memory (27 MiB) and the pool has 20 (20 MiB): raise --kv-memory, or ask for \
         fewer tokens or choices",
    );
    let mut request = complete(prompt(1, 8), 0, 1);
    request.choices = 3;
    check_refusal(request, "3 choices were asked for and at most 2 sequences decode at once: raise --max-lanes");
    let fork = Source::Fork { parent: SequenceId(77), tokens: vec![1], feed: Feed::Prefill };
    let request = Request::new(fork, attention(0), 1);
    check_refusal(request, "sequence s77 is not held: only a held sequence can be forked");
    check_refusal(complete(Vec::new(), 0, 1), "the prompt has no tokens");
}

#[test]
fn tokens_that_the_model_does_not_know_are_refused() {
    let check = |field: &str, set: &dyn Fn(&mut Request)| {
        let mut request = complete(prompt(1, 8), 0, 1);
        set(&mut request);
        let tokens = "and the model's vocabulary has 1024 tokens, from 0 to 1023";
        check_refusal(request, &format!("{field} has token 1024 {tokens}"));
    };
    check("the prompt", &|request| request.source = Source::Prompt(vec![3, 1023, 1024]));
    check("forced", &|request| request.forced = vec![1024]);
    check("logit_bias", &|request| request.sampling.logit_bias = vec![(1, 1.0), (1024, 1.0)]);
    check("suppressed", &|request| request.sampling.suppressed = vec![1024]);
    check("stop_tokens", &|request| request.stop_tokens = vec![1024]);

    let mut simulation = Simulation::new(SimulatorConfig::new(60, 2));
    let mut document = complete(prompt(1, 30), 0, 0);
    document.hold = true;
    let document = simulation.submit(document).expect("there is room");
    simulation.run();
    let fork = Source::Fork { parent: simulation.held(document)[0], tokens: vec![5, 1024], feed: Feed::Decode };
    let refusal = simulation.submit(Request::new(fork, attention(0), 1)).expect_err("it has an unknown token");
    assert_eq!(refusal, Refusal::UnknownToken { field: "the prompt", token: 1024, vocab: 1024 });
}

#[test]
fn numbers_out_of_range_are_refused() {
    let mut request = complete(prompt(1, 8), 0, 1);
    request.sampling.top_p = f32::NAN;
    check_refusal(request, "top_p is NaN and must lie above 0 and at most at 1");
    let mut request = complete(prompt(1, 8), 0, 1);
    request.sampling.top_logprobs = 1025;
    check_refusal(request, "top_logprobs is 1025 and the vocabulary has 1024 tokens");
    let mut request = complete(prompt(1, 8), 0, 1);
    request.sampling.suppressed = (0..1024).collect();
    check_refusal(request, "suppressed has every token of the vocabulary: none could be chosen");
}

#[test]
fn a_full_queue_refuses_and_goes_on() {
    let mut config = SimulatorConfig::new(20, 1);
    config.engine.max_queue = 2;
    let mut simulation = Simulation::new(config);
    let results: Vec<Result<RequestId, Refusal>> =
        (0..5).map(|seed| simulation.submit(complete(prompt(seed, 10), 0, 5))).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3, "one on the lane, two in the queue");
    assert_eq!(results[4], Err(Refusal::QueueFull { max_queue: 2 }));
    simulation.run();
    simulation.check_empty();
    assert!(simulation.submit(complete(prompt(9, 10), 0, 5)).is_ok());
    simulation.run();
}

#[test]
fn who_waits_for_held_rows_alone_is_refused() {
    let hold = |simulation: &mut Simulation, seed, tokens| {
        let mut document = complete(prompt(seed, tokens), 0, 0);
        document.hold = true;
        simulation.submit(document).expect("there is room")
    };
    // At once, where nothing else runs.
    let mut simulation = Simulation::new(SimulatorConfig::new(40, 2));
    let document = hold(&mut simulation, 1, 200);
    simulation.run();
    let refusal = simulation.submit(complete(prompt(2, 120), 0, 8)).expect_err("held rows are in its way");
    let words = "the request needs 17 rows of KV memory (17 MiB) and held sequences occupy 25 of the pool's 40 \
                 (25 of 40 MiB): release held sequences or raise --kv-memory";
    assert_eq!(refusal.to_string(), words);
    simulation.release(simulation.held(document)[0]);
    let id = simulation.submit(complete(prompt(2, 120), 0, 8)).expect("there is room again");
    simulation.run();
    assert_eq!(simulation.finished(id).len(), 1);
    simulation.check_empty();

    // When the last one that runs has ended; who waits behind and fits goes on.
    let mut simulation = Simulation::new(SimulatorConfig::new(40, 2));
    let document = hold(&mut simulation, 1, 200);
    let stuck = simulation.submit(complete(prompt(2, 120), 0, 8)).expect("it waits while another one runs");
    let behind = simulation.submit(complete(prompt(3, 20), 0, 8)).expect("it waits");
    simulation.run();
    let Some((_, Event::Refused(refusal))) = simulation.seen(stuck).pop() else { panic!("it hangs") };
    assert_eq!(refusal.to_string(), words);
    assert_eq!(simulation.finished(behind)[0].reason, FinishReason::Length);
    simulation.release(simulation.held(document)[0]);
    simulation.check_empty();
}

#[test]
fn a_fork_whose_parent_has_grown_summaries_is_refused() {
    let mut simulation = Simulation::new(SimulatorConfig::new(45, 1));
    let mut document = complete(prompt(1, 200), 0, 0);
    document.hold = true;
    let document = simulation.submit(document).expect("there is room");
    simulation.run();
    let parent = simulation.held(document)[0];
    let fork = |algorithm, tokens| {
        let source = Source::Fork { parent, tokens: prompt(2, tokens), feed: Feed::Prefill };
        Request::new(source, attention(algorithm), 1)
    };
    // The lane is taken, so that both forks wait and the first adds summaries to the parent that the second counted on.
    simulation.submit(complete(prompt(3, 8), 0, 4)).expect("there is room");
    let running = simulation.submit(fork(3, 8)).expect("there is room");
    let stuck = simulation.submit(fork(0, 145)).expect("it fits beside the parent as it was");
    simulation.run();
    assert_eq!(simulation.finished(running).len(), 1);
    assert!(matches!(simulation.seen(stuck).pop(), Some((_, Event::Refused(_)))), "{:?}", simulation.seen(stuck));
    simulation.release(parent);
    simulation.check_empty();
}
