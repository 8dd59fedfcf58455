//! What the made-up device must say, from the tokens alone.

use super::noise::mix;
use backend::{Sampling, TokenMask, TokenScore};
use engine::{ConstraintFactory, PromptToken};
use kv::TokenId;

/// Tokens that the device draws: 1 to 50.
pub const DRAWN_TOKENS: u64 = 50;

/// The tag of a token behind a token with tag `before` (0 at the start).
pub fn tag(before: u64, token: TokenId) -> u64 {
    mix(before ^ u64::from(token) << 32 ^ 0x5eed) | 1
}

/// All tags that a lane can read, in one number.
pub fn fold(sum: u64, tag: u64) -> u64 {
    mix(sum ^ tag)
}

/// The token drawn from what a lane can read, among those of the mask where there is one.
pub fn drawn(sum: u64, sampling: &Sampling, mask: Option<&TokenMask>) -> TokenId {
    let choice = mix(sum ^ sampling.seed << 8 ^ u64::from(sampling.choice));
    let Some(mask) = mask else { return 1 + (choice % DRAWN_TOKENS) as TokenId };
    mask.tokens().nth((choice % mask.count() as u64) as usize).expect("a mask that is used is not empty")
}

/// What the device says of a token behind one with tag `before`.
pub fn score(before: u64, token: TokenId, top: usize) -> TokenScore {
    let (logprob, rank) = (-((before % 1000) as f32) / 100.0, 1 + (before % 50) as u32);
    let of = |at: usize| (mix(before ^ at as u64) as TokenId % super::VOCAB as TokenId, logprob - at as f32);
    TokenScore { token, logprob, rank, top: (0..top).map(of).collect() }
}

/// What it says of a whole prompt.
pub fn prompt_logprobs(prompt: &[TokenId], top: usize) -> Vec<PromptToken> {
    let mut before = 0;
    let mut of = |&token: &TokenId| {
        let TokenScore { logprob, rank, top, .. } = score(before, token, top);
        let first = before == 0;
        before = tag(before, token);
        match first {
            true => PromptToken { token, logprob: None, rank: None, top: Vec::new() },
            false => PromptToken { token, logprob: Some(logprob), rank: Some(rank), top },
        }
    };
    prompt.iter().map(&mut of).collect()
}

/// A completion without a constraint.
pub fn completion(
    prompt: &[TokenId],
    forced: &[TokenId],
    stops: &[TokenId],
    sampling: &Sampling,
    max_tokens: usize,
) -> Vec<TokenId> {
    constrained(prompt, forced, stops, sampling, max_tokens, None)
}

/// The first `max_tokens` tokens of a completion: `forced` ones, then drawn ones, up to a stop token (included) or to
/// where its constraint fails.
pub fn constrained(
    prompt: &[TokenId],
    forced: &[TokenId],
    stops: &[TokenId],
    sampling: &Sampling,
    max_tokens: usize,
    constraint: Option<&ConstraintFactory>,
) -> Vec<TokenId> {
    let mut constraint = constraint.map(ConstraintFactory::make);
    let (mut last, mut sum) = (0, 0);
    let mut read = |token| {
        last = tag(last, token);
        sum = fold(sum, last);
        sum
    };
    let mut seen = 0;
    prompt.iter().for_each(|&token| seen = read(token));
    let mut completion = Vec::new();
    while completion.len() < max_tokens {
        let given = forced.get(completion.len()).copied();
        let mut mask = TokenMask::none(super::VOCAB);
        if let (Some(constraint), None) = (&mut constraint, given)
            && (constraint.mask(&mut mask).is_err() || mask.is_empty())
        {
            break;
        }
        let token = given.unwrap_or_else(|| drawn(seen, sampling, constraint.is_some().then_some(&mask)));
        completion.push(token);
        if given.is_none() && stops.contains(&token) {
            break;
        }
        if constraint.as_mut().is_some_and(|constraint| constraint.advance(token).is_err()) {
            break;
        }
        seen = read(token);
    }
    completion
}
