//! The real scheduler and step loop through whole serving days, in virtual time.

use engine::{AbortReason, Event, Feed, FinishReason, Metrics, Progress, Request, RequestId, Source};
use kv::{SequenceId, TokenId};
use std::collections::{BTreeMap, BTreeSet};
use testing::constraints::{Fixed, Residue, Turns};
use testing::simulator::{Noise, Simulation, SimulatorConfig, attention, complete, naive, prompt};

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
    /// Whether all prompts may be long, and not every fourth.
    long_prompts: bool,
    /// Whether completions are long, and nobody holds rows: so that rows are reserved for a while only.
    long_answers: bool,
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
            long_prompts: false,
            long_answers: false,
        }
    }

    /// A day with long prompts, a small pool, and host memory behind it, which is sometimes small too.
    fn pressed(seed: u64) -> Self {
        let (mut config, mut noise) = (config(seed), Noise(seed ^ 0xdead));
        config.engine.pool_rows = 25 + noise.below(150);
        config.engine.dram_rows = if noise.once_in(4) { noise.below(300) } else { 4000 };
        config.engine.max_lanes = 2 + noise.below(12);
        config.engine.unit_seconds = [1e-6, 0.001, 0.05][noise.below(3)];
        config.engine.horizon_tokens = [4, 10, 256][noise.below(3)];
        config.dram_grows = noise.once_in(3);
        Day { simulation: Simulation::new(config), long_prompts: true, ..Day::new(seed) }
    }

    /// A day with long answers on a small pool: who came late is parked until those who came early have ended.
    fn preempted(seed: u64) -> Self {
        let (mut config, mut noise) = (config(seed), Noise(seed ^ 0xbeef));
        config.engine.pool_rows = 90 + noise.below(100);
        config.engine.dram_rows = [150, 400, 4000][noise.below(3)];
        config.engine.max_lanes = 2 + noise.below(12);
        config.engine.unit_seconds = [1e-6, 0.001, 0.05][noise.below(3)];
        config.engine.horizon_tokens = [1, 4, 10, 100][noise.below(4)];
        config.dram_grows = noise.once_in(3);
        Day { simulation: Simulation::new(config), long_answers: true, ..Day::new(seed) }
    }

    /// A random request, and its whole prompt.
    fn request(&mut self) -> (Request, Vec<TokenId>) {
        let noise = &mut self.noise;
        let longest = if self.long_answers { 400 } else { 60 };
        let algorithm = if self.long_answers && noise.once_in(2) { 0 } else { noise.below(4) as u8 };
        let max_tokens = noise.below(longest);
        let longest = if self.long_prompts || noise.once_in(4) { 500 } else { 60 };
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
        if 0 < algorithm && noise.once_in(3) {
            request.attention.selection.min_context = 150;
        }
        request.choices = if noise.once_in(3) { 1 + noise.below(4) } else { 1 };
        request.hold = !self.long_answers && noise.once_in(4);
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
    for seed in 0..140 {
        let (_, metrics) = Day::new(seed).run();
        hits += metrics.prefix_hit_tokens_total;
        evicted += metrics.prefix_evicted_tokens_total;
    }
    assert!(20_000 < hits && 20_000 < evicted, "prefixes are shared and given up: {hits}, {evicted}");
}

#[test]
fn nothing_is_lost_either_where_pages_live_in_host_memory() {
    let mut moved = [0; 5];
    for seed in 0..150 {
        let (_, metrics) = Day::pressed(seed).run();
        let Metrics { page_hits_total: hits, page_misses_total: misses, .. } = metrics;
        let Metrics { offloaded_rows_total: offloaded, made_sparse_total: sparse, .. } = metrics;
        let of_day = [hits, misses, offloaded, sparse, metrics.preemptions_total];
        moved.iter_mut().zip(of_day).for_each(|(sum, day)| *sum += day);
    }
    println!("hits, misses, offloaded rows, made sparse, preempted: {moved:?}");
    let least = [10_000, 10_000, 5000, 150, 4];
    assert!(moved.iter().zip(least).all(|(moved, least)| least < *moved), "rows move: {moved:?}");
}

#[test]
fn who_is_parked_in_host_memory_goes_on_where_it_was() {
    let (mut preempted, mut sparse) = (0, 0);
    for seed in 0..60 {
        let (_, metrics) = Day::preempted(seed).run();
        preempted += metrics.preemptions_total;
        sparse += metrics.made_sparse_total;
    }
    println!("{preempted} preemptions, {sparse} made sparse");
    assert!(250 < preempted && 60 < sparse, "{preempted} preemptions, {sparse} made sparse");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1000..1005 {
        let (trace, _) = Day::new(seed).run();
        assert!(100 < trace.len(), "seed {seed}: {} steps", trace.len());
        assert_eq!(trace, Day::new(seed).run().0, "seed {seed}");
        assert_eq!(Day::pressed(seed).run().0, Day::pressed(seed).run().0, "seed {seed}, pages in host memory");
        assert_eq!(Day::preempted(seed).run().0, Day::preempted(seed).run().0, "seed {seed}, preempted");
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
