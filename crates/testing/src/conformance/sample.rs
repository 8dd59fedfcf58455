//! `sample`.

use super::MakeBackend;
use super::fixture::{Fixture, Random, all_exact, check_error};
use super::heads::ANY_HEADS;
use backend::reference::sample::{self as reference, History};
use backend::{
    BIAS_MOST, FirstInput, LaneOutput, LaneStart, PENALTY_MOST, SampleTarget, Sampling, StepInput, TEMPERATURE_MOST,
    TokenMask,
};
use kv::{LaneId, TokenId};

/// Most likely tokens that every backend can report.
const TOP_MOST: usize = 32;

/// Runs `steps` steps of lanes that all see `logits`, after one lane for each of `samplings` was started.
fn run(fixture: &Fixture, logits: &[f32], samplings: &[Sampling], steps: usize) -> Vec<Vec<LaneOutput>> {
    let vocab = logits.len();
    for (lane, sampling) in samplings.iter().enumerate() {
        fixture.start(lane, 4, all_exact(), sampling.clone());
    }
    // A row for every lane that the step is sized for.
    let rows = fixture.shape.max_lanes;
    let buffer = fixture.buffer(rows, vocab, &logits.repeat(rows));
    let lanes: Vec<usize> = (0..samplings.len()).collect();
    let step = |_| fixture.step(&lanes, || fixture.runtime.sample((&buffer).into(), SampleTarget::Lanes)).lanes;
    (0..steps).map(step).collect()
}

/// Greedy: the first of the largest; log-probabilities of penalised logits; suppressed tokens until `min_tokens`.
pub fn greedy(make: MakeBackend<'_>) {
    for vocab in make.some(&[1, 3, 113, 1023, 20_011]) {
        let mut random = Random(vocab as u64);
        let mut logits = random.normals(vocab, 3.0);
        let largest = logits.iter().copied().fold(f32::MIN, f32::max) + 1.0;
        logits[vocab / 2] = largest;
        logits[vocab - 1] = largest;
        let plain = Sampling { top_logprobs: vocab.min(7), ..Sampling::default() };
        let penalised = Sampling {
            repetition_penalty: 1.3,
            presence_penalty: 0.4,
            frequency_penalty: 0.2,
            logit_bias: vec![(0, 0.5), ((vocab / 3) as TokenId, -0.25)],
            ..plain.clone()
        };
        let patient = Sampling { suppressed: vec![(vocab / 2) as TokenId], min_tokens: 2, ..plain.clone() };
        let samplings = [plain, penalised, patient];
        let fixture = Fixture::new(make, ANY_HEADS, 3, 32, vocab);
        let steps = run(&fixture, &logits, &samplings, 4);
        for (lane, sampling) in samplings.iter().enumerate().filter(|(lane, _)| *lane < 2 || vocab > 1) {
            let mut counts = vec![0; vocab];
            for (generated, step) in steps.iter().enumerate() {
                let got = &step[lane];
                check_greedy(got, &logits, sampling, &counts, generated, None);
                assert_eq!(got.exact_tokens, 5 + generated, "every token is exact");
                counts[got.token as usize] += u32::from(lane == 1);
            }
        }
    }
}

