//! A tokenizer for a model that has none: the first 256 tokens are the bytes of a text, and each token above them is
//! its number, as in `<300>`. Right for random weights, whose answers mean nothing.

use serde_json::{Map, Value, json};

use super::{Tokenizer, detokenizer};
use crate::Error;

/// In the place of a file's name.
pub(super) const NAME: &str = "the stand-in vocabulary";

impl Tokenizer {
    pub(crate) fn stand_in(vocab_size: usize) -> Result<Self, Error> {
        let mut bytes = ['\0'; 256];
        for character in '\0'..='\u{143}' {
            if let Some(byte) = detokenizer::byte_of_level_char(character) {
                bytes[usize::from(byte)] = character;
            }
        }
        let token = |id: usize| bytes.get(id).map_or_else(|| format!("<{id}>"), char::to_string);
        let vocab: Map<String, Value> = (0..vocab_size).map(|id| (token(id), json!(id))).collect();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": level, "post_processor": null, "decoder": level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": []},
        });
        let failed = |error: tokenizers::Error| Error::Tokenizer { file: NAME.to_owned(), reason: error.to_string() };
        Ok(Self::new(tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(failed)?, NAME, None, None))
    }
}
