//! Constraints through the real scheduler and step loop, in virtual time.

use engine::{
    AbortReason, Constraint, ConstraintFactory, Feed, FinishReason, Refusal, Request, RequestId, Source, TokenMask,
};
use kv::TokenId;
use testing::constraints::{Fixed, Turns};
use testing::simulator::{Simulation, SimulatorConfig, attention, complete, naive, prompt};

fn exact(pool_rows: usize, max_lanes: usize, unit_seconds: f64) -> SimulatorConfig {
    let mut config = SimulatorConfig::new(pool_rows, max_lanes);
    config.costs.jitter = 0.0;
    config.engine.unit_seconds = unit_seconds;
    config
}

/// Any token, but none above 900 may have a successor.
struct Small;

impl Small {
    fn factory() -> ConstraintFactory {
        ConstraintFactory::new(|| Box::new(Small))
    }
}

impl Constraint for Small {
    fn mask(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        allowed.allow_all();
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> Result<(), String> {
        if token <= 900 { Ok(()) } else { Err(format!("token {token} is too large")) }
    }
}

#[test]
fn every_choice_has_a_constraint_of_its_own_and_waits_for_its_last_token() {
    for steps_in_flight in [1, 2] {
        let mut config = exact(60, 6, 1.0);
        config.steps_in_flight = steps_in_flight;
        let mut simulation = Simulation::new(config);
        let mut constrained = complete(prompt(1, 20), 1, 9);
        (constrained.choices, constrained.constraint) = (3, Some(Turns::factory()));
        constrained.sampling.seed = 5;
        let free = simulation.submit(complete(prompt(2, 20), 0, 20)).expect("there is room");
        let id = simulation.submit(constrained.clone()).expect("there is room");
        simulation.run();
        simulation.check_empty();
        for choice in 0..3 {
            let sampling = backend::Sampling { choice, ..constrained.sampling.clone() };
            let tokens: Vec<TokenId> = simulation.tokens(id, choice).iter().map(|token| token.token).collect();
            let constraint = constrained.constraint.as_ref();
            assert_eq!(tokens, naive::constrained(&prompt(1, 20), &[], &[], &sampling, 9, constraint));
            assert!(tokens.iter().enumerate().all(|(at, token)| *token as usize % 2 == at % 2), "{tokens:?}");
        }
        let of = |id: RequestId| simulation.finished(id)[0].timings.decode_steps;
        assert_eq!((of(id), of(free)), (8, 19), "waiting takes no steps of its own");
        let lines = simulation.take_trace();
        let runs: Vec<bool> = lines.iter().map(|line| line.contains("s2 +1")).collect();
        assert_eq!(runs.iter().filter(|runs| **runs).count(), 8, "{lines:#?}");
        let follows = runs.windows(2).any(|two| two == [true, true]);
        assert_eq!(follows, steps_in_flight == 1, "a token in flight is waited for: {lines:#?}");
    }
}

#[test]
fn a_constraint_that_fails_ends_its_own_choice() {
    let ends = |constraint, forced: &[TokenId], max_tokens| {
        let mut simulation = Simulation::new(exact(60, 6, 1.0));
        let mut request = complete(prompt(1, 20), 0, max_tokens);
        (request.constraint, request.forced) = (Some(constraint), forced.to_vec());
        request.hold = true;
        let other = simulation.submit(complete(prompt(2, 20), 0, 9)).expect("there is room");
        let id = simulation.submit(request);
        simulation.run();
        assert_eq!(simulation.finished(other)[0].reason, FinishReason::Length, "others go on");
        let id = id?;
        let end = simulation.finished(id).remove(0);
        if end.error.is_some() {
            simulation.check_empty();
        }
        Ok::<_, Refusal>((end.reason, end.error.unwrap_or_default(), simulation.tokens(id, 0).len()))
    };
    let failed = FinishReason::Aborted(AbortReason::Constraint);
    let none = "the constraint allows no token".to_string();
    assert_eq!(ends(Fixed::factory(&[4, 5]), &[], 9), Ok((failed, none.clone(), 2)));
    assert_eq!(ends(Fixed::factory(&[4, 5]), &[], 2), Ok((FinishReason::Length, String::new(), 2)));
    assert_eq!(ends(Fixed::factory(&[4, 5]), &[4], 9), Ok((failed, none.clone(), 2)));
    let out_of_turn = "token 3 came out of turn".to_string();
    assert_eq!(ends(Turns::factory(), &[2, 3, 3], 9), Ok((failed, out_of_turn, 3)));
    assert_eq!(ends(Fixed::factory(&[]), &[], 9), Err(Refusal::Invalid(none)), "before anything runs");
    assert_eq!(ends(Fixed::factory(&[]), &[], 0), Ok((FinishReason::Length, String::new(), 0)));
}

#[test]
fn a_choice_that_fails_leaves_its_siblings_alone() {
    for steps_in_flight in [1, 2] {
        let mut config = exact(60, 6, 1.0);
        config.steps_in_flight = steps_in_flight;
        let mut simulation = Simulation::new(config);
        let mut request = complete(prompt(1, 20), 3, 5);
        (request.choices, request.constraint) = (6, Some(Small::factory()));
        let id = simulation.submit(request.clone()).expect("there is room");
        simulation.run();
        simulation.check_empty();
        let mut reasons = Vec::new();
        for end in simulation.finished(id) {
            let sampling = backend::Sampling { choice: end.choice, ..request.sampling.clone() };
            let tokens: Vec<TokenId> = simulation.tokens(id, end.choice).iter().map(|token| token.token).collect();
            let constraint = request.constraint.as_ref();
            assert_eq!(tokens, naive::constrained(&prompt(1, 20), &[], &[], &sampling, 5, constraint));
            let failed = tokens.iter().any(|token| 900 < *token) && tokens.len() < 5;
            assert_eq!(end.error.is_some(), failed, "{end:?}");
            reasons.push(end.reason);
        }
        let failed = FinishReason::Aborted(AbortReason::Constraint);
        assert!(reasons.contains(&failed) && reasons.contains(&FinishReason::Length), "{reasons:?}");
    }
}

#[test]
fn fed_prompts_are_nothing_to_a_constraint() {
    let mut simulation = Simulation::new(exact(60, 2, 1.0));
    let mut document = complete(prompt(1, 30), 0, 0);
    document.hold = true;
    let document = simulation.submit(document).expect("there is room");
    simulation.run();
    for tokens in [vec![9], vec![9, 9, 8]] {
        let fork = Source::Fork { parent: simulation.held(document)[0], tokens, feed: Feed::Decode };
        let mut request = Request::new(fork, attention(0), 3);
        (request.constraint, request.forced) = (Some(Fixed::factory(&[6, 7, 8])), vec![6]);
        let id = simulation.submit(request).expect("there is room");
        simulation.run();
        assert_eq!(simulation.tokens(id, 0).iter().map(|token| token.token).collect::<Vec<_>>(), [6, 7, 8]);
        assert_eq!(simulation.finished(id)[0].reason, FinishReason::Length);
    }
}