fn check_greedy(
    got: &LaneOutput,
    logits: &[f32],
    s: &Sampling,
    counts: &[u32],
    generated: usize,
    mask: Option<&TokenMask>,
) {
    let what = format!("greedy step {generated} over {} tokens, {mask:?}", logits.len());
    let in_prompt = vec![false; logits.len()];
    let history = History { counts, in_prompt: &in_prompt, generated };
    let plain_logits = reference::adjusted::<f32>(logits, s, history, mask);
    let exact_logits = reference::adjusted::<f64>(logits, s, history, mask);
    let allowed = reference::masked(&plain_logits, mask);
    let largest = allowed.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let chosen = allowed.iter().position(|x| *x == largest).expect("inside");
    let (plain, exact) = (reference::log_softmax(&plain_logits), reference::log_softmax(&exact_logits));
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| plain_logits[*b].total_cmp(&plain_logits[*a]).then(a.cmp(b)));
    assert_eq!(got.token as usize, chosen, "{what}: the first of the largest");
    let top: Vec<usize> = got.top.iter().map(|(token, _)| *token as usize).collect();
    assert_eq!(top, order[..s.top_logprobs], "{what}: the most likely tokens");
    let got: Vec<f32> = got.top.iter().map(|(_, x)| *x).chain([got.logprob]).collect();
    let at = |x: usize| top.iter().copied().chain([chosen]).nth(x).expect("inside");
    let plain: Vec<f32> = (0..got.len()).map(|i| plain[at(i)]).collect();
    let exact: Vec<f64> = (0..got.len()).map(|i| exact[at(i)]).collect();
    // The sum of exponentials has its own order: a few roundings of the logits' size.
    let largest = logits.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
    let shift = |x: Vec<f32>| x.into_iter().chain([largest]).collect::<Vec<f32>>();
    let exact: Vec<f64> = exact.into_iter().chain([f64::from(largest)]).collect();
    check_error(&what, &shift(got), &shift(plain), &exact, 4.0);
}

/// Penalties count what belongs to the completion: not a fed prompt, but a given first token.
pub fn history(make: MakeBackend<'_>) {
    let vocab = 23;
    let logits = Random(3).normals(vocab, 2.0);
    let mut patient: Vec<usize> = (0..vocab).collect();
    patient.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let sampling = Sampling {
        presence_penalty: 0.7,
        frequency_penalty: 0.3,
        suppressed: vec![patient[0] as TokenId],
        min_tokens: 2,
        top_logprobs: vocab,
        ..Sampling::default()
    };
    for (first, forced, generated) in [
        (FirstInput::Prompt { token: 5, outputs: 2 }, vec![7, 7, 9], 1),
        (FirstInput::Given(4), vec![4], 2),
        (FirstInput::Prompt { token: 5, outputs: 0 }, vec![6, 6], 2),
    ] {
        let fixture = Fixture::new(make, ANY_HEADS, 1, 32, vocab);
        fixture.start_from(0, 4, all_exact(), sampling.clone(), first);
        let buffer = fixture.buffer(1, vocab, &logits);
        let step = |token| {
            let forced = Option::into_iter(token).map(|token| (LaneId(0), token)).collect();
            let input = backend::StepInput { active: vec![LaneId(0)], forced, ..Default::default() };
            let sample = || fixture.runtime.sample((&buffer).into(), SampleTarget::Lanes);
            let ticket = fixture.runtime.launch(super::fixture::key(1), &input, &mut { sample });
            fixture.runtime.collect(ticket).expect("the device works").lanes.remove(0)
        };
        forced.iter().for_each(|&token| assert_eq!(step(Some(token)).token, token));
        let mut counts = vec![0; vocab];
        let given = if let FirstInput::Given(token) = first { Some(token) } else { None };
        let completion: Vec<TokenId> = given.into_iter().chain(forced.iter().copied()).collect();
        completion[completion.len() - generated..].iter().for_each(|&token| counts[token as usize] += 1);
        check_greedy(&step(None), &logits, &sampling, &counts, generated, None);
    }
}

