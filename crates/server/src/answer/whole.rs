//! An answer in one piece.

use super::logprobs::Scored;
use super::piece::Piece;
use super::usage::UsageSum;
use super::{Envelope, Style};
use crate::error::ApiError;
use crate::reader::Reader;
use engine::{AbortReason, Event, FinishReason, Finished};
use std::collections::BTreeMap;

/// A completion that has ended.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) prompt: usize,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Scored>,
    pub(crate) end: Option<Finished>,
}

impl Whole {
    fn add(&mut self, piece: Piece) {
        self.text += &piece.text;
        self.tokens.extend(piece.token.map(Scored::from));
        self.end = piece.end.or(self.end.take());
    }

    /// Mean log-probability of its tokens: what `best_of` ranks by.
    fn mean_logprob(&self) -> f32 {
        let sum: f32 = self.tokens.iter().filter_map(|token| token.logprob).sum();
        sum / self.tokens.len().max(1) as f32
    }
}

/// Reads everything, and writes the response's body: off the async threads, because an answer with log-probabilities
/// may have many MiB.
///
/// # Errors
/// The engine failed or ended a completion early.
pub(crate) async fn collect(
    mut reader: Reader,
    mut style: Box<dyn Style>,
    envelope: Envelope,
    choices: usize,
) -> Result<String, ApiError> {
    let mut prompts: BTreeMap<usize, BTreeMap<usize, Whole>> = BTreeMap::new();
    let mut usage = UsageSum::default();
    while let Some(event) = reader.next().await {
        let (prompt, event) = match event? {
            (prompt, Event::PromptLogprobs(tokens)) => {
                style.prompt(prompt, tokens);
                continue;
            }
            other => other,
        };
        let Some(piece) = Piece::of(prompt, event) else { continue };
        if let Some(end) = &piece.end {
            if let FinishReason::Aborted(reason) = end.reason {
                return Err(aborted(reason, end));
            }
            usage.add(prompt, end);
        }
        let whole = prompts.entry(prompt).or_default().entry(piece.choice).or_default();
        whole.prompt = prompt;
        whole.add(piece);
    }
    let write = move || {
        let best = prompts.into_values().flat_map(|drawn| best(drawn.into_values().collect(), choices));
        let choices = best.enumerate().map(|(index, whole)| style.choice(index, whole)).collect();
        let mut body = envelope.wrap(style.names().whole, choices);
        body["usage"] = usage.to_json();
        if let Some((field, value)) = style.extra() {
            body[field] = value;
        }
        body.to_string()
    };
    let written = tokio::task::spawn_blocking(write).await;
    written.map_err(|_| ApiError::internal("the answer could not be written: its worker has ended"))
}

/// The `n` most likely completions, most likely first where some are left out.
fn best(mut drawn: Vec<Whole>, n: usize) -> Vec<Whole> {
    if n < drawn.len() {
        drawn.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        drawn.truncate(n);
    }
    drawn
}

/// Why a response ends without its answer.
pub(crate) fn aborted(reason: AbortReason, end: &Finished) -> ApiError {
    match reason {
        AbortReason::Shutdown => ApiError::draining(),
        AbortReason::Constraint => {
            let why = end.error.as_deref().unwrap_or("no token is left");
            ApiError::invalid("response_format", format!("the answer cannot follow its format: {why}"))
        }
        reason => ApiError::internal(format!("the request was ended early: {reason:?}")),
    }
}
