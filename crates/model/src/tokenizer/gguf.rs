//! A tokenizer out of the metadata of a GGUF file.
//!
//! The file has the vocabulary and, for byte-level BPE, the merges; how text is cut before it is merged is only named
//! (`tokenizer.ggml.pre`). What is missing is written here as the `tokenizer.json` that the model had before it was
//! converted.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::Error;
use crate::gguf::{Gguf, Metadata};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// `tokenizer.ggml.token_type`: a piece of text, made by training.
const NORMAL: u32 = 1;
const UNKNOWN: u32 = 2;
/// Never text.
const CONTROL: u32 = 3;
/// Text that is always one token.
const USER_DEFINED: u32 = 4;

/// Words with which chat models end a turn, if they are control tokens of the vocabulary.
const TURN_ENDS: [&str; 7] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>"];

/// Pieces longer than this come from no trained vocabulary.
const PIECE_CHARACTERS_MAX: usize = 256;

/// Llama 3's and Qwen2's cuts differ in how many digits stay together.
fn split_pattern(digits: &str) -> String {
    let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
    let rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    format!("{words}|{digits}|{rest}")
}

impl Tokenizer {
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, Error> {
        let metadata = gguf.metadata();
        let vocabulary = Vocabulary::read(metadata)?;
        let parts = match metadata.str(MODEL)? {
            "gpt2" => byte_level(metadata, &vocabulary)?,
            "llama" => sentence_piece(metadata, &vocabulary)?,
            other => {
                return Err(metadata.unsupported(MODEL, other, "gpt2 (byte-level BPE), llama (SentencePiece BPE)"));
            }
        };
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": vocabulary.added(),
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": post_processor(metadata, &vocabulary, parts.add_bos)?,
            "decoder": parts.decoder,
            "model": parts.model,
        });
        let failed = |reason: String| Error::Tokenizer { file: gguf.file().to_owned(), reason };
        let inner = tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(|error| failed(error.to_string()))?;
        let id = |key| vocabulary.special(metadata, key);
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        Ok(Self::new(inner, gguf.file(), bos, eos))
    }

    /// The ids that end a text or a turn: those that the file names, and control tokens that are known to.
    pub(crate) fn gguf_end_tokens(&self, gguf: &Gguf) -> Result<Vec<u32>, Error> {
        let mut ids: Vec<u32> = self.eos().into_iter().collect();
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ids.extend(gguf.metadata().u32_opt(key)?);
        }
        ids.extend(TURN_ENDS.iter().filter_map(|word| self.token_id(word)).filter(|id| self.is_special(*id)));
        Ok(ids)
    }
}

/// The tokens by id, and what each is.
struct Vocabulary<'a> {
    tokens: &'a [String],
    types: Vec<u32>,
}

/// What differs between kinds of tokenizer, as values of a `tokenizer.json`.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    add_bos: bool,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, Error> {
        let tokens = metadata.texts_opt(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS))?;
        let types = match metadata.numbers_opt(TYPES)? {
            None => vec![NORMAL; tokens.len()],
            Some(types) if types.len() == tokens.len() => types.iter().map(|kind| *kind as u32).collect(),
            Some(types) => {
                let problem = format!("has {} entries, but there are {} tokens", types.len(), tokens.len());
                return Err(metadata.wrong(TYPES, problem));
            }
        };
        Ok(Self { tokens, types })
    }

    fn ids(&self) -> Map<String, Value> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            ids.entry(token.as_str()).or_insert(id.into());
        }
        ids
    }

    fn added(&self) -> Vec<Value> {
        let typed = self.tokens.iter().zip(&self.types).enumerate();
        typed
            .filter(|(_, (token, kind))| !token.is_empty() && matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED))
            .map(|(id, (token, kind))| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": *kind != USER_DEFINED})
            })
            .collect()
    }

    /// A special token's id, which must be one of this vocabulary.
    fn special(&self, metadata: &Metadata, key: &str) -> Result<Option<u32>, Error> {
        match metadata.u32_opt(key)? {
            Some(id) if self.tokens.len() <= id as usize => {
                Err(metadata.wrong(key, format!("is {id}, but there are {} tokens", self.tokens.len())))
            }
            id => Ok(id),
        }
    }
}

fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Parts, Error> {
    let plain = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let after = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let sequence = |first: Value, second: &Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let split = |digits: &str| {
        let pattern = json!({"Regex": split_pattern(digits)});
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    let pre = metadata.str_opt(PRE)?.unwrap_or("default");
    let llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let (normalizer, pre_tokenizer) = match pre {
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, sequence(split(r"\p{N}{1,3}"), &after)),
        "qwen2" => (json!({"type": "NFC"}), sequence(split(r"\p{N}"), &after)),
        "smollm" => (Value::Null, sequence(json!({"type": "Digits", "individual_digits": true}), &plain)),
        "gpt-2" | "gpt2" | "default" => (Value::Null, plain),
        other => return Err(metadata.unsupported(PRE, other, "llama-bpe, qwen2, smollm, gpt-2, default")),
    };
    let merges = metadata.texts_opt(MERGES)?.ok_or_else(|| metadata.missing(MERGES))?;
    let pair = |merge: &String| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(metadata.wrong(MERGES, format!("has the entry {merge:?}, expected two tokens"))),
    };
    let merges = merges.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": llama3,
        "vocab": vocabulary.ids(), "merges": merges});
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    Ok(Parts { normalizer, pre_tokenizer, decoder, model, add_bos: llama3 })
}

/// SentencePiece in its BPE mode: two pieces merge if their sum is a piece, higher scores first, bytes where nothing
/// fits.
fn sentence_piece(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Parts, Error> {
    let scores = metadata.numbers_opt(SCORES)?.ok_or_else(|| metadata.missing(SCORES))?;
    if scores.len() != vocabulary.tokens.len() {
        let problem = format!("has {} entries, but there are {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(metadata.wrong(SCORES, problem));
    }
    let unknown = vocabulary.special(metadata, "tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    let model = json!({"type": "BPE", "dropout": null, "unk_token": vocabulary.tokens.get(unknown as usize),
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
        "ignore_merges": false, "vocab": vocabulary.ids(), "merges": merges_by_score(vocabulary, scores)});
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if metadata.bool_opt("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model,
        add_bos: true,
    })
}

/// Every way to cut a piece into two pieces, ordered by the piece's score, as the Hugging Face converter derives them.
fn merges_by_score<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Vec<[&'a str; 2]> {
    let trained = |id: usize| vocabulary.types[id] == NORMAL;
    let pieces: HashMap<&str, usize> = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, token)| trained(*id) && token.chars().nth(PIECE_CHARACTERS_MAX).is_none())
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for (&piece, &id) in &pieces {
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (pieces.get(left), pieces.get(right)) {
                merges.push((scores[id], id, *left_id, *right_id, [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    merges.into_iter().map(|merge| merge.4).collect()
}

/// Adds the first and last tokens that the file asks for.
fn post_processor(metadata: &Metadata, vocabulary: &Vocabulary, add_bos: bool) -> Result<Value, Error> {
    let flag = |key: &str, default: bool| Ok::<_, Error>(metadata.bool_opt(key)?.unwrap_or(default));
    let wanted = [
        ("tokenizer.ggml.bos_token_id", flag("tokenizer.ggml.add_bos_token", add_bos)?),
        ("tokenizer.ggml.eos_token_id", flag("tokenizer.ggml.add_eos_token", false)?),
    ];
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let mut special = Map::new();
    let mut around = [None, None];
    for (slot, (key, wanted)) in around.iter_mut().zip(wanted) {
        if let (true, Some(id)) = (wanted, vocabulary.special(metadata, key)?) {
            let token = &vocabulary.tokens[id as usize];
            special.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
            *slot = Some(json!({"SpecialToken": {"id": token, "type_id": 0}}));
        }
    }
    if special.is_empty() {
        return Ok(Value::Null);
    }
    let [bos, eos] = around;
    let single: Vec<Value> = bos.into_iter().chain([sequence.clone()]).chain(eos).collect();
    let pair = json!([sequence, {"Sequence": {"id": "B", "type_id": 1}}]);
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}))
}