/// Numbers at the ends of their ranges, together: every step gives a token that is not suppressed.
pub fn extremes(make: MakeBackend<'_>) {
    let vocab = 41;
    let logits = Random(13).normals(vocab, 8.0);
    let mut samplings = Vec::new();
    for temperature in [1e-40, 1e-3, 1.0, TEMPERATURE_MOST] {
        for (top_p, min_p) in [(f32::MIN_POSITIVE, 1.0), (1.0, f32::MIN_POSITIVE), (0.5, 0.0)] {
            for (penalty, repetition_penalty, bias) in
                [(PENALTY_MOST, 0.01, BIAS_MOST), (-PENALTY_MOST, 100.0, -BIAS_MOST)]
            {
                samplings.push(Sampling {
                    temperature,
                    top_k: usize::from(penalty < 0.0) * 3,
                    top_p,
                    min_p,
                    repetition_penalty,
                    presence_penalty: penalty,
                    frequency_penalty: penalty,
                    logit_bias: vec![(4, bias), (4, bias), (7, -bias)],
                    suppressed: (0..vocab as TokenId).filter(|token| token % 20 != 4).collect(),
                    min_tokens: 10,
                    seed: u64::MAX,
                    choice: u32::MAX,
                    top_logprobs: TOP_MOST,
                });
            }
        }
    }
    assert!(samplings.iter().all(|sampling| sampling.check().is_ok()));
    let fixture = Fixture::new(make, ANY_HEADS, samplings.len(), 32, vocab);
    for output in run(&fixture, &logits, &samplings, 10).into_iter().flatten() {
        assert!(output.token % 20 == 4 && output.logprob.is_finite(), "{output:?}");
    }
}

/// Draws follow the filtered distribution, and depend on seed, choice and position alone.
pub fn draws(make: MakeBackend<'_>) {
    let (vocab, lanes, steps) = (37, 32, if make.is_reduced() { 16 } else { 256 });
    let logits = Random(11).normals(vocab, 2.0);
    let base = Sampling { temperature: 0.8, ..Sampling::default() };
    for sampling in [
        base.clone(),
        Sampling { top_k: 5, ..base.clone() },
        Sampling { top_p: 0.7, ..base.clone() },
        Sampling { min_p: 0.1, temperature: 1.7, ..base.clone() },
        Sampling { top_k: 9, top_p: 0.9, min_p: 0.05, ..base },
    ] {
        let fixture = Fixture::new(make, ANY_HEADS, lanes, steps + 8, vocab);
        let seeded: Vec<Sampling> =
            (0..lanes).map(|i| Sampling { seed: 7 + i as u64 / 2, choice: i as u32 % 2, ..sampling.clone() }).collect();
        let outputs = run(&fixture, &logits, &seeded, steps);
        let wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        let p = reference::probabilities(&wide, &sampling);
        let mut counts = vec![0_usize; vocab];
        outputs.iter().flatten().for_each(|output| counts[output.token as usize] += 1);
        check_draws(&counts, &p, &format!("{sampling:?}"));
        let alone = run(&fixture, &logits, &seeded[..1], steps);
        let tokens = |x: &[Vec<LaneOutput>]| x.iter().map(|step| step[0].token).collect::<Vec<_>>();
        assert_eq!(tokens(&alone), tokens(&outputs), "alone or in a batch, the same text");
    }
}

/// Every third token but the most likely one; one token alone; the last one; all.
fn some_masks(vocab: usize, most_likely: usize) -> Vec<TokenMask> {
    let of = |allowed: &dyn Fn(usize) -> bool| {
        let mut mask = TokenMask::none(vocab);
        (0..vocab).filter(|token| allowed(*token)).for_each(|token| mask.allow(token as TokenId));
        mask
    };
    let masks = [
        of(&|token| token % 3 == 1 && token != most_likely),
        of(&|token| token == vocab / 3),
        of(&|token| token == vocab - 1),
        of(&|token| (64..96).contains(&token) || token == 0),
        of(&|_| true),
    ];
    masks.into_iter().filter(|mask| !mask.is_empty()).collect()
}

/// A step of lane 0 under a mask.
fn masked_step(fixture: &Fixture, logits: &[f32], mask: Option<&TokenMask>, forced: Option<TokenId>) -> LaneOutput {
    let buffer = fixture.buffer(1, logits.len(), logits);
    let lane = LaneId(0);
    let input = StepInput {
        active: vec![lane],
        masks: mask.into_iter().map(|mask| (lane, mask.clone())).collect(),
        forced: forced.into_iter().map(|token| (lane, token)).collect(),
        ..StepInput::default()
    };
    let sample = || fixture.runtime.sample((&buffer).into(), SampleTarget::Lanes);
    let ticket = fixture.runtime.launch(super::fixture::key(1), &input, &mut { sample });
    fixture.runtime.collect(ticket).expect("the device works").lanes.remove(0)
}

