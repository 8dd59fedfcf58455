//! Questions about a held document.

use crate::Document;
use crate::document::EvalError;
use crate::drain::{BatchTime, Drained, batch_time, drain};
use engine::{Attention, Feed, Request, Source};
use kv::TokenId;

/// What is asked and what is true.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The question's tokens: each is a decode step under the attention in question.
    pub tokens: Vec<TokenId>,
    /// The true answer's tokens.
    pub answer: Vec<TokenId>,
    /// Where in the document the fact stands, 0 to 1.
    pub depth: f64,
}

/// What the model said.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// As many tokens as the true answer has.
    pub tokens: Vec<TokenId>,
    /// Whether they are the true answer.
    pub is_right: bool,
    /// Tokens that the last step attended exactly.
    pub exact_tokens: usize,
    /// Tokens that it could see.
    pub context_tokens: usize,
    /// Share of dense attention that the exact tokens held, where it was measured.
    pub attention_mass: Option<f32>,
}

/// All outcomes under one attention, in the questions' order.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// One per question.
    pub outcomes: Vec<Outcome>,
    /// Decode steps of all questions, fed and answered tokens, and how long they took.
    pub time: BatchTime,
}

impl Asked {
    /// Share of right answers.
    pub fn accuracy(&self) -> f64 {
        let right = self.outcomes.iter().filter(|outcome| outcome.is_right).count();
        right as f64 / self.outcomes.len().max(1) as f64
    }
}

/// Asks every question of the document, `at_once` at a time.
///
/// # Errors
/// A question does not fit beside the document, or the engine failed.
pub fn ask(
    document: &Document<'_>,
    questions: &[Question],
    attention: Attention,
    at_once: usize,
    measure_mass: bool,
) -> Result<Asked, EvalError> {
    let mut asked = Asked { outcomes: Vec::new(), time: BatchTime { steps: 0, seconds: 0.0 } };
    for group in questions.chunks(at_once.max(1)) {
        let requests = group.iter().map(|question| fork(document, question, attention, measure_mass)).collect();
        let drained = drain(document.engine(), requests)?;
        let time = batch_time(&drained);
        asked.time.steps += time.steps;
        asked.time.seconds += time.seconds;
        asked.outcomes.extend(group.iter().zip(&drained).map(|(question, drained)| outcome(question, drained)));
    }
    Ok(asked)
}

fn fork(document: &Document<'_>, question: &Question, attention: Attention, measure_mass: bool) -> Request {
    let (parent, tokens) = (document.sequence(), question.tokens.clone());
    let source = Source::Fork { parent, tokens, feed: Feed::Decode };
    let mut request = Request::new(source, attention, question.answer.len());
    request.measure_mass = measure_mass;
    request
}

fn outcome(question: &Question, drained: &Drained) -> Outcome {
    let tokens: Vec<TokenId> = drained.tokens.iter().map(|token| token.token).collect();
    let used = drained.finished.attention;
    Outcome {
        is_right: tokens == question.answer,
        tokens,
        exact_tokens: used.exact_tokens,
        context_tokens: used.context_tokens,
        attention_mass: used.attention_mass,
    }
}
