//! Any bytes as a GGUF file: header, tensors, tokenizer, template.
#![no_main]

use model::{ChatInput, Message, open_gguf_bytes};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(opened) = open_gguf_bytes("fuzzed.gguf", bytes.to_vec()) else { return };
    for spec in opened.checkpoint.tensors() {
        let tensor = opened.checkpoint.tensor(&spec.name).expect("listed tensors were checked");
        assert_eq!(tensor.len(), spec.len());
    }
    let ids = opened.tokenizer.encode("hello world 世界 123", true).unwrap_or_default();
    let _ = opened.tokenizer.decode(&ids, false);
    if let Ok(chat) = opened.chat() {
        let messages = [Message::new("user", "hello")];
        let _ = chat.render(&ChatInput { messages: &messages, ..ChatInput::default() });
    }
});
