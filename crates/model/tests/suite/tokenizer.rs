//! Tokenizers out of GGUF metadata; streaming text.

use spindle_model::{Tokenizer, open_gguf_bytes};

use crate::gguf_writer::{Field, GgufWriter};
use crate::tiny;

fn of(name: &str, file: &str) -> Tokenizer {
    open_gguf_bytes(file, std::fs::read(tiny::folder(name).join(file)).unwrap()).unwrap().tokenizer
}

fn spelled(tokenizer: &Tokenizer, text: &str) -> String {
    let ids = tokenizer.encode(text, false).unwrap();
    ids.iter().map(|id| tokenizer.token_text(*id).unwrap()).collect::<Vec<_>>().join("|")
}

#[test]
fn sentence_piece() {
    let tokenizer = of("llama", "llama.gguf");
    let check = |text: &str, pieces: &str| {
        assert_eq!(spelled(&tokenizer, text), pieces);
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids[0], 1);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    };
    // as transformers' converter of the same file
    check("hello world", "▁hello|▁world");
    check("the hello", "▁the|▁hello");
    check("hé the  lo\n", "▁|h|<0xC3>|<0xA9>|▁the|▁|▁|lo|<0x0A>");
    // as llama.cpp: a space before every text, also one that begins with a space
    check(" a", "▁|▁|a");
    assert_eq!(spelled(&tokenizer, "hello</s>world"), "▁hello|</s>|▁world");
    assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(1), Some(2), 288));
    assert_eq!(tokenizer.unknown_words("hello 世界").unwrap().count, 0);
    assert_eq!(tokenizer.token_bytes(tokenizer.token_id("▁the").unwrap()).unwrap(), b" the");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_id("<0xC3>").unwrap()).unwrap(), [0xC3]);
}

/// A byte-level vocabulary of all bytes and a few merges, with the given way of cutting.
fn byte_level(pre: &'static str) -> Tokenizer {
    let letters: &'static [String] = Box::leak(
        (0..=255_u8)
            .map(|byte| match byte {
                b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte).to_string(),
                _ => {
                    let before = (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)).count();
                    char::from_u32(0x100 + before as u32).unwrap().to_string()
                }
            })
            .collect(),
    );
    let merged = ["12", "123", "1234", "he", "Ġhe", "'S", "Ġ1", "<|x|>"];
    let mut file = GgufWriter::llama();
    let tokens: Vec<&str> = letters.iter().map(String::as_str).chain(merged).collect();
    file.set("tokenizer.ggml.merges", Field::Texts(vec!["1 2", "12 3", "123 4", "h e", "Ġ he", "' S", "Ġ 1"]));
    file.set("tokenizer.ggml.pre", Field::Text(pre));
    file.set("tokenizer.ggml.bos_token_id", Field::U32(263));
    file.tensor("token_embd.weight", tokens.len() as u64, 32);
    let mut types = vec![1.0; tokens.len()];
    types[263] = 3.0;
    file.set("tokenizer.ggml.token_type", Field::F32s(types));
    file.set("tokenizer.ggml.tokens", Field::Texts(tokens));
    open_gguf_bytes("a.gguf", file.bytes()).unwrap().tokenizer
}

#[test]
fn byte_level_texts_are_cut_as_the_file_says() {
    let check = |pre: &'static str, pieces: &str, first: Option<u32>| {
        let tokenizer = byte_level(pre);
        let text = "he 1234 he'S\n\n<|x|>é";
        assert_eq!(spelled(&tokenizer, text), pieces, "{pre}");
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids.first().filter(|id| **id == 263).copied(), first, "{pre}");
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap(), false).unwrap(), text);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.replace("<|x|>", ""));
    };
    check("llama-bpe", "he|Ġ|123|4|Ġhe|'S|Ċ|Ċ|<|x|>|Ã|©", Some(263));
    check("qwen2", "he|Ġ|1|2|3|4|Ġhe|'S|Ċ|Ċ|<|x|>|Ã|©", None);
    check("smollm", "he|Ġ|1|2|3|4|Ġhe|'|S|Ċ|Ċ|<|x|>|Ã|©", None);
    check("gpt-2", "he|Ġ|1234|Ġhe|'|S|Ċ|Ċ|<|x|>|Ã|©", None);
}

#[test]
fn every_byte_has_its_letter() {
    let tokenizer = byte_level("gpt-2");
    for byte in 0..=255_u8 {
        assert_eq!(tokenizer.token_bytes(u32::from(byte)), Some(vec![byte]));
    }
}

#[test]
fn text_streams_in_whole_characters() {
    for tokenizer in [of("llama", "llama.gguf"), byte_level("qwen2")] {
        let text = "hello wörld 世界 🦀, ok\n";
        let mut detokenizer = tokenizer.detokenizer(&[], true);
        let mut streamed = Vec::new();
        for id in tokenizer.encode(text, true).unwrap() {
            streamed.push(detokenizer.push(id).unwrap());
        }
        streamed.push(detokenizer.finish().unwrap());
        assert_eq!(streamed.concat(), text);
        assert!(streamed.iter().all(|piece| !piece.contains('\u{FFFD}')));
        assert!(streamed.iter().any(|piece| piece == "🦀"));
    }
}

#[test]
fn a_character_that_never_ends_is_replaced() {
    let tokenizer = byte_level("qwen2");
    let mut detokenizer = tokenizer.detokenizer(&[], true);
    let broken = [b'a', 0xF0, 0x9F].map(|byte| detokenizer.push(u32::from(byte)).unwrap());
    assert_eq!(broken, ["a", "", ""]);
    assert_eq!(detokenizer.finish().unwrap(), "\u{FFFD}");

    // bytes that are no text at all must not be held back for ever
    let mut detokenizer = tokenizer.detokenizer(&[], true);
    let streamed: String = (0..40).map(|_| detokenizer.push(0xFF).unwrap()).collect();
    assert!(32 <= streamed.chars().count());
}

#[test]
fn a_stream_goes_on_where_the_prompt_ended() {
    let tokenizer = of("llama", "llama.gguf");
    let prompt = tokenizer.encode("the", true).unwrap();
    let mut after_prompt = tokenizer.detokenizer(&prompt, true);
    let hello = tokenizer.token_id("▁hello").unwrap();
    assert_eq!(after_prompt.push(hello).unwrap(), " hello");
    assert_eq!(tokenizer.detokenizer(&[], true).push(hello).unwrap(), "hello");
}
