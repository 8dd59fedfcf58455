//! Questions about a held document.

use crate::Document;
use crate::document::{EvalError, next};
use engine::{Attention, Event, Feed, Request, RequestHandle, Source};
use kv::TokenId;
use std::time::Instant;

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
    /// Decode steps of all questions together, fed and answered tokens.
    pub decoded_tokens: usize,
    /// From the first decoded token to the last, in seconds.
    pub decode_seconds: f64,
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
    let mut asked = Asked { outcomes: Vec::new(), decoded_tokens: 0, decode_seconds: 0.0 };
    for group in questions.chunks(at_once.max(1)) {
        let requests = group.iter().map(|question| fork(document, question, attention, measure_mass));
        let handles = requests.map(|request| document.engine().submit(request)).collect::<Result<Vec<_>, _>>()?;
        let mut first_token = None;
        for (question, mut handle) in group.iter().zip(handles) {
            let outcome = answer(question, &mut handle, &mut first_token)?;
            asked.decoded_tokens += question.tokens.len() + question.answer.len() - 1;
            asked.outcomes.push(outcome);
        }
        asked.decode_seconds += first_token.map_or(0.0, |first: Instant| first.elapsed().as_secs_f64());
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

fn answer(
    question: &Question,
    handle: &mut RequestHandle,
    first_token: &mut Option<Instant>,
) -> Result<Outcome, EvalError> {
    let mut outcome =
        Outcome { tokens: Vec::new(), is_right: false, exact_tokens: 0, context_tokens: 0, attention_mass: None };
    while let Some(event) = next(handle)? {
        match event {
            Event::Token(token) => {
                first_token.get_or_insert_with(Instant::now);
                outcome.tokens.push(token.token);
            }
            Event::Finished(finished) => {
                outcome.exact_tokens = finished.attention.exact_tokens;
                outcome.context_tokens = finished.attention.context_tokens;
                outcome.attention_mass = finished.attention.attention_mass;
            }
            _ => {}
        }
    }
    outcome.is_right = outcome.tokens == question.answer;
    Ok(outcome)
}
