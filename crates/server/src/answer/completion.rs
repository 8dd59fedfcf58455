//! How `/v1/completions` writes its choices.

use super::logprobs::{self, Scored};
use super::piece::{Piece, finish_reason};
use super::whole::Whole;
use super::{Names, Style};
use model::Opened;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub(crate) struct CompletionStyle {
    opened: Arc<Opened>,
    /// Completions of each prompt that are returned.
    choices: usize,
    /// Whether log-probabilities are wanted.
    logprobs: bool,
    /// By prompt: the text to repeat before each completion; empty where it was not asked for.
    echo: Vec<String>,
    /// Positions behind the text of the choices that have begun, in characters.
    positions: BTreeMap<usize, usize>,
}

impl CompletionStyle {
    pub(crate) fn new(opened: Arc<Opened>, choices: usize, logprobs: bool, echo: Vec<String>) -> Self {
        CompletionStyle { opened, choices, logprobs, echo, positions: BTreeMap::new() }
    }

    fn echoed(&self, prompt: usize) -> &str {
        self.echo.get(prompt).map_or("", String::as_str)
    }

    fn logprobs(&self, tokens: &[Scored], start: usize) -> (Value, usize) {
        match self.logprobs {
            true => logprobs::completion(tokens, start, &self.opened.tokenizer),
            false => (Value::Null, start),
        }
    }
}

impl Style for CompletionStyle {
    fn names(&self) -> Names {
        Names { id: "cmpl", whole: "text_completion", chunk: "text_completion" }
    }

    fn deltas(&mut self, piece: Piece) -> Vec<Value> {
        let (index, reason) = (piece.prompt * self.choices + piece.choice, piece.finish_reason());
        let begun = self.positions.contains_key(&index);
        let before = if begun { "" } else { self.echoed(piece.prompt) };
        let text = format!("{before}{}", piece.text);
        let tokens: Vec<Scored> = piece.token.map(Scored::from).into_iter().collect();
        if text.is_empty() && reason.is_none() && !self.logprobs {
            return Vec::new();
        }
        let start = self.positions.get(&index).copied().unwrap_or(before.chars().count());
        let (logprobs, position) = self.logprobs(&tokens, start);
        self.positions.insert(index, position);
        vec![json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})]
    }

    fn choice(&mut self, index: usize, whole: Whole) -> Value {
        let echoed = self.echoed(whole.prompt);
        let (logprobs, _) = self.logprobs(&whole.tokens, echoed.chars().count());
        let text = format!("{echoed}{}", whole.text);
        let reason = whole.end.as_ref().map(finish_reason);
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
    }
}
