//! Choosing tokens.
//!
//! Logits pass, in this order: penalties, bias, suppressed tokens; here log-probabilities are taken. Then the mask,
//! temperature and the filters top-k, top-p, min-p, each a lower bound of the scaled logit (equal logits stay
//! together). Of what is left the largest sum of scaled logit and Gumbel noise wins, which draws from the softmax. The
//! noise depends on (seed, choice, position of the token to choose, token) alone: alone or in a batch, a request gives
//! the same text.
//!
//! The caller guarantees what [`Sampling::check`] asks for, that some token is not suppressed, and that no mask is
//! empty. A mask wins over `suppressed` where it has no other token.

use super::lanes::Lane;
use super::philox::philox4x32;
use super::runtime::{CpuRuntime, rows};
use super::scratch;
use super::simd::{Kernel, Simd};
use crate::{LaneOutput, SampleTarget, Sampling, TEMPERATURE_LEAST, TokenMask, View};
use kv::{LaneId, TokenId};
use std::sync::Mutex;

/// See [`crate::Runtime`].
pub(super) fn sample(rt: &CpuRuntime, logits: View<'_>, target: SampleTarget<'_>) {
    let vocab = rt.shape.vocab;
    assert_eq!(logits.buffer.cols(), vocab, "sample: the logits are as wide as the vocabulary");
    let mut lanes = rt.lanes_mut();
    let (chosen, prefill) = match target {
        SampleTarget::Lanes => (lanes.active.clone(), false),
        SampleTarget::Prefill(chosen) => (chosen.to_vec(), true),
    };
    let logits = rows(logits, if prefill { 1 } else { chosen.len() });
    let outputs: Vec<Mutex<Option<LaneOutput>>> = chosen.iter().map(|_| Mutex::new(None)).collect();
    // A token passes a few loops: about 32 multiply-adds.
    rt.threads.each(chosen.len(), chosen.len() * vocab * 32, |i| {
        let row = if prefill { 0 } else { i };
        let lane = lanes.lane(chosen[i]);
        let logits = &logits[row * vocab..(row + 1) * vocab];
        let mut output = scratch::with(vocab, |scratch| choose(rt, chosen[i], lane, logits, scratch));
        output.exact_tokens = if prefill { lane.len } else { lane.selection.exact_tokens(lane.len) };
        *outputs[i].lock().expect("one task has it") = Some(output);
    });
    for output in outputs {
        let output = output.into_inner().expect("no task panicked").expect("every task ran");
        let lane = lanes.lane_mut(output.lane);
        (lane.forced, lane.mask) = (None, None);
        lane.emit(output.token);
        match prefill {
            true => lanes.prefilled.push(output),
            false => lanes.output.push(output),
        }
    }
}

/// One lane's token, from its logits; `scratch` is as long.
fn choose(rt: &CpuRuntime, id: LaneId, lane: &Lane, logits: &[f32], scratch: &mut [f32]) -> LaneOutput {
    scratch.copy_from_slice(logits);
    let sampling = &lane.sampling;
    let suppresses = sampling.suppresses(lane.generated, lane.mask.as_ref());
    adjust(lane, suppresses, scratch);
    let (largest, sum) = rt.isa.run(SumExp { logits: scratch });
    let log_sum = largest + sum.ln();
    let top = most_likely(scratch, sampling.top_logprobs);
    let token = lane.forced.unwrap_or_else(|| {
        let largest = lane.mask.as_ref().map_or(largest, |mask| exclude(mask, scratch));
        match sampling.temperature <= 0.0 {
            true => first_at(scratch, largest),
            false => draw(sampling, lane.len, largest, scratch),
        }
    });
    // A draw leaves scaled logits behind; the token's own is computed anew.
    let logprob = adjusted(lane, suppresses, logits, token) - log_sum;
    LaneOutput {
        lane: id,
        token,
        logprob,
        top: top.into_iter().map(|(token, x)| (token, x - log_sum)).collect(),
        exact_tokens: 0,
        retrieved: lane.retrieved,
        attention_mass: (lane.mass.1 > 0).then(|| (lane.mass.0 / lane.mass.1 as f64) as f32),
    }
}

