//! What a row of logits says of the token that came.

use super::Real;
use super::sample::log_softmax;
use kv::TokenId;

/// Log-probabilities of a row of logits, and the rank of `target` in it: 1 for the most likely token, ties to the
/// lowest id.
pub fn score<R: Real>(logits: &[R], target: TokenId) -> (Vec<R>, u32) {
    let own = logits[target as usize];
    let ahead = |(token, x): &(usize, &R)| **x > own || **x == own && *token < target as usize;
    let rank = 1 + logits.iter().enumerate().filter(ahead).count() as u32;
    (log_softmax(logits), rank)
}
