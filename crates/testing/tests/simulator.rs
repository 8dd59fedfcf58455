//! The real scheduler and step loop through whole serving days, in virtual time.

use engine::{AbortReason, Event, Feed, FinishReason, Metrics, Progress, Request, RequestId, Source};
use kv::{SequenceId, TokenId};
use std::collections::{BTreeMap, BTreeSet};
use testing::constraints::{Fixed, Residue, Turns};
use testing::simulator::{Noise, Simulation, SimulatorConfig, attention, complete, letter, naive, prompt};

/// What is expected of a request.
struct Expected {
    request: Request,
    /// All tokens of the prompt, the parent's included.
    prompt: Vec<TokenId>,
}

/// A held sequence and the tokens that it has K and V of.
struct Parent {
    sequence: SequenceId,
    tokens: Vec<TokenId>,
}

struct Day {
    seed: u64,
    noise: Noise,
    simulation: Simulation,
    expected: BTreeMap<RequestId, Expected>,
    aborted: BTreeSet<RequestId>,
    parents: Vec<Parent>,
    /// Texts that later prompts may begin with.
    texts: Vec<Vec<TokenId>>,
    refused: usize,
}

fn config(seed: u64) -> SimulatorConfig {
    let mut noise = Noise(seed ^ 0xc0f);
    let mut config = SimulatorConfig::new(60 + noise.below(400), 1 + noise.below(8));
    config.engine.max_queue = 1 + noise.below(20);
    config.engine.max_model_len = 600;
    config.engine.prefill_tokens = [32, 100, 1000][noise.below(3)];
    config.engine.decode_share = [0.0, 0.5, 0.9][noise.below(3)];
    config.engine.unit_seconds = [0.001, 0.005, 0.05][noise.below(3)];
    config.engine.prefix_cache = !noise.once_in(8);
    config.layers = 1 + noise.below(3);
    config.steps_in_flight = 1 + noise.below(2);
    config.seed = seed;
    config
}

impl Day {
    fn new(seed: u64) -> Self {
        Day {
            seed,
            noise: Noise(seed),
            simulation: Simulation::new(config(seed)),
            expected: BTreeMap::new(),
            aborted: BTreeSet::new(),
            parents: Vec::new(),
            texts: Vec::new(),
            refused: 0,
        }
    }

    /// A random request, and its whole prompt.
    fn request(&mut self) -> (Request, Vec<TokenId>) {
        let noise = &mut self.noise;
        let (algorithm, max_tokens) = (noise.below(4) as u8, noise.below(60));
        let longest = if noise.once_in(4) { 500 } else { 60 };
        let mut tokens = prompt(noise.number(), 1 + noise.below(longest));
        if !self.texts.is_empty() && noise.once_in(2) {
            // A text again: from its start, up to anywhere, and something new behind it.
            let mut text = self.texts[noise.below(self.texts.len())].clone();
            text.truncate(noise.below(text.len() + 1));
            text.extend_from_slice(&tokens[..tokens.len().min(1 + noise.below(30))]);
            text.truncate(590);
            tokens = text;
        }
        let (source, prompt) = if self.parents.is_empty() || noise.once_in(2) {
            (Source::Prompt(tokens.clone()), tokens)
        } else {
            let parent = &self.parents[noise.below(self.parents.len())];
            let feed = if noise.once_in(2) { Feed::Decode } else { Feed::Prefill };
            let tokens = tokens[..tokens.len().min(40)].to_vec();
            let prompt = [&parent.tokens[..], &tokens].concat();
            (Source::Fork { parent: parent.sequence, tokens, feed }, prompt)
        };
        let mut request = Request::new(source, attention(algorithm), max_tokens);
        request.choices = if noise.once_in(3) { 1 + noise.below(4) } else { 1 };
        request.hold = noise.once_in(4);
        request.cache = !noise.once_in(8);
        request.sampling.seed = noise.number();
        request.end_tokens = (0..noise.below(3)).map(|_| 1 + noise.below(50) as TokenId).collect();
        request.ignore_eos = noise.once_in(4);
        if noise.once_in(4) {
            request.forced = (0..1 + noise.below(5)).map(|_| noise.below(50) as TokenId).collect();
        }
        if noise.once_in(3) && matches!(request.source, Source::Prompt(_)) {
            request.prompt_logprobs = Some(noise.below(3));
        }
        if noise.once_in(3) {
            let seen: Vec<TokenId> = (0..noise.below(40)).map(|_| noise.below(50) as TokenId).collect();
            let factories = [Residue::factory(5, 3, &[7, 20]), Turns::factory(), Fixed::factory(&seen)];
            request.constraint = Some(factories[noise.below(3)].clone());
        }
        (request, prompt)
    }

