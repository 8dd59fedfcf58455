//! Sampling defaults, and the places that a chat template comes from.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use spindle_model::{ChatInput, Generation, Message, ModelSource, Opened, open};

use crate::tiny;

fn parse(json: Value) -> Result<Generation, String> {
    let config = tiny::opened("llama").config().clone();
    let text = json.to_string();
    Generation::from_hugging_face(text.as_bytes(), "generation_config.json", &config).map_err(|error| error.to_string())
}

#[test]
fn defaults_are_the_files() {
    let parsed = parse(json!({
        "eos_token_id": [7, 3, 7], "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": null,
        "repetition_penalty": 1.1, "max_new_tokens": 64, "transformers_version": "5.0.0",
    }));
    let expected = Generation {
        end_tokens: vec![3, 7],
        temperature: Some(0.6),
        top_k: Some(20),
        top_p: Some(0.95),
        min_p: None,
        repetition_penalty: Some(1.1),
        max_new_tokens: Some(64),
    };
    assert_eq!(parsed.unwrap(), expected);
}

#[test]
fn what_is_not_said_is_not_invented() {
    // end tokens of the configuration, nothing else
    assert_eq!(parse(json!({})).unwrap(), Generation::from_end_tokens(vec![2]));
    assert_eq!(parse(json!({"do_sample": false, "temperature": 0.6})).unwrap().temperature, Some(0.0));
    assert_eq!(parse(json!({"temperature": 0.6})).unwrap().temperature, Some(0.6));
    assert_eq!(parse(json!({"top_k": 0})).unwrap().top_k, None);
}

#[test]
fn impossible_values_are_named() {
    let check = |json: Value, message: &str| {
        assert_eq!(parse(json).unwrap_err(), format!("generation_config.json: {message}"));
    };
    check(json!({"temperature": -1}), "temperature is -1, expected 0 to 100");
    check(json!({"top_p": 1.5}), "top_p is 1.5, expected 0 to 1");
    check(json!({"top_k": "many"}), "top_k is \"many\", expected a whole number");
    check(json!({"eos_token_id": -1}), "eos_token_id is -1, expected a token id or a list of token ids");
}

/// A tiny folder with further files.
fn with_files(name: &str, files: &[(&str, Value)]) -> (PathBuf, Opened) {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(tiny::folder("mistral").join(file), directory.join(file)).unwrap();
    }
    for (file, content) in files {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(directory.join(file), text).unwrap();
    }
    let opened = open(&ModelSource::Folder(directory.clone())).unwrap();
    (directory, opened)
}

fn check_chat(name: &str, files: &[(&str, Value)], expected: &str) {
    let (directory, opened) = with_files(name, files);
    let messages = [Message::new("user", "w9")];
    let input = ChatInput { messages: &messages, ..ChatInput::default() };
    let found = opened.chat().and_then(|chat| chat.render(&input)).unwrap_or_else(|error| error.to_string());
    assert_eq!(found, expected);
    remove(&directory);
}

fn remove(directory: &Path) {
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_template_is_found_where_models_keep_it() {
    let source = |word: &str| format!("{word} {{{{ bos_token }}}}{{{{ messages[0].content }}}}{{{{ eos_token }}}}");
    let config =
        |template: Value| json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template});
    check_chat("no-chat", &[], "this model has no chat template; use a plain prompt");
    check_chat("text-chat", &[("tokenizer_config.json", config(json!(source("one"))))], "one <s>w9</s>");
    let named = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": source("two")}]);
    check_chat("named-chat", &[("tokenizer_config.json", config(named))], "two <s>w9</s>");
    let both =
        [("tokenizer_config.json", config(json!(source("one")))), ("chat_template.jinja", json!(source("three")))];
    check_chat("jinja-chat", &both, "three <s>w9</s>");
}

#[test]
fn generation_config_is_read_from_its_folder() {
    let (directory, opened) = with_files("generation", &[("generation_config.json", json!({"eos_token_id": [2, 5]}))]);
    assert_eq!(opened.generation.end_tokens, [2, 5]);
    remove(&directory);
}
