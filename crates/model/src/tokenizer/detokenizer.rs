//! Text that streams.
//!
//! A token's text depends on its neighbours: a character may be spread over several tokens, and a leading space may
//! belong to the first token of a text or not. So the last few tokens are decoded again with each new one, and what is
//! new is the difference:
//!
//! ```text
//! ids:   ...................|==========|++++++++++|
//!                        context      read       end
//!                           [---- before ----)             decode(context..read), already emitted
//!                           [---------- after -----------) decode(context..end), emitted if it ends in a character
//! ```

use tokenizers::DecoderWrapper;

use super::Tokenizer;
use crate::Error;

/// Tokens of the prompt that are enough to tell how the first new token joins on.
const CONTEXT_TOKENS: usize = 6;

/// A character has at most four bytes, so that many tokens that still do not end one never will.
const PENDING_TOKENS_MAX: usize = 8;

/// Emits whole UTF-8 text for a stream of tokens. Holds at most [`CONTEXT_TOKENS`] + [`PENDING_TOKENS_MAX`] ids.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// From `context` on; earlier ids are dropped.
    ids: Vec<u32>,
    /// `ids[..read]` were emitted.
    read: usize,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, prompt: &[u32], skip_special: bool) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        Self { tokenizer, skip_special, read: ids.len(), ids }
    }

    /// Takes one token; gives the text that is now certain, often empty in the middle of a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let (before, after) = self.texts()?;
        let complete = !after.ends_with('\u{FFFD}') || PENDING_TOKENS_MAX <= self.ids.len() - self.read;
        if !complete || after.len() <= before.len() {
            return Ok(String::new());
        }
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Ok(difference(&before, &after))
    }

    /// The end of the stream: what is left, with U+FFFD for a character that was never completed.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String, Error> {
        let (before, after) = self.texts()?;
        self.read = self.ids.len();
        Ok(difference(&before, &after))
    }

    fn texts(&self) -> Result<(String, String), Error> {
        let before = self.tokenizer.decode(&self.ids[..self.read], self.skip_special)?;
        let after = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok((before, after))
    }
}

/// What `after` adds to `before`. They share a beginning but for a character that `before` had cut off.
fn difference(before: &str, after: &str) -> String {
    match after.get(before.len()..) {
        Some(new) if after.starts_with(before) => new.to_owned(),
        _ => {
            let shared = before.chars().zip(after.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
            after[shared..].to_owned()
        }
    }
}

/// The bytes of one token of the vocabulary, spelled as `tokenizer`'s decoder expects.
pub(super) fn token_bytes(token: &str, tokenizer: &tokenizers::Tokenizer) -> Vec<u8> {
    match tokenizer.get_decoder() {
        Some(DecoderWrapper::ByteLevel(_)) => {
            token.chars().map(byte_of_level_char).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
        }
        Some(_) => match byte_fallback(token) {
            Some(byte) => vec![byte],
            None => token.replace('▁', " ").into_bytes(),
        },
        None => token.as_bytes().to_vec(),
    }
}

/// `<0x0A>` of a vocabulary with byte fallback.
fn byte_fallback(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards in order.
pub(super) fn byte_of_level_char(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(character) {
        code @ 0..=0xFF => Some(code as u8).filter(|byte| printable(*byte)),
        code => (0..=255_u8).filter(|byte| !printable(*byte)).nth(code.checked_sub(0x100)? as usize),
    }
}
