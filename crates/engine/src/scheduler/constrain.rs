//! Constraints between two steps: each is told what its completion became and says what may come next.
//!
//! A token can be chosen only under the mask that follows from the token before it, so a constrained lane is planned
//! when that token is committed: on a backend with two steps in flight it sits out every other step. Forced tokens
//! need no mask and wait for nothing.

use super::{Scheduler, decode};
use crate::constraint::Constrained;
use crate::request::{Refusal, Request};
use crate::sequence::{Running, Sequence};
use backend::TokenMask;
use kv::{SequenceId, TokenId};

/// Whether a lane's next output can be planned.
pub(super) enum Leave {
    /// It can: any token, or those of the mask.
    Go(Option<TokenMask>),
    /// Its mask depends on a token in flight.
    Wait,
}

impl Scheduler {
    /// A constraint for each choice, with the mask of its first token where that is chosen.
    ///
    /// # Errors
    /// The constraint fails before it begins: so would every choice.
    pub(super) fn constrain(&self, request: &Request) -> Result<Vec<Constrained>, Refusal> {
        let Some(factory) = &request.constraint else { return Ok(Vec::new()) };
        let chooses = request.forced.is_empty() && 0 < self.completion_max(request);
        let one = |_| {
            let mut constrained = Constrained::new(factory, self.config.vocab);
            let ready = if chooses { constrained.allow_next() } else { Ok(()) };
            ready.map(|()| constrained).map_err(Refusal::Invalid)
        };
        (0..request.choices).map(one).collect()
    }

    /// A completion has grown by its output number `at`, and goes on.
    ///
    /// # Errors
    /// Its constraint says that it cannot.
    pub(super) fn follow(&mut self, id: SequenceId, at: usize, token: TokenId) -> Result<(), String> {
        let request = self.request_of(id);
        let sequence = self.sequences.get_mut(&id).expect("it is alive");
        let Some(constrained) = &mut sequence.constraint else { return Ok(()) };
        constrained.advance(token)?;
        match decode::forced_output(&request, at + 1) {
            Some(_) => Ok(()),
            None => constrained.allow_next(),
        }
    }
}

/// What a sequence's next output may be, where it is `forced` or chosen.
pub(super) fn leave(sequence: &Sequence, running: &Running, forced: Option<TokenId>) -> Leave {
    match &sequence.constraint {
        Some(constrained) if forced.is_none() => match running.committed == running.planned {
            true => Leave::Go(Some(constrained.mask())),
            false => Leave::Wait,
        },
        _ => Leave::Go(None),
    }
}
