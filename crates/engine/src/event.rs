//! What the engine tells a request's reader.

use crate::RequestId;
use backend::AlgorithmId;
use kv::selection::AllExact;
use kv::{SequenceId, TokenId};
use std::fmt;

/// One thing that happened to a request. Every choice ends with exactly one `Finished`, or the request with `Refused`
/// or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request waits or runs; the first event of a request that was not refused.
    Accepted {
        /// Its number.
        request: RequestId,
    },
    /// The request was not taken: its only event, or, behind `Accepted`, the end of its wait for rows.
    Refused(Box<crate::Refusal>),
    /// The prompt's progress, in tokens; at most a hundred of these.
    Prefill {
        /// Tokens done (work done, counted in tokens).
        done: usize,
        /// Tokens to prefill.
        total: usize,
    },
    /// Every token of the prompt, where [`crate::Request::prompt_logprobs`] asks for them: once, before the first
    /// `Token` or `Finished` of a request that is read to its end.
    PromptLogprobs(Vec<PromptToken>),
    /// A completion grew by a token.
    Token(Box<TokenEvent>),
    /// A finished sequence keeps its rows and can be forked.
    Held {
        /// Which completion.
        choice: u32,
        /// The parent to name in forks.
        sequence: SequenceId,
        /// Tokens with K and V in rows: a fork's tokens continue behind them.
        tokens: usize,
    },
    /// A completion ended.
    Finished(Box<Finished>),
    /// The engine could not go on; nothing follows.
    Failed(String),
}

/// A token of the prompt, as the model expected it: no penalty, bias or mask is in these numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    /// The token.
    pub token: TokenId,
    /// Its log-probability; `None` for the prompt's first token, before which there is nothing.
    pub logprob: Option<f32>,
    /// 1 for the most likely token, ties by id; `None` for the prompt's first.
    pub rank: Option<u32>,
    /// The most likely tokens in its place, as many as were asked for; none for the prompt's first.
    pub top: Vec<(TokenId, f32)>,
}

/// A completion's next token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// Which completion.
    pub choice: u32,
    /// Chosen or forced.
    pub token: TokenId,
    /// Its log-probability; `None` for a forced token that no step computed (the first behind a prefill).
    pub logprob: Option<f32>,
    /// The most likely tokens and their log-probabilities.
    pub top: Vec<(TokenId, f32)>,
    /// Text that became certain with this token: maybe none, maybe held back from earlier tokens.
    pub text: String,
    /// Tokens that the step attended exactly; `None` for the first token behind a prefill.
    pub exact_tokens: Option<usize>,
    /// Share of dense attention that the exact tokens held, where it was asked for.
    pub attention_mass: Option<f32>,
}

/// How a completion ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Which completion.
    pub choice: u32,
    /// Why.
    pub reason: FinishReason,
    /// What went wrong, where something of its own did: [`AbortReason::Constraint`].
    pub error: Option<String>,
    /// The rest of its text, which might have become a stop string.
    pub text: String,
    /// Tokens counted.
    pub usage: Usage,
    /// What ran.
    pub attention: AttentionUsed,
    /// How long it took.
    pub timings: Timings,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose an end token or a stop token.
    Stop,
    /// Its text came to a stop string.
    StopString,
    /// It has `max_tokens` tokens, or the model's context is full.
    Length,
    /// It was ended from outside.
    Aborted(AbortReason),
}

/// Who ended a completion early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortReason {
    /// The caller: aborted, or nobody reads any more.
    Caller,
    /// `EVENTS_MAX` events were not read.
    SlowReader,
    /// It waited to fork from a sequence that was released.
    ParentReleased,
    /// Its constraint, which failed or left no token to choose; [`Finished::error`] has the text. The request's other
    /// completions go on.
    Constraint,
    /// The engine shuts down.
    Shutdown,
}

/// Tokens of one completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, the parent's included.
    pub prompt_tokens: usize,
    /// Of those, tokens that were not read again: their K and V came from a parent or out of the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated, forced ones and the end token included.
    pub completion_tokens: usize,
}

/// What ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionUsed {
    /// The algorithm.
    pub algorithm: AlgorithmId,
    /// Its name.
    pub name: &'static str,
    /// Share of the pages that a step selects.
    pub budget: f64,
    /// Tokens that the last step attended exactly; the prompt's where no decode step ran.
    pub exact_tokens: usize,
    /// Tokens that the last step could see; the prompt's where no decode step ran.
    pub context_tokens: usize,
    /// Bytes of K, V and summaries that the last decode step read, over all layers and KV heads (what measuring the
    /// mass reads besides is not counted); 0 where none ran. Dense attention reads `context_tokens` tokens' K and V.
    pub kv_bytes: u64,
    /// How the last step attended.
    pub attended: Attended,
    /// Mean share of dense attention covered, where it was measured.
    pub attention_mass: Option<f32>,
}

/// How a completion's last step attended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attended {
    /// Nothing ran: it ended in the queue.
    Nothing,
    /// Prefill alone ran, which is dense: no decode step.
    Prompt,
    /// Every token, and why.
    All(AllExact),
    /// The pages that the algorithm selected, beside sink and window.
    Pages,
}

impl fmt::Display for AttentionUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, percent, tokens) = (self.name, self.budget * 100.0, self.context_tokens);
        match self.attended {
            Attended::Nothing => write!(f, "nothing ran"),
            Attended::Prompt => write!(f, "dense: only the prompt was read ({tokens} tokens)"),
            Attended::All(_) if name == "dense" => write!(f, "dense ({tokens} tokens)"),
            Attended::All(AllExact::BelowMinContext) => write!(f, "dense: below min-context ({tokens} tokens)"),
            Attended::All(AllExact::Covered) => write!(f, "dense: sink and window hold all {tokens} tokens"),
            Attended::Pages => write!(f, "{name} at {percent:.2} %: {} of {tokens} tokens exact", self.exact_tokens),
        }
    }
}

/// Where a completion's time went, in seconds, measured by the engine.
///
/// ```text
/// submitted   admitted        started       ended
///     |-queued---|----prefill----|---decode---|      decode_steps / decode = tokens a second
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From its submission to its admission.
    pub queued: f64,
    /// From its admission to its first decode step, or to its end where none ran.
    pub prefill: f64,
    /// From the start of the first decode step that included it to the end of the last; 0 where none ran.
    pub decode: f64,
    /// Decode steps that ran for it, those of fed and forced tokens included.
    pub decode_steps: usize,
    /// Start of its first decode step on the engine's clock, which all completions share: a batch took from the first
    /// `started` to the last `ended`.
    pub started: f64,
    /// End of its last decode step on the engine's clock.
    pub ended: f64,
}