/// Penalties, bias and suppressed tokens, over all logits.
fn adjust(lane: &Lane, suppresses: bool, logits: &mut [f32]) {
    let s = &lane.sampling;
    for (token, x) in logits.iter_mut().enumerate().take(lane.counts.len()) {
        *x = penalised(s, *x, lane.counts[token], lane.in_prompt[token]);
    }
    for (token, bias) in &s.logit_bias {
        logits[*token as usize] += bias;
    }
    if suppresses {
        for token in &s.suppressed {
            logits[*token as usize] = f32::NEG_INFINITY;
        }
    }
}

/// The same for one token.
fn adjusted(lane: &Lane, suppresses: bool, logits: &[f32], token: TokenId) -> f32 {
    let (s, at) = (&lane.sampling, token as usize);
    let mut x = logits[at];
    if let Some(count) = lane.counts.get(at) {
        x = penalised(s, x, *count, lane.in_prompt[at]);
    }
    for (_, bias) in s.logit_bias.iter().filter(|(biased, _)| *biased == token) {
        x += bias;
    }
    if suppresses && s.suppressed.contains(&token) { f32::NEG_INFINITY } else { x }
}

fn penalised(s: &Sampling, x: f32, count: u32, in_prompt: bool) -> f32 {
    let repeated = match count > 0 || in_prompt {
        true if x > 0.0 => x / s.repetition_penalty,
        true => x * s.repetition_penalty,
        false => x,
    };
    match count {
        0 => repeated,
        _ => repeated - s.frequency_penalty * count as f32 - s.presence_penalty,
    }
}

/// Leaves minus infinity for what the mask does not have; returns the largest logit of what it has.
fn exclude(mask: &TokenMask, logits: &mut [f32]) -> f32 {
    let mut largest = f32::NEG_INFINITY;
    for (logits, word) in logits.chunks_mut(32).zip(mask.words()) {
        if *word == 0 {
            // Most words of a grammar's mask are all or nothing.
            logits.fill(f32::NEG_INFINITY);
            continue;
        }
        let excluded = logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
        excluded.for_each(|(_, x)| *x = f32::NEG_INFINITY);
        largest = logits.iter().copied().fold(largest, f32::max);
    }
    assert!(f32::NEG_INFINITY < largest, "a mask has a token that may be chosen: {mask:?}");
    largest
}

/// Largest logit, and the sum of `e^(logit - largest)`.
struct SumExp<'a> {
    logits: &'a [f32],
}

impl Kernel for SumExp<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self) -> (f32, f32) {
        let eights = self.logits.chunks_exact(8);
        let mut last = [f32::NEG_INFINITY; 8];
        last[..eights.remainder().len()].copy_from_slice(eights.remainder());
        // SAFETY: eight elements.
        let last = unsafe { S::load(last.as_ptr()) };
        let mut largest = last;
        for eight in eights.clone() {
            // SAFETY: eight elements.
            largest = S::max(largest, unsafe { S::load(eight.as_ptr()) });
        }
        let largest = S::largest(largest);
        let mut sum = S::splat(0.0);
        for eight in eights {
            // SAFETY: eight elements.
            sum = S::add(sum, S::exp(S::sub(unsafe { S::load(eight.as_ptr()) }, S::splat(largest))));
        }
        (largest, S::sum(S::add(sum, S::exp(S::sub(last, S::splat(largest))))))
    }
}

/// The first token with this logit.
fn first_at(logits: &[f32], x: f32) -> TokenId {
    let at = logits.iter().position(|y| *y == x).expect("the largest logit is one of them: no logit is a NaN");
    at as TokenId
}

/// The `count` most likely tokens with their logits, most likely first, ties to the lowest id.
pub(super) fn most_likely(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let count = count.min(logits.len());
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(count + 1);
    for (token, x) in logits.iter().enumerate().filter(|_| count > 0) {
        if top.len() < count || top[count - 1].1 < *x {
            let place = top.partition_point(|(_, y)| *y >= *x);
            top.insert(place, (token as TokenId, *x));
            top.truncate(count);
        }
    }
    top
}

