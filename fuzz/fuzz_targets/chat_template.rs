//! Any text as a chat template.
#![no_main]

use model::{ChatInput, ChatTemplate, Message};

libfuzzer_sys::fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::new(source, "fuzzed.jinja", "<s>", "</s>") else { return };
    let messages = [Message::new("system", "s"), Message::new("user", "hello"), Message::new("assistant", "a")];
    let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
    let _ = template.render(&input);
});