/// What a mask excludes is not chosen, log-probabilities are those without it, and it holds for one step.
pub fn masks(make: MakeBackend<'_>) {
    for vocab in make.some(&[1, 3, 31, 33, 113, 1023]) {
        let logits = Random(vocab as u64).normals(vocab, 3.0);
        let most_likely = (0..vocab).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a token");
        let greedy = Sampling {
            presence_penalty: 0.4,
            logit_bias: vec![(0, 0.5)],
            top_logprobs: vocab.min(5),
            ..Sampling::default()
        };
        for mask in some_masks(vocab, most_likely) {
            let fixture = Fixture::new(make, ANY_HEADS, 1, 32, vocab);
            fixture.start(0, 4, all_exact(), greedy.clone());
            let mut counts = vec![0; vocab];
            for (generated, mask) in [Some(&mask), Some(&mask), None, Some(&mask)].into_iter().enumerate() {
                let got = masked_step(&fixture, &logits, mask, None);
                check_greedy(&got, &logits, &greedy, &counts, generated, mask);
                counts[got.token as usize] += 1;
            }
            let got = masked_step(&fixture, &logits, Some(&mask), Some(0));
            assert_eq!(got.token, 0, "a forced token needs no leave");
        }
    }
}

/// A prefill's end chooses by the lanes' own masks, and they are gone afterwards.
pub fn first_masks(make: MakeBackend<'_>) {
    let vocab = 113;
    let logits = Random(8).normals(vocab, 3.0);
    let most_likely = (0..vocab).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a token");
    let masks = some_masks(vocab, most_likely);
    let fixture = Fixture::new(make, ANY_HEADS, masks.len() + 1, 32, vocab);
    let (sampling, of_lane) = (Sampling { top_logprobs: 3, ..Sampling::default() }, |lane: usize| masks.get(lane));
    for lane in 0..=masks.len() {
        fixture.runtime.start_lane(&LaneStart {
            mask: of_lane(lane).cloned(),
            ..fixture.lane_start(lane, 4, all_exact(), sampling.clone(), FirstInput::Sampled)
        });
    }
    let buffer = fixture.buffer(1, vocab, &logits);
    let lanes: Vec<LaneId> = (0..=masks.len() as u16).map(LaneId).collect();
    fixture.runtime.enqueue(&mut || fixture.runtime.sample((&buffer).into(), SampleTarget::Prefill(&lanes)));
    let first = fixture.fence().prefilled;
    let all: Vec<usize> = (0..lanes.len()).collect();
    let buffer = fixture.buffer(lanes.len(), vocab, &logits.repeat(lanes.len()));
    let next = fixture.step(&all, || fixture.runtime.sample((&buffer).into(), SampleTarget::Lanes)).lanes;
    for lane in all {
        check_greedy(&first[lane], &logits, &sampling, &vec![0; vocab], 0, of_lane(lane));
        check_greedy(&next[lane], &logits, &sampling, &vec![0; vocab], 1, None);
    }
}