    fn submit(&mut self) {
        let (request, prompt) = self.request();
        match self.simulation.submit(request.clone()) {
            Ok(id) => {
                self.texts.push(prompt.clone());
                self.expected.insert(id, Expected { request, prompt });
            }
            Err(_) => self.refused += 1,
        }
    }

    /// Something happens between two steps.
    fn happen(&mut self) {
        match self.noise.below(40) {
            0..=7 => self.submit(),
            8 if !self.expected.is_empty() => {
                let at = self.noise.below(self.expected.len());
                let id = *self.expected.keys().nth(at).expect("in range");
                self.aborted.insert(id);
                self.simulation.abort(id);
            }
            9 | 10 if !self.parents.is_empty() => {
                let at = self.noise.below(self.parents.len());
                let parent = self.parents.swap_remove(at);
                self.simulation.release(parent.sequence);
            }
            _ => {}
        }
    }

    /// Finds sequences that became parents since the last look.
    fn adopt(&mut self, known: &mut BTreeSet<SequenceId>) {
        for (&id, expected) in &self.expected {
            for (_, event) in self.simulation.seen(id) {
                let Event::Held { choice, sequence, tokens } = event else { continue };
                if known.insert(sequence) {
                    let completion = self.simulation.tokens(id, choice).into_iter().map(|token| token.token);
                    let all: Vec<TokenId> = expected.prompt.iter().copied().chain(completion).collect();
                    assert!(tokens == all.len() || tokens + 1 == all.len(), "seed {}: {id} holds {tokens}", self.seed);
                    self.parents.push(Parent { sequence, tokens: all[..tokens].to_vec() });
                }
            }
        }
    }

    fn run(mut self) -> (Vec<String>, Metrics) {
        let mut known = BTreeSet::new();
        for _ in 0..300 {
            self.happen();
            self.simulation.step();
            self.adopt(&mut known);
        }
        // The evening: what is held is let go, so that everybody who waits gets in.
        loop {
            for parent in std::mem::take(&mut self.parents) {
                self.simulation.release(parent.sequence);
            }
            let progress = self.simulation.step();
            self.adopt(&mut known);
            if progress == Progress::Idle && self.parents.is_empty() {
                break;
            }
        }
        self.simulation.check_empty();
        self.expected.iter().for_each(|(&id, expected)| self.verify(id, expected));
        (self.simulation.take_trace(), self.simulation.steps.scheduler.metrics())
    }

    /// Every choice finished once, with the naive model's tokens.
    fn verify(&self, id: RequestId, expected: &Expected) {
        let request = &expected.request;
        let finished = self.simulation.finished(id);
        let choices: BTreeSet<u32> = finished.iter().map(|end| end.choice).collect();
        let name = format!("seed {} {id} {request:?}", self.seed);
        if let Some((_, Event::Refused(_))) = self.simulation.seen(id).last() {
            assert_eq!(self.simulation.seen(id).len(), 2, "accepted, then refused: {name}");
            return;
        }
        let events = self.simulation.seen(id);
        let scored = |event: &Event| matches!(event, Event::PromptLogprobs(_));
        let at = events.iter().position(|(_, event)| scored(event));
        let ends = |event: &Event| matches!(event, Event::Token(_) | Event::Finished(_));
        let behind = events.iter().position(|(_, event)| ends(event)).expect("it ended");
        match (at.map(|at| (at, &events[at].1)), request.prompt_logprobs) {
            (Some((at, Event::PromptLogprobs(tokens))), Some(top)) => {
                assert_eq!(*tokens, naive::prompt_logprobs(&expected.prompt, top), "{name}");
                assert!(at < behind && !events[at + 1..].iter().any(|(_, event)| scored(event)), "once, first: {name}");
            }
            (None, Some(_)) => assert!(self.aborted.contains(&id), "not told: {name}"),
            (at, top) => assert!(at.is_none() && top.is_none(), "told though not asked: {name}"),
        }
        assert_eq!((finished.len(), choices.len()), (request.choices, request.choices), "ends once: {name}");
        for end in finished {
            let tokens: Vec<TokenId> =
                self.simulation.tokens(id, end.choice).into_iter().map(|token| token.token).collect();
            let stops = if request.ignore_eos { &[][..] } else { &request.end_tokens };
            let room = request.max_tokens.min(600 - expected.prompt.len());
            let sampling = backend::Sampling { choice: end.choice, ..request.sampling.clone() };
            let constraint = request.constraint.as_ref();
            let (prompt, forced) = (&expected.prompt, &request.forced);
            let mut naive = naive::constrained(prompt, forced, stops, &sampling, room, constraint);
            let failed = end.reason == FinishReason::Aborted(AbortReason::Constraint);
            assert_eq!(end.error.is_some(), failed, "{name}");
            if let FinishReason::Aborted(reason) = end.reason
                && !failed
            {
                let orphaned = reason == AbortReason::ParentReleased && tokens.is_empty();
                assert!(self.aborted.contains(&id) || orphaned, "aborted by nobody: {name}");
                naive.truncate(tokens.len());
            }
            assert_eq!(tokens, naive, "{name}");
            assert_eq!(end.usage.completion_tokens, tokens.len(), "{name}");
            assert_eq!(end.usage.prompt_tokens, expected.prompt.len(), "{name}");
            let cached = end.usage.cached_tokens;
            match request.parent() {
                Some(_) => assert!(cached == 0 || cached + request.tokens().len() == expected.prompt.len(), "{name}"),
                None => assert!(cached % 8 == 0 && cached < expected.prompt.len(), "{name}"),
            }
            assert!(request.cache || request.parent().is_some() || cached == 0, "{name}");
        }
    }
}

