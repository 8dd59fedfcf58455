//! What a completion's tokens must follow: a grammar, a schema, a list of answers.
//!
//! ```text
//! submit        commit of a token          plan of the next one      commit
//! mask       -> advance, mask           -> mask in the step's input -> ...
//! ```
//!
//! A constraint is called on the step loop's thread, between two steps: its time is everybody's. It is deterministic:
//! the same tokens give the same masks, so that the scheduler stays pure.

use backend::TokenMask;
use kv::TokenId;
use std::fmt;
use std::sync::Arc;

/// Says of one completion which tokens may come next.
pub trait Constraint: Send {
    /// Adds the tokens that may come next to `allowed`, which comes empty. Where the completion may end, the end tokens
    /// are among them: the engine adds none. Called once for every token that is chosen, not for forced ones.
    ///
    /// # Errors
    /// Why no mask can be made; the completion ends with this text. No token allowed is an error as well.
    fn mask(&mut self, allowed: &mut TokenMask) -> Result<(), String>;

    /// The completion has grown by a token, chosen or forced, and goes on behind it.
    ///
    /// # Errors
    /// Why nothing can follow that token; the completion ends with this text.
    fn advance(&mut self, token: TokenId) -> Result<(), String>;
}

/// Makes the constraint of each of a request's completions; two are equal where they are the same one.
#[derive(Clone)]
pub struct ConstraintFactory(Arc<dyn Fn() -> Box<dyn Constraint> + Send + Sync>);

impl ConstraintFactory {
    /// One that calls `make` for every completion.
    pub fn new(make: impl Fn() -> Box<dyn Constraint> + Send + Sync + 'static) -> Self {
        ConstraintFactory(Arc::new(make))
    }

    /// A constraint before its first token.
    pub fn make(&self) -> Box<dyn Constraint> {
        (self.0)()
    }
}

impl fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConstraintFactory")
    }
}

impl PartialEq for ConstraintFactory {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A completion's constraint and what it allows next.
pub(crate) struct Constrained {
    constraint: Box<dyn Constraint>,
    /// What the next chosen token may be; written by `allow_next`.
    allowed: TokenMask,
}

impl Constrained {
    pub(crate) fn new(factory: &ConstraintFactory, vocab: usize) -> Self {
        Constrained { constraint: factory.make(), allowed: TokenMask::none(vocab) }
    }

    /// Asks what the next token may be.
    pub(crate) fn allow_next(&mut self) -> Result<(), String> {
        self.allowed.clear();
        self.constraint.mask(&mut self.allowed)?;
        if self.allowed.is_empty() { Err("the constraint allows no token".to_string()) } else { Ok(()) }
    }

    /// The completion goes on behind `token`.
    pub(crate) fn advance(&mut self, token: TokenId) -> Result<(), String> {
        self.constraint.advance(token)
    }

    /// What the next token may be, shared.
    pub(crate) fn mask(&self) -> TokenMask {
        self.allowed.clone()
    }
}

impl fmt::Debug for Constrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constrained").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}
