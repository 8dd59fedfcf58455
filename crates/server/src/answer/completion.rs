//! How `/v1/completions` writes its choices.

use super::logprobs::{self, Scored};
use super::piece::{Piece, finish_reason};
use super::whole::Whole;
use super::{Names, Style};
use engine::PromptToken;
use model::Opened;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub(crate) struct CompletionStyle {
    opened: Arc<Opened>,
    /// Completions of each prompt that are returned.
    choices: usize,
    /// Alternatives beside each token's log-probability, where these are wanted.
    logprobs: Option<usize>,
    /// By prompt: the text to repeat before each completion; empty where it was not asked for.
    echo: Vec<String>,
    /// How many alternatives `prompt_logprobs` asked for, which has a field of its own.
    prompt_top: Option<usize>,
    /// By prompt: its tokens' log-probabilities, where they were asked for.
    prompts: BTreeMap<usize, Vec<PromptToken>>,
    /// Positions behind the text of the choices that have begun, in characters.
    positions: BTreeMap<usize, usize>,
}

impl CompletionStyle {
    pub(crate) fn new(
        opened: Arc<Opened>,
        choices: usize,
        logprobs: Option<usize>,
        echo: Vec<String>,
        prompt_top: Option<usize>,
    ) -> Self {
        let (prompts, positions) = (BTreeMap::new(), BTreeMap::new());
        CompletionStyle { opened, choices, logprobs, echo, prompt_top, prompts, positions }
    }

    /// The prompt's tokens, where they are repeated with their log-probabilities.
    fn echoed_tokens(&self, prompt: usize) -> Vec<Scored> {
        let tokens = self.prompts.get(&prompt).filter(|_| !self.echo.is_empty());
        let top = self.logprobs.unwrap_or(0);
        let scored = |token: &PromptToken| {
            let mut scored = Scored::from(token);
            scored.top.truncate(top);
            scored
        };
        tokens.map_or_else(Vec::new, |tokens| tokens.iter().map(scored).collect())
    }

    fn echoed(&self, prompt: usize) -> &str {
        self.echo.get(prompt).map_or("", String::as_str)
    }

    fn logprobs(&self, tokens: &[Scored], start: usize) -> (Value, usize) {
        match self.logprobs {
            Some(_) => logprobs::completion(tokens, start, &self.opened.tokenizer),
            None => (Value::Null, start),
        }
    }
}

impl Style for CompletionStyle {
    fn names(&self) -> Names {
        Names { id: "cmpl-", whole: "text_completion", chunk: "text_completion" }
    }

    fn prompt(&mut self, prompt: usize, tokens: Vec<PromptToken>) {
        self.prompts.insert(prompt, tokens);
    }

    fn deltas(&mut self, piece: Piece) -> Vec<Value> {
        let (index, reason) = (piece.prompt * self.choices + piece.choice, piece.finish_reason());
        let begun = self.positions.contains_key(&index);
        let before = if begun { "" } else { self.echoed(piece.prompt) };
        let text = format!("{before}{}", piece.text);
        let mut tokens = if begun { Vec::new() } else { self.echoed_tokens(piece.prompt) };
        tokens.extend(piece.token.map(Scored::from));
        if text.is_empty() && reason.is_none() && self.logprobs.is_none() {
            return Vec::new();
        }
        let start = self.positions.get(&index).copied().unwrap_or(0);
        let (logprobs, position) = self.logprobs(&tokens, start);
        self.positions.insert(index, position);
        vec![json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})]
    }

    fn choice(&mut self, index: usize, whole: Whole) -> Value {
        let echoed = self.echoed(whole.prompt);
        let mut tokens = self.echoed_tokens(whole.prompt);
        tokens.extend(whole.tokens);
        let (logprobs, _) = self.logprobs(&tokens, 0);
        let text = format!("{echoed}{}", whole.text);
        let reason = whole.end.as_ref().map(finish_reason);
        let mut choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason});
        if let (Some(top), Some(tokens)) = (self.prompt_top, self.prompts.get(&whole.prompt)) {
            choice["prompt_logprobs"] = logprobs::prompt(tokens, top, &self.opened.tokenizer);
        }
        choice
    }
}
