//! What a token's choice depends on, noise aside.

use super::Real;
use crate::{Sampling, TokenMask};
use kv::TokenId;

/// A lane's history, as far as a token's choice depends on it.
#[derive(Clone, Copy)]
pub struct History<'a> {
    /// Occurrences in the completion: `[vocab]`.
    pub counts: &'a [u32],
    /// Which tokens the prompt has: `[vocab]`.
    pub in_prompt: &'a [bool],
    /// Tokens of the completion so far.
    pub generated: usize,
}

/// Logits after penalties, bias and suppressed tokens (which a mask that has no others lets through): what
/// log-probabilities are of.
pub fn adjusted<R: Real>(logits: &[f32], s: &Sampling, history: History<'_>, mask: Option<&TokenMask>) -> Vec<R> {
    let History { counts, in_prompt, generated } = history;
    let mut out: Vec<R> = logits.iter().map(|x| (*x).into()).collect();
    for (token, x) in out.iter_mut().enumerate() {
        if counts[token] > 0 || in_prompt[token] {
            let penalty = R::from(s.repetition_penalty);
            *x = if *x > R::of(0.0) { *x / penalty } else { *x * penalty };
        }
        if counts[token] > 0 {
            *x = *x - R::from(s.frequency_penalty) * R::of(f64::from(counts[token])) - s.presence_penalty.into();
        }
    }
    for (token, bias) in &s.logit_bias {
        out[*token as usize] = out[*token as usize] + (*bias).into();
    }
    for token in s.suppressed.iter().filter(|_| s.suppresses(generated, mask)) {
        out[*token as usize] = R::of(f64::NEG_INFINITY);
    }
    out
}

/// What a token is chosen from: minus infinity outside the mask.
pub fn masked<R: Real>(logits: &[R], mask: Option<&TokenMask>) -> Vec<R> {
    let excluded = |token: usize| mask.is_some_and(|mask| !mask.contains(token as TokenId));
    let of = |(token, x): (usize, &R)| if excluded(token) { R::of(f64::NEG_INFINITY) } else { *x };
    logits.iter().enumerate().map(of).collect()
}

/// Log-probabilities of all tokens.
pub fn log_softmax<R: Real>(logits: &[R]) -> Vec<R> {
    let largest = logits.iter().copied().fold(logits[0], |a, b| if b > a { b } else { a });
    let sum = logits.iter().map(|x| (*x - largest).exp()).sum::<R>();
    logits.iter().map(|x| *x - largest - sum.ln()).collect()
}

/// Probabilities that tokens are drawn with: temperature, then top-k, top-p, min-p, each a lower bound of the logit.
pub fn probabilities(logits: &[f64], s: &Sampling) -> Vec<f64> {
    let mut x: Vec<f64> = logits.iter().map(|x| x / f64::from(s.temperature)).collect();
    let mut order: Vec<TokenId> = (0..x.len() as TokenId).collect();
    order.sort_by(|a, b| x[*b as usize].total_cmp(&x[*a as usize]));
    let keep = |x: &mut [f64], bound: f64| {
        x.iter_mut().filter(|x| **x < bound).for_each(|x| *x = f64::NEG_INFINITY);
    };
    if s.top_k > 0 && s.top_k < x.len() {
        let bound = x[order[s.top_k - 1] as usize];
        keep(&mut x, bound);
    }
    if s.top_p < 1.0 {
        let p = log_softmax(&x);
        let (mut sum, mut bound) = (0.0, f64::NEG_INFINITY);
        for token in &order {
            bound = x[*token as usize];
            sum += p[*token as usize].exp();
            if sum >= f64::from(s.top_p) {
                break;
            }
        }
        keep(&mut x, bound);
    }
    if s.min_p > 0.0 {
        let bound = x[order[0] as usize] + f64::from(s.min_p).ln();
        keep(&mut x, bound);
    }
    log_softmax(&x).into_iter().map(f64::exp).collect()
}
