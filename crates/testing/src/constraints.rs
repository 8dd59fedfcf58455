//! Constraints that tests read at a glance.

use engine::{Constraint, ConstraintFactory, TokenMask};
use kv::TokenId;

/// Tokens whose number leaves `rest` when divided by `by`, and `ends` besides.
#[derive(Clone, Debug)]
pub struct Residue {
    /// The divisor.
    pub by: TokenId,
    /// What is left.
    pub rest: TokenId,
    /// Tokens that are allowed whatever is left.
    pub ends: Vec<TokenId>,
}

/// Even and odd tokens by turns, an even one first: a token of the wrong kind, which only can be forced, is an error.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    tokens: usize,
}

/// These tokens one after the other, and no more.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// All of them.
    pub tokens: Vec<TokenId>,
    /// How many have come.
    pub seen: usize,
}

impl Residue {
    /// Its factory.
    pub fn factory(by: TokenId, rest: TokenId, ends: &[TokenId]) -> ConstraintFactory {
        let residue = Residue { by, rest, ends: ends.to_vec() };
        ConstraintFactory::new(move || Box::new(residue.clone()))
    }
}

impl Constraint for Residue {
    fn mask(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        let vocab = allowed.vocab() as TokenId;
        (0..vocab).filter(|token| token % self.by == self.rest).for_each(|token| allowed.allow(token));
        self.ends.iter().for_each(|&token| allowed.allow(token));
        Ok(())
    }

    fn advance(&mut self, _: TokenId) -> Result<(), String> {
        Ok(())
    }
}

impl Turns {
    /// Its factory.
    pub fn factory() -> ConstraintFactory {
        ConstraintFactory::new(|| Box::new(Turns::default()))
    }
}

impl Constraint for Turns {
    fn mask(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        let turn = (self.tokens % 2) as TokenId;
        (0..allowed.vocab() as TokenId).filter(|token| token % 2 == turn).for_each(|token| allowed.allow(token));
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> Result<(), String> {
        let turn = (self.tokens % 2) as TokenId;
        self.tokens += 1;
        if token % 2 == turn { Ok(()) } else { Err(format!("token {token} came out of turn")) }
    }
}

impl Fixed {
    /// Its factory.
    pub fn factory(tokens: &[TokenId]) -> ConstraintFactory {
        let fixed = Fixed { tokens: tokens.to_vec(), seen: 0 };
        ConstraintFactory::new(move || Box::new(fixed.clone()))
    }
}

impl Constraint for Fixed {
    fn mask(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        self.tokens.get(self.seen).iter().for_each(|&&token| allowed.allow(token));
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> Result<(), String> {
        let expected = self.tokens.get(self.seen).copied();
        self.seen += 1;
        if expected == Some(token) { Ok(()) } else { Err(format!("token {token} is not {expected:?}")) }
    }
}
