//! What a server is told, and the bounds of what a request may ask for.

use engine::Attention;
use sparse::Specs;
use std::time::Duration;

/// Resolved settings; immutable from the start on.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Names under which the model answers; the first is the one in responses.
    pub names: Vec<String>,
    /// Keys of which a request must carry one; empty lets everybody in.
    pub api_keys: Vec<String>,
    /// Longest sequence, for messages and listings; the engine holds the limit itself.
    pub max_model_len: usize,
    /// Every algorithm of the model with the selection that its requests get, by `AlgorithmId`.
    pub attentions: Vec<Attention>,
    /// Which of them a request gets that does not say.
    pub default_attention: usize,
    /// Their names.
    pub specs: Specs,
    /// Requests that may wait, and sequences that may run: prompts beyond both can never be taken together.
    pub max_queue: usize,
    /// See `max_queue`.
    pub max_lanes: usize,
    /// How long running streams may go on after the order to stop.
    pub drain: Duration,
}

/// Bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// Bytes of all bodies that arrive or wait to be read at a time; further ones wait.
pub const BODIES_BYTES_MAX: usize = 128 << 20;

/// Bytes of a too large body that are read and thrown away, so that its sender sees the answer.
pub const DISCARDED_BYTES_MAX: usize = 64 << 20;

/// Seconds that a body may take to arrive.
pub const BODY_SECONDS_MAX: u64 = 60;

/// Seconds that a request's head may take to arrive.
pub const HEAD_SECONDS_MAX: u64 = 10;

/// Seconds that a client may take no byte of what is ready for it.
pub const STALL_SECONDS_MAX: u64 = 30;

/// Open connections; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;

/// Bodies that are parsed and tokenised or wait for it.
pub const PREPARING_MAX: usize = 256;

/// Seconds between two comments to a client that waits for its first token.
pub const COMMENT_SECONDS: u64 = 5;

/// Tokens of an answer where the request does not say.
pub const MAX_TOKENS_DEFAULT: usize = 1024;

/// Prompts of one completion request.
pub const PROMPTS_MAX: usize = 128;

/// Messages of one chat request.
pub const MESSAGES_MAX: usize = 4096;

/// Completions of one prompt.
pub const CHOICES_MAX: u64 = 128;

/// Most likely tokens that are reported for each token.
pub const TOP_LOGPROBS_MAX: u64 = 20;

/// Log-probabilities that one response may hold: prompts x completions x max_tokens x (1 + alternatives), and the
/// prompts' own alike.
pub const LOGPROBS_MAX: usize = 1 << 20;

/// Stop strings.
pub const STOP_MAX: usize = 16;

/// Bytes of a stop string.
pub const STOP_BYTES_MAX: usize = 1024;

/// Stop tokens.
pub const STOP_TOKENS_MAX: usize = 256;

/// Entries of `logit_bias`.
pub const LOGIT_BIAS_MAX: usize = 1024;

/// The largest count that a request may name where nothing else bounds it.
pub const COUNT_MAX: u64 = 1 << 31;