/// Draws follow the filtered distribution of what is allowed; a mask of suppressed tokens alone lets them through.
pub fn masked_draws(make: MakeBackend<'_>) {
    let (vocab, steps) = (37, if make.is_reduced() { 100 } else { 2000 });
    let logits = Random(11).normals(vocab, 2.0);
    let mut mask = TokenMask::none(vocab);
    (0..vocab as TokenId).filter(|token| token % 4 != 0).for_each(|token| mask.allow(token));
    for sampling in [
        Sampling { temperature: 0.8, seed: 3, ..Sampling::default() },
        Sampling { temperature: 1.5, top_k: 6, top_p: 0.8, min_p: 0.05, seed: 4, ..Sampling::default() },
    ] {
        let fixture = Fixture::new(make, ANY_HEADS, 1, steps + 8, vocab);
        fixture.start(0, 4, all_exact(), sampling.clone());
        let mut counts = vec![0_usize; vocab];
        (0..steps).for_each(|_| counts[masked_step(&fixture, &logits, Some(&mask), None).token as usize] += 1);
        let wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        let p = reference::probabilities(&reference::masked(&wide, Some(&mask)), &sampling);
        check_draws(&counts, &p, &format!("{mask:?} under {sampling:?}"));
    }
    let patient = Sampling { suppressed: vec![4, 9], min_tokens: 3, temperature: 1.0, ..Sampling::default() };
    let fixture = Fixture::new(make, ANY_HEADS, 1, 32, vocab);
    fixture.start(0, 4, all_exact(), patient);
    let only = |tokens: &[TokenId]| {
        let mut mask = TokenMask::none(vocab);
        tokens.iter().for_each(|&token| mask.allow(token));
        mask
    };
    assert_eq!(masked_step(&fixture, &logits, Some(&only(&[4, 30])), None).token, 30, "4 is suppressed");
    let got = masked_step(&fixture, &logits, Some(&only(&[4])), None);
    assert!(got.token == 4 && got.logprob.is_finite(), "the mask wins: {got:?}");
    let got = masked_step(&fixture, &logits, None, None);
    assert!(got.token != 4 && got.token != 9, "{got:?}");
}

/// Counted draws against probabilities: five standard deviations of a binomial, and one draw.
fn check_draws(counts: &[usize], p: &[f64], what: &str) {
    let draws = counts.iter().sum::<usize>() as f64;
    for (token, p) in p.iter().enumerate() {
        let (want, allowed) = (p * draws, 5.0 * (p * (1.0 - p) * draws).sqrt() + if *p > 0.0 { 1.0 } else { 0.0 });
        let got = counts[token] as f64;
        assert!((got - want).abs() <= allowed, "token {token}: {got} draws, {want} expected, {what}");
    }
}

/// Forced tokens replace drawn ones and report their own log-probability; a prefill's row serves all its lanes.
pub fn targets(make: MakeBackend<'_>) {
    let vocab = 19;
    let logits = Random(5).normals(vocab, 2.0);
    let fixture = Fixture::new(make, ANY_HEADS, 3, 32, vocab);
    for lane in 0..3 {
        fixture.start(lane, 6, all_exact(), Sampling { top_logprobs: vocab, ..Sampling::default() });
    }
    let buffer = fixture.buffer(3, vocab, &logits.repeat(3));
    let lanes = [LaneId(2), LaneId(0)];
    fixture.runtime.enqueue(&mut || fixture.runtime.sample((&buffer).into(), SampleTarget::Prefill(&lanes)));
    let output = fixture.fence().prefilled;
    assert_eq!(output.iter().map(|o| o.lane).collect::<Vec<_>>(), lanes);
    assert!(output.iter().all(|o| o.token == output[0].top[0].0 && o.exact_tokens == 6));

    let input = backend::StepInput { active: vec![LaneId(1)], forced: vec![(LaneId(1), 3)], ..Default::default() };
    let algorithms = backend::AlgorithmSet::default().with(super::fixture::ALGORITHM);
    let key = backend::StepKey { bucket: 3, algorithms, measure_mass: false, retrieves: false };
    let ticket = fixture.runtime.launch(key, &input, &mut || {
        fixture.runtime.sample((&buffer).into(), SampleTarget::Lanes);
    });
    let forced = fixture.runtime.collect(ticket).expect("the device works").lanes.remove(0);
    assert_eq!(forced.token, 3);
    assert_eq!(Some(&(3, forced.logprob)), forced.top.iter().find(|(token, _)| *token == 3));
}
