//! A document whose rows stay in the pool while it is asked about.

use engine::{Attention, Engine, Event, Refusal, Request, RequestHandle, Source};
use kv::{SequenceId, TokenId};
use std::time::Instant;

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The engine would not take a request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The engine failed.
    #[error("the engine failed: {0}")]
    Failed(String),
}

/// A held sequence; its rows are given back when it is dropped.
pub struct Document<'a> {
    engine: &'a Engine,
    sequence: SequenceId,
    /// Tokens with K and V in rows.
    pub tokens: usize,
    /// How long it took to read.
    pub prefill_seconds: f64,
}

impl<'a> Document<'a> {
    /// Reads all of `tokens`, whatever the prefix cache has, telling `progress` (tokens done, tokens in all). Under a
    /// sparse attention the document may be at home in host memory; prompts are read densely under any.
    ///
    /// # Errors
    /// It does not fit, or the engine failed.
    pub fn read(
        engine: &'a Engine,
        tokens: Vec<TokenId>,
        attention: Attention,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, EvalError> {
        let start = Instant::now();
        let mut request = Request::new(Source::Prompt(tokens), attention, 0);
        (request.hold, request.cache) = (true, false);
        let mut handle = engine.submit(request)?;
        let mut held = None;
        while let Some(event) = next(&mut handle)? {
            match event {
                Event::Prefill { done, total } => progress(done, total),
                Event::Held { sequence, tokens, .. } => held = Some((sequence, tokens)),
                _ => {}
            }
        }
        let (sequence, tokens) = held.ok_or_else(|| EvalError::Failed("the document was not held".to_string()))?;
        Ok(Document { engine, sequence, tokens, prefill_seconds: start.elapsed().as_secs_f64() })
    }

    /// The engine that holds it.
    pub fn engine(&self) -> &Engine {
        self.engine
    }

    /// What forks name as their parent.
    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }
}

impl Drop for Document<'_> {
    fn drop(&mut self) {
        self.engine.release(self.sequence);
    }
}

/// The next event that is not an error; `None` after the last.
fn next(handle: &mut RequestHandle) -> Result<Option<Event>, EvalError> {
    match handle.next() {
        Some(Event::Refused(refusal)) => Err(EvalError::Refused(*refusal)),
        Some(Event::Failed(why)) => Err(EvalError::Failed(why)),
        event => Ok(event),
    }
}
