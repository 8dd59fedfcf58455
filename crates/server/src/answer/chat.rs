//! How `/v1/chat/completions` writes its choices.

use super::logprobs::{self, Scored};
use super::piece::{Piece, finish_reason};
use super::whole::Whole;
use super::{Names, Style};
use crate::tools::parser::ToolParser;
use crate::tools::{ToolDelta, ToolFormat};
use engine::PromptToken;
use model::Opened;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub(crate) struct ChatStyle {
    opened: Arc<Opened>,
    /// Whether log-probabilities are wanted.
    logprobs: bool,
    /// How many alternatives `prompt_logprobs` asked for, and what came of it.
    prompt_top: Option<usize>,
    prompt: Vec<PromptToken>,
    /// Where completions may call tools.
    calls: Option<Calls>,
    /// Choices that have begun, and what looks for calls in their text.
    begun: BTreeMap<usize, Option<ToolParser>>,
}

/// What calls of tools look like in a text.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) format: ToolFormat,
    /// The tools that may be called.
    pub(crate) names: Vec<String>,
    /// What makes the calls' ids differ from other requests', of other runs too.
    pub(crate) request: String,
}

impl Calls {
    fn parser(&self, choice: usize) -> ToolParser {
        ToolParser::new(self.format, self.names.clone(), format!("{}_{choice}", self.request))
    }
}

impl ChatStyle {
    pub(crate) fn new(opened: Arc<Opened>, logprobs: bool, prompt_top: Option<usize>, calls: Option<Calls>) -> Self {
        ChatStyle { opened, logprobs, prompt_top, prompt: Vec::new(), calls, begun: BTreeMap::new() }
    }

    fn logprobs(&self, tokens: &[Scored]) -> Value {
        if self.logprobs { logprobs::chat(tokens, &self.opened.tokenizer) } else { Value::Null }
    }

    /// What a piece adds to a choice, and why the choice ended, if it did.
    fn parts(&mut self, piece: &Piece) -> (Vec<Value>, Option<&'static str>) {
        let (text, reason) = (&piece.text, piece.finish_reason());
        let parser = self.begun.get_mut(&piece.choice).and_then(Option::as_mut);
        let Some(parser) = parser else {
            let content = (!text.is_empty()).then(|| json!({"content": text}));
            return (content.into_iter().collect(), reason);
        };
        let mut deltas = parser.push(text);
        let mut reason = reason;
        if reason.is_some()
            && let Some(Some(parser)) = self.begun.remove(&piece.choice)
        {
            if 0 < parser.calls() && reason == Some("stop") {
                reason = Some("tool_calls");
            }
            deltas.extend(parser.finish());
        }
        (deltas.iter().map(delta).collect(), reason)
    }
}

impl Style for ChatStyle {
    fn names(&self) -> Names {
        Names { id: "chatcmpl-", whole: "chat.completion", chunk: "chat.completion.chunk" }
    }

    fn prompt(&mut self, _prompt: usize, tokens: Vec<PromptToken>) {
        self.prompt = tokens;
    }

    fn deltas(&mut self, piece: Piece) -> Vec<Value> {
        let index = piece.choice;
        let entry = |delta: Value, logprobs: Value, reason: Option<&str>| {
            let finish_reason = reason.map_or(Value::Null, Value::from);
            json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})
        };
        let mut entries = Vec::new();
        if !self.begun.contains_key(&index) {
            self.begun.insert(index, self.calls.as_ref().map(|calls| calls.parser(index)));
            entries.push(entry(json!({"role": "assistant", "content": ""}), Value::Null, None));
        }
        let (mut parts, reason) = self.parts(&piece);
        let tokens: Vec<Scored> = piece.token.map(Scored::from).into_iter().collect();
        if parts.is_empty() && self.logprobs && !tokens.is_empty() {
            parts.push(json!({"content": ""}));
        }
        let mut logprobs = self.logprobs(&tokens);
        entries.extend(parts.into_iter().map(|part| entry(part, logprobs.take(), None)));
        if reason.is_some() {
            entries.push(entry(json!({}), Value::Null, reason));
        }
        entries
    }

    fn choice(&mut self, index: usize, whole: Whole) -> Value {
        let mut reason = whole.end.as_ref().map(finish_reason);
        let mut message = json!({"role": "assistant", "content": whole.text});
        if let Some(calls) = &self.calls {
            let mut parser = calls.parser(index);
            let mut deltas = parser.push(&whole.text);
            if 0 < parser.calls() && reason == Some("stop") {
                reason = Some("tool_calls");
            }
            deltas.extend(parser.finish());
            message = message_of(deltas);
        }
        json!({
            "index": index, "message": message, "logprobs": self.logprobs(&whole.tokens), "finish_reason": reason,
        })
    }

    fn extra(&self) -> Option<(&'static str, Value)> {
        let top = self.prompt_top?;
        Some(("prompt_logprobs", logprobs::prompt(&self.prompt, top, &self.opened.tokenizer)))
    }
}

/// A part of a streamed message.
fn delta(part: &ToolDelta) -> Value {
    match part {
        ToolDelta::Content(text) => json!({"content": text}),
        ToolDelta::Call { index, id, name } => {
            let function = json!({"name": name, "arguments": ""});
            json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
        }
        ToolDelta::Arguments { index, text } => {
            json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        }
    }
}

/// A whole message with its calls.
fn message_of(deltas: Vec<ToolDelta>) -> Value {
    let (mut content, mut calls): (String, Vec<(String, String, String)>) = (String::new(), Vec::new());
    for delta in deltas {
        match delta {
            ToolDelta::Content(text) => content += &text,
            ToolDelta::Call { id, name, .. } => calls.push((id, name, String::new())),
            ToolDelta::Arguments { index, text } => calls[index].2 += &text,
        }
    }
    if calls.is_empty() {
        return json!({"role": "assistant", "content": content});
    }
    let call = |(id, name, arguments): (String, String, String)| {
        let function = json!({"name": name, "arguments": arguments});
        json!({"id": id, "type": "function", "function": function})
    };
    let content = if content.trim().is_empty() { Value::Null } else { Value::from(content) };
    let calls: Vec<Value> = calls.into_iter().map(call).collect();
    json!({"role": "assistant", "content": content, "tool_calls": calls})
}
