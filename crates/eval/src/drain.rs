//! Requests to their end: every reader has a thread of its own, so that none is slow and all decode together.

use crate::document::EvalError;
use engine::{Engine, Event, FinishReason, Finished, Request, TokenEvent};

/// All that one request came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Drained {
    /// The first choice's tokens.
    pub tokens: Vec<TokenEvent>,
    /// How it ended.
    pub finished: Finished,
}

/// How long a batch decoded, by the engine's own clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchTime {
    /// Decode steps of all sequences together.
    pub steps: usize,
    /// From the first sequence's first decode step to the last one's last, in seconds.
    pub seconds: f64,
}

/// Submits all requests at once and waits for all of them; in order.
///
/// # Errors
/// One was refused or ended early, or the engine failed.
pub fn drain(engine: &Engine, requests: Vec<Request>) -> Result<Vec<Drained>, EvalError> {
    std::thread::scope(|scope| {
        let one = |request| scope.spawn(move || drain_one(engine, request));
        let threads: Vec<_> = requests.into_iter().map(one).collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(drained) => drained,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect()
    })
}

fn drain_one(engine: &Engine, request: Request) -> Result<Drained, EvalError> {
    let (mut tokens, mut finished) = (Vec::new(), None);
    for event in engine.submit(request)? {
        match event {
            Event::Token(token) if token.choice == 0 => tokens.push(*token),
            Event::Finished(end) if matches!(end.reason, FinishReason::Aborted(_)) => {
                let why = end.error.unwrap_or_else(|| format!("{:?}", end.reason));
                return Err(EvalError::Failed(format!("a request was aborted: {why}")));
            }
            Event::Finished(end) if end.choice == 0 => finished = Some(*end),
            Event::Refused(refusal) => return Err(EvalError::Refused(*refusal)),
            Event::Failed(why) => return Err(EvalError::Failed(why)),
            _ => {}
        }
    }
    let finished = finished.ok_or_else(|| EvalError::Failed("a request did not finish".to_string()))?;
    Ok(Drained { tokens, finished })
}

/// The time that a batch decoded.
pub fn batch_time(drained: &[Drained]) -> BatchTime {
    let times = drained.iter().map(|one| one.finished.timings);
    let started = times.clone().map(|t| t.started).fold(f64::INFINITY, f64::min);
    let ended = times.clone().map(|t| t.ended).fold(0.0, f64::max);
    BatchTime { steps: times.map(|t| t.decode_steps).sum(), seconds: (ended - started).max(1e-9) }
}
