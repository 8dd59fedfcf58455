//! The model's vocabulary as llguidance reads it: the bytes of every token.

use model::Tokenizer;
use std::sync::Arc;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// Bytes of a token that a mask may allow; the tree of tokens has room for 1,023.
const TOKEN_BYTES_MAX: usize = 512;

/// A text that has what JSON has; a vocabulary that does not spell it cannot be constrained.
const PROBE: &str = "{\"name\": \"f\", \"a\": [1, -2.5e3, true, null],\n \"t\": \"x y é世\"}";

/// The vocabulary. The model chooses between spellings of the same text, as it does without a mask: forcing the
/// tokenizer's own would need its rules at every place where a text may be cut.
///
/// # Errors
/// There is no end token, or tokens do not spell text.
pub(super) fn environment(tokenizer: &Tokenizer, end_tokens: &[u32], vocab_size: usize) -> Result<TokEnv, String> {
    if end_tokens.is_empty() {
        return Err("the model names no end token, so a constrained answer would never end".into());
    }
    check_spelling(tokenizer)?;
    let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, end_tokens[0]), &words);
    Ok(Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(end_tokens))))
}

/// The bytes of a token; none for ids that are never allowed.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let marker = TokTrie::SPECIAL_TOKEN_MARKER;
    match bytes.first() {
        _ if TOKEN_BYTES_MAX < bytes.len() => Vec::new(),
        Some(_) if tokenizer.is_special(id) => [&[marker], bytes.as_slice()].concat(),
        // No text begins with this byte, and llguidance would take the token for a control token.
        Some(first) if *first == marker => Vec::new(),
        _ => bytes,
    }
}

fn check_spelling(tokenizer: &Tokenizer) -> Result<(), String> {
    let ids = tokenizer.encode(PROBE, false).map_err(|error| error.to_string())?;
    let spelled: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap_or_default()).collect();
    // Some vocabularies put a space before every text.
    match spelled.strip_prefix(b" ").unwrap_or(&spelled) == PROBE.as_bytes() {
        true => Ok(()),
        false => Err("the model's vocabulary cannot spell JSON".into()),
    }
}
