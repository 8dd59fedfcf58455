//! What rows of logits say of the tokens that came: a prompt's log-probabilities.
//!
//! A row is one task with one fixed order of operations, and its log-probability is the one that `sample` reports of
//! the same logits where no penalty or bias is asked for.

use super::runtime::{CpuRuntime, rows};
use super::sample::most_likely;
use super::softmax::LogSumExp;
use crate::{TokenScore, View};
use kv::TokenId;
use std::sync::Mutex;

/// See [`crate::Runtime`].
pub(super) fn score_tokens(rt: &CpuRuntime, logits: View<'_>, targets: &[TokenId], top: usize) {
    let vocab = rt.shape.vocab;
    assert_eq!(logits.buffer.cols(), vocab, "score_tokens: the logits are as wide as the vocabulary");
    let logits = rows(logits, targets.len());
    let scores: Vec<Mutex<Option<TokenScore>>> = targets.iter().map(|_| Mutex::new(None)).collect();
    // A token passes a few loops: about 32 multiply-adds.
    rt.threads.each(targets.len(), targets.len() * vocab * 32, |i| {
        let score = score(rt, &logits[i * vocab..(i + 1) * vocab], targets[i], top);
        *scores[i].lock().expect("one task has it") = Some(score);
    });
    let scores = scores.into_iter().map(|score| score.into_inner().expect("no task panicked"));
    rt.lanes_mut().scores.extend(scores.map(|score| score.expect("every task ran")));
}

fn score(rt: &CpuRuntime, logits: &[f32], token: TokenId, top: usize) -> TokenScore {
    let (log_sum, own) = (rt.isa.run(LogSumExp(logits)), logits[token as usize]);
    let (before, behind) = logits.split_at(token as usize);
    // Equal logits go to the lowest id.
    let ahead = before.iter().filter(|x| own <= **x).count() + behind.iter().filter(|x| own < **x).count();
    TokenScore {
        token,
        logprob: own - log_sum,
        rank: ahead as u32 + 1,
        top: most_likely(logits, top).into_iter().map(|(token, x)| (token, x - log_sum)).collect(),
    }
}