#[test]
fn serving_days_leak_nothing_and_give_every_request_its_tokens() {
    let (mut hits, mut evicted) = (0, 0);
    for seed in 0..120 {
        let (_, metrics) = Day::new(seed).run();
        hits += metrics.prefix_hit_tokens_total;
        evicted += metrics.prefix_evicted_tokens_total;
    }
    assert!(20_000 < hits && 20_000 < evicted, "prefixes are shared and given up: {hits}, {evicted}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1000..1005 {
        let (trace, _) = Day::new(seed).run();
        assert!(100 < trace.len(), "seed {seed}: {} steps", trace.len());
        assert_eq!(trace, Day::new(seed).run().0, "seed {seed}");
    }
}

#[test]
fn nobody_overtakes_in_the_queue_and_nobody_starves() {
    for seed in 0..20 {
        let mut noise = Noise(seed);
        let mut simulation = Simulation::new(SimulatorConfig::new(100, 3));
        let ids: Vec<RequestId> = (0..60)
            .map(|_| {
                let tokens = prompt(noise.number(), 1 + noise.below(400));
                simulation
                    .submit(complete(tokens, noise.below(4) as u8, 1 + noise.below(30)))
                    .expect("the queue is long")
            })
            .collect();
        simulation.run();
        let first_event = |id: &RequestId| simulation.seen(*id).into_iter().nth(1).expect("it ran").0;
        let timings: Vec<f64> = ids.iter().map(|&id| simulation.finished(id)[0].timings.queued).collect();
        assert!(timings.is_sorted(), "seed {seed}: admitted in arrival order: {timings:?}");
        assert!(ids.iter().all(|id| first_event(id).is_finite()));
        simulation.check_empty();
    }
}

/// The longest time between two tokens of a stream while a prompt of 32K tokens is prefilled.
fn longest_gap(decode_share: f64, prompt_tokens: usize, prefill_tokens: usize) -> (f64, f64) {
    let mut config = SimulatorConfig::new(6000, 8);
    config.layers = 4;
    config.engine.decode_share = decode_share;
    config.engine.prefill_tokens = prefill_tokens;
    let mut simulation = Simulation::new(config);
    let streams: Vec<RequestId> =
        (0..4).map(|seed| simulation.submit(complete(prompt(seed, 50), 0, 1500)).expect("there is room")).collect();
    for _ in 0..30 {
        simulation.step();
    }
    let long = simulation.submit(complete(prompt(9, prompt_tokens), 3, 2)).expect("there is room");
    while simulation.finished(long).is_empty() {
        simulation.step();
    }
    let end = simulation.seen(long).last().expect("it has ended").0;
    let seconds = end - simulation.seen(long)[0].0;
    let mut gap: f64 = 0.0;
    for id in streams {
        let seen = simulation.seen(id);
        let times: Vec<f64> =
            seen.iter().filter(|(_, event)| matches!(event, Event::Token(_))).map(|(time, _)| *time).collect();
        assert!(end < times[times.len() - 1] + 0.2, "the stream runs to the prompt's end");
        gap = times.windows(2).map(|pair| pair[1] - pair[0]).fold(gap, f64::max);
    }
    simulation.run();
    simulation.check_empty();
    (gap, seconds)
}

#[test]
fn a_stream_never_waits_for_longer_than_150_ms_while_a_long_prompt_is_prefilled() {
    for (share, pass) in [(0.0, 32_768), (0.5, 32_768), (0.5, 8_192)] {
        let (gap, end) = longest_gap(share, 32_768, pass);
        assert!(gap <= 0.150, "share {share}, passes of {pass}: a gap of {gap} s in {end} s");
    }
}

#[test]
fn decode_gets_its_share() {
    let (_, without) = longest_gap(0.0, 16_384, 32_768);
    let (_, half) = longest_gap(0.5, 16_384, 32_768);
    assert!(1.5 * without < half, "half of the time for decode doubles the prompt's: {without} to {half}");
}

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
