//! One completion on its way through a grammar.

use super::reason;
use engine::{Constraint, TokenMask};
use kv::TokenId;
use llguidance::Matcher;
use std::sync::Arc;

/// Says which tokens may come next, and takes the one that came.
pub(super) struct Follower {
    matcher: Matcher,
    end_tokens: Arc<[TokenId]>,
}

impl Follower {
    pub(super) fn new(matcher: Matcher, end_tokens: Arc<[TokenId]>) -> Self {
        Follower { matcher, end_tokens }
    }
}

impl Constraint for Follower {
    /// Behind the grammar's end, the end tokens alone.
    ///
    /// # Errors
    /// The mask would take more work than its bounds.
    fn mask(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        let set = self.matcher.compute_mask_or_eos().map_err(|error| reason(&error.to_string()))?;
        allowed.set_words(set.as_slice());
        Ok(())
    }

    /// # Errors
    /// The grammar does not have the token there, which no mask allows; or following it would take more work than its
    /// bounds.
    fn advance(&mut self, token: TokenId) -> Result<(), String> {
        // Behind the end, a completion that ignores end tokens goes on with them.
        if self.matcher.is_stopped() && !self.matcher.is_error() && self.end_tokens.contains(&token) {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| reason(&error.to_string()))
    }
}
