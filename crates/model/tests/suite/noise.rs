//! The noise model of `tools/make_noise_llama.py`: what tests of constraints and tool calls rely on.

use std::path::Path;

use serde_json::json;
use spindle_model::{ChatInput, ChatTemplate, Message, ModelSource, Opened, open};

const LLAMA3: &str = include_str!("../../../testing/golden/noise/llama3.jinja");

fn opened() -> Opened {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testing/golden/noise");
    open(&ModelSource::detect(&folder).unwrap()).unwrap()
}

#[test]
fn tokens_are_bytes_and_the_model_has_more_ids() {
    let opened = opened();
    let tokenizer = &opened.tokenizer;
    for byte in 0..=255_u8 {
        assert_eq!(tokenizer.token_bytes(byte.into()), Some(vec![byte]));
    }
    let ends = opened.generation.end_tokens.iter().map(|id| tokenizer.token_text(*id).unwrap());
    assert_eq!(ends.collect::<Vec<_>>(), ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>"]);
    for (tag, is_special) in [("<|im_start|>", true), ("<|python_tag|>", true), ("<tool_call>", false)] {
        assert_eq!(tokenizer.is_special(tokenizer.token_id(tag).unwrap()), is_special, "{tag}");
    }
    assert!(tokenizer.vocab_size() + 20 < opened.config().vocab_size);
    let text = "{\"name\": \"é世\"}\n<tool_call> }}";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap(), true).unwrap(), text);
}

#[test]
fn both_templates_show_tools_and_calls() {
    let opened = opened();
    let mut call = Message::new("assistant", "");
    let function = json!({"name": "f", "arguments": {"x": 1}});
    call.other.insert("tool_calls".into(), json!([{"id": "c", "type": "function", "function": function}]));
    let messages = [Message::new("user", "Hi."), call, Message::new("tool", "ok")];
    let tools = [json!({"type": "function", "function": {"name": "f"}})];
    let input = ChatInput { messages: &messages, tools: &tools, add_generation_prompt: true, ..Default::default() };
    let hermes = opened.chat().unwrap().render(&input).unwrap();
    let llama3 = ChatTemplate::new(LLAMA3, "llama3.jinja", "<|begin_of_text|>", "<|eot_id|>").unwrap();
    let llama3 = llama3.render(&input).unwrap();
    for (text, expected) in [
        (&hermes, "# Tools\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\n</tools>"),
        (
            &hermes,
            "<|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call><|im_end|>",
        ),
        (&hermes, "<|im_start|>user\n<tool_response>\nok\n</tool_response><|im_end|>\n<|im_start|>assistant\n"),
        (&llama3, "{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"f\"\n    }\n}<|eot_id|>"),
        (&llama3, "assistant<|end_header_id|>\n\n{\"name\": \"f\", \"parameters\": {\"x\": 1}}<|eot_id|>"),
        (&llama3, "<|start_header_id|>ipython<|end_header_id|>\n\nok<|eot_id|><|start_header_id|>assistant"),
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(opened.chat().unwrap().source().contains("<tool_call>"));
}
