//! The model inside this binary: a Qwen3-shaped decoder of 3.4 million parameters that finds codes in a text.
//!
//! It was trained on one task only (see [`crate::needle_text`]): it knows 516 words, and answers
//! "what is the code for the ADJ NOUN ?" with four digits and a full stop.

/// What to call it.
pub const NAME: &str = "needle";

/// One sentence for a person who asks it anything else.
pub const NOTICE: &str = "The bundled model is a toy that knows 516 words and one task: given a text with sentences \
like \"the code for the amber lamp is 4 0 7 1 .\", it answers \"what is the code for the amber lamp ?\". \
Give the path of a real model for anything else.";

/// The tensors are borrowed from the embedded bytes, so these need the alignment that a mapped file has.
#[repr(C, align(64))]
struct Aligned<Bytes: ?Sized>(Bytes);

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../models/needle/model.safetensors"));

/// The bytes of one of its files.
pub(crate) fn file(name: &str) -> Option<&'static [u8]> {
    Some(match name {
        "config.json" => include_bytes!("../../../models/needle/config.json"),
        "generation_config.json" => include_bytes!("../../../models/needle/generation_config.json"),
        "tokenizer.json" => include_bytes!("../../../models/needle/tokenizer.json"),
        "tokenizer_config.json" => include_bytes!("../../../models/needle/tokenizer_config.json"),
        "model.safetensors" => &WEIGHTS.0,
        _ => return None,
    })
}