/// Draws a token; leaves scaled logits behind.
fn draw(s: &Sampling, position: usize, largest: f32, logits: &mut [f32]) -> TokenId {
    let scale = 1.0 / s.temperature.max(TEMPERATURE_LEAST);
    logits.iter_mut().for_each(|x| *x = (*x - largest) * scale);
    let bound = filter_bound(s, logits);
    let mut noise = Noise::new(s, position);
    // The most likely token sets a mark that most others cannot reach whatever their noise.
    let first = first_at(logits, 0.0);
    let (mut best, mut best_score) = (first, noise.of(first));
    for (token, x) in logits.iter().enumerate() {
        let (token, x) = (token as TokenId, *x);
        if x < bound || f64::from(x) + NOISE_MOST < best_score {
            continue;
        }
        let score = f64::from(x) + noise.of(token);
        if score > best_score || (score == best_score && token < best) {
            (best, best_score) = (token, score);
        }
    }
    best
}

/// The smallest scaled logit that the filters keep; the largest is 0.
fn filter_bound(s: &Sampling, logits: &[f32]) -> f32 {
    let mut bound = f32::NEG_INFINITY;
    let mut kept = Vec::new();
    if s.top_k > 0 && s.top_k < logits.len() {
        kept = logits.to_vec();
        let (_, kth, _) = kept.select_nth_unstable_by(s.top_k - 1, |a, b| b.total_cmp(a));
        bound = *kth;
    }
    if s.top_p < 1.0 {
        kept.clear();
        kept.extend(logits.iter().copied().filter(|x| *x >= bound && *x > f32::NEG_INFINITY));
        bound = bound.max(top_p_bound(s.top_p, &mut kept));
    }
    if s.min_p > 0.0 { bound.max(s.min_p.ln()) } else { bound }
}

/// The smallest of the fewest largest logits that hold `top_p` of the probability of `kept`; at least the largest.
fn top_p_bound(top_p: f32, kept: &mut [f32]) -> f32 {
    let goal = f64::from(top_p) * kept.iter().map(|x| f64::from(*x).exp()).sum::<f64>();
    let (mut sum, mut sorted, mut some) = (0.0, 0, 256);
    // Most of the probability lies in few tokens: they are sorted some at a time.
    while sorted < kept.len() {
        let rest = &mut kept[sorted..];
        let next = some.min(rest.len());
        if next < rest.len() {
            rest.select_nth_unstable_by(next - 1, |a, b| b.total_cmp(a));
        }
        rest[..next].sort_unstable_by(|a, b| b.total_cmp(a));
        for x in &rest[..next] {
            sum += f64::from(*x).exp();
            if sum >= goal {
                return *x;
            }
        }
        sorted += next;
        some *= 8;
    }
    f32::NEG_INFINITY
}

/// More than the largest noise: `-ln(-ln(1 - 2^-33))` is 22.9.
const NOISE_MOST: f64 = 23.0;

/// Gumbel noise of each token: one call of the generator serves four.
struct Noise {
    key: [u32; 2],
    choice: u32,
    position: u32,
    block: Option<(u32, [u32; 4])>,
}

impl Noise {
    fn new(s: &Sampling, position: usize) -> Self {
        let position = u32::try_from(position).expect("a position has 32 bits");
        Noise { key: [s.seed as u32, (s.seed >> 32) as u32], choice: s.choice, position, block: None }
    }

    fn of(&mut self, token: TokenId) -> f64 {
        let number = token / 4;
        let words = match self.block {
            Some((block, words)) if block == number => words,
            _ => philox4x32([self.choice, self.position, number, 0], self.key),
        };
        self.block = Some((number, words));
        let uniform = (f64::from(words[token as usize % 4]) + 0.5) / 4_294_967_296.0;
        -(-uniform.ln()).ln()
    }
}
