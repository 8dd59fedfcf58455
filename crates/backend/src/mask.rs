//! Which tokens of the vocabulary a step may choose: plain data that a step's input shares cheaply.
//!
//! ```text
//! word      0                1                       (vocab - 1) / 32
//! tokens    0..32            32..64            ...   the rest; its bits from `vocab` on are never set
//! bit       token % 32
//! ```

use kv::TokenId;
use std::fmt;
use std::sync::Arc;

/// A set of tokens. Clones share their words until one of them is changed.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenMask {
    vocab: usize,
    /// `[ceil(vocab / 32)]`
    words: Arc<[u32]>,
}

impl TokenMask {
    /// No token of a vocabulary of `vocab` tokens.
    pub fn none(vocab: usize) -> Self {
        TokenMask { vocab, words: vec![0; vocab.div_ceil(32)].into() }
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Adds a token; one that the vocabulary does not have is no error and stays out.
    pub fn allow(&mut self, token: TokenId) {
        if (token as usize) < self.vocab {
            self.words_to_write()[token as usize / 32] |= 1 << (token % 32);
        }
    }

    /// Takes a token out.
    pub fn forbid(&mut self, token: TokenId) {
        if (token as usize) < self.vocab {
            self.words_to_write()[token as usize / 32] &= !(1 << (token % 32));
        }
    }

    /// Adds every token.
    pub fn allow_all(&mut self) {
        self.words_to_write().fill(!0);
        self.cut();
    }

    /// Takes every token out.
    pub fn clear(&mut self) {
        self.words_to_write().fill(0);
    }

    /// Becomes these words, as a grammar engine keeps them; those that are missing are empty, those that the
    /// vocabulary does not reach are left out.
    pub fn set_words(&mut self, words: &[u32]) {
        let own = self.words_to_write();
        let count = own.len().min(words.len());
        own[..count].copy_from_slice(&words[..count]);
        own[count..].fill(0);
        self.cut();
    }

    /// The words.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether a token is in it.
    pub fn contains(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Tokens in it.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no token is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Its tokens, ascending.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        (0..self.vocab as TokenId).filter(|token| self.contains(*token))
    }

    fn words_to_write(&mut self) -> &mut [u32] {
        Arc::make_mut(&mut self.words)
    }

    /// Bits behind the vocabulary are never set.
    fn cut(&mut self) {
        let rest = self.vocab % 32;
        if let Some(last) = self.words_to_write().last_mut()
            && rest != 0
        {
            *last &= (1 << rest) - 1;
        }
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenMask({} of {} tokens)", self.count(), self.vocab)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_tokens_that_were_added_and_none_behind_the_vocabulary() {
        for vocab in [1, 3, 31, 32, 33, 113, 1023] {
            let mut mask = TokenMask::none(vocab);
            assert!(mask.is_empty());
            mask.allow_all();
            assert_eq!((mask.count(), mask.tokens().count()), (vocab, vocab), "{vocab}");
            let last = vocab as TokenId - 1;
            mask.forbid(last);
            assert!(!mask.contains(last) && !mask.contains(last + 1), "{vocab}");
            mask.clear();
            mask.allow(last);
            mask.allow(last + 1);
            assert_eq!(mask.tokens().collect::<Vec<_>>(), [last]);
            mask.set_words(&vec![!0; vocab / 32 + 2]);
            assert_eq!(mask.count(), vocab);
            mask.set_words(&[]);
            assert!(mask.is_empty());
        }
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut mask = TokenMask::none(40);
        let shared = mask.clone();
        mask.allow(39);
        assert_eq!((shared.count(), mask.count()), (0, 1));
        assert_eq!(format!("{mask:?}"), "TokenMask(1 of 40 tokens)");
    }
}
