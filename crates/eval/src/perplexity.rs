//! How surprised a model is by the end of a text it has read the beginning of.

use crate::Document;
use crate::document::EvalError;
use crate::drain::{batch_time, drain};
use engine::{Attention, Feed, Request, Source};
use kv::TokenId;

/// The score of one attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Log-probability of each scored token, in nats.
    pub logprobs: Vec<f32>,
    /// Tokens that the last step attended exactly.
    pub exact_tokens: usize,
    /// Decode time in seconds.
    pub seconds: f64,
    /// Share of dense attention that the exact tokens held, where it was measured.
    pub attention_mass: Option<f32>,
}

impl Score {
    /// `exp` of the mean negative log-probability.
    pub fn perplexity(&self) -> f64 {
        let sum: f64 = self.logprobs.iter().map(|logprob| f64::from(*logprob)).sum();
        (-sum / self.logprobs.len().max(1) as f64).exp()
    }
}

/// Scores `tokens[1..]` behind the document, each a decode step: `tokens[0]` is the first input.
///
/// # Errors
/// They do not fit beside the document, or the engine failed.
///
/// # Panics
/// There are fewer than two tokens.
pub fn score(
    document: &Document<'_>,
    tokens: &[TokenId],
    attention: Attention,
    measure_mass: bool,
) -> Result<Score, EvalError> {
    assert!(2 <= tokens.len(), "a token and one to score");
    let source = Source::Fork { parent: document.sequence(), tokens: vec![tokens[0]], feed: Feed::Decode };
    let mut request = Request::new(source, attention, tokens.len() - 1);
    request.forced = tokens[1..].to_vec();
    request.measure_mass = measure_mass;
    let drained = drain(document.engine(), vec![request])?;
    let used = drained[0].finished.attention;
    Ok(Score {
        logprobs: drained[0].tokens.iter().filter_map(|token| token.logprob).collect(),
        exact_tokens: used.exact_tokens,
        attention_mass: used.attention_mass,
        seconds: batch_time(&drained).seconds,
    })
}
