//! The object `usage`: tokens counted, and what attention ran.

use engine::{AttentionUsed, Finished};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Sums over the completions of a response.
#[derive(Debug, Default)]
pub(crate) struct UsageSum {
    /// By prompt: its tokens, and of those the cached ones. Completions share them.
    prompts: BTreeMap<usize, (usize, usize)>,
    completion_tokens: usize,
    attention: Option<AttentionUsed>,
}

impl UsageSum {
    /// A completion of the prompt number `prompt` has ended.
    pub(crate) fn add(&mut self, prompt: usize, finished: &Finished) {
        let usage = finished.usage;
        self.prompts.entry(prompt).or_insert((usage.prompt_tokens, usage.cached_tokens));
        self.completion_tokens += usage.completion_tokens;
        self.attention = Some(finished.attention);
    }

    /// OpenAI's object, and `attention`: what the last completion's last step did.
    pub(crate) fn to_json(&self) -> Value {
        let prompt_tokens: usize = self.prompts.values().map(|(tokens, _)| tokens).sum();
        let cached_tokens: usize = self.prompts.values().map(|(_, cached)| cached).sum();
        let attention = self.attention.map(|used| {
            json!({
                "algorithm": used.name, "budget": used.budget, "exact_tokens": used.exact_tokens,
                "context_tokens": used.context_tokens, "kv_bytes": used.kv_bytes, "ran": used.to_string(),
            })
        });
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
            "attention": attention,
        })
    }
}
