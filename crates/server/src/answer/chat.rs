//! How `/v1/chat/completions` writes its choices.

use super::logprobs::{self, Scored};
use super::piece::{Piece, finish_reason};
use super::whole::Whole;
use super::{Names, Style};
use engine::PromptToken;
use model::Opened;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// See the module.
pub(crate) struct ChatStyle {
    opened: Arc<Opened>,
    /// Whether log-probabilities are wanted.
    logprobs: bool,
    /// How many alternatives `prompt_logprobs` asked for, and what came of it.
    prompt_top: Option<usize>,
    prompt: Vec<PromptToken>,
    /// Choices whose role was told.
    begun: BTreeSet<usize>,
}

impl ChatStyle {
    pub(crate) fn new(opened: Arc<Opened>, logprobs: bool, prompt_top: Option<usize>) -> Self {
        ChatStyle { opened, logprobs, prompt_top, prompt: Vec::new(), begun: BTreeSet::new() }
    }

    fn logprobs(&self, tokens: &[Scored]) -> Value {
        if self.logprobs { logprobs::chat(tokens, &self.opened.tokenizer) } else { Value::Null }
    }
}

impl Style for ChatStyle {
    fn names(&self) -> Names {
        Names { id: "chatcmpl", whole: "chat.completion", chunk: "chat.completion.chunk" }
    }

    fn prompt(&mut self, _prompt: usize, tokens: Vec<PromptToken>) {
        self.prompt = tokens;
    }

    fn deltas(&mut self, piece: Piece) -> Vec<Value> {
        let (index, reason) = (piece.choice, piece.finish_reason());
        let entry = |delta: Value, logprobs: Value, reason: Option<&str>| {
            let finish_reason = reason.map_or(Value::Null, Value::from);
            json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})
        };
        let mut entries = Vec::new();
        if self.begun.insert(index) {
            entries.push(entry(json!({"role": "assistant", "content": ""}), Value::Null, None));
        }
        let tokens: Vec<Scored> = piece.token.map(Scored::from).into_iter().collect();
        if !piece.text.is_empty() || self.logprobs && !tokens.is_empty() {
            entries.push(entry(json!({"content": piece.text}), self.logprobs(&tokens), None));
        }
        if reason.is_some() {
            entries.push(entry(json!({}), Value::Null, reason));
        }
        entries
    }

    fn choice(&mut self, index: usize, whole: Whole) -> Value {
        let reason = whole.end.as_ref().map(finish_reason);
        let mut choice = json!({
            "index": index,
            "message": {"role": "assistant", "content": whole.text},
            "logprobs": self.logprobs(&whole.tokens),
            "finish_reason": reason,
        });
        if let Some(top) = self.prompt_top {
            choice["prompt_logprobs"] = logprobs::prompt(&self.prompt, top, &self.opened.tokenizer);
        }
        choice
    }
}
