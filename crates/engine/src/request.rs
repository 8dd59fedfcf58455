//! What a caller asks of the engine, and why it may be refused.

use crate::ConstraintFactory;
use backend::{AlgorithmId, Sampling};
use kv::{Selection, SequenceId, TokenId};
use std::fmt;

/// One request; never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// Where a request's tokens begin.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A prompt of its own.
    Prompt(Vec<TokenId>),
    /// The rows of a held sequence, and tokens that continue behind the ones it has K and V of.
    Fork {
        /// The held sequence.
        parent: SequenceId,
        /// What follows; at least one token.
        tokens: Vec<TokenId>,
        /// Prefill the tokens densely as a suffix, or feed them one decode step each under the request's attention.
        feed: Feed,
    },
}

/// How a fork's tokens reach the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// As a prompt's suffix; its prefix is gathered from the parent's rows.
    Prefill,
    /// The first is the lane's first input, the others are forced outputs of the steps before them (evaluation).
    Decode,
}

/// The algorithm that decodes, and what it selects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Which algorithm.
    pub algorithm: AlgorithmId,
    /// Which pages a step selects.
    pub selection: Selection,
}

/// One or more completions of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its tokens.
    pub source: Source,
    /// How it decodes.
    pub attention: Attention,
    /// How its tokens are chosen; choice `i` draws with `i` added to `Sampling::choice`.
    pub sampling: Sampling,
    /// Tokens of a completion at most; 0 prefills only. Lowered to what `max_model_len` leaves.
    pub max_tokens: usize,
    /// Completions, which share the prompt's rows.
    pub choices: usize,
    /// Texts that end a completion of at least `Sampling::min_tokens` tokens and are not part of it.
    pub stop_strings: Vec<String>,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<TokenId>,
    /// The model's own end tokens.
    pub end_tokens: Vec<TokenId>,
    /// Whether `end_tokens` are tokens like any other.
    pub ignore_eos: bool,
    /// The completion's first tokens, given instead of chosen.
    pub forced: Vec<TokenId>,
    /// What the tokens of each completion must follow; forced ones are told to it and not checked.
    pub constraint: Option<ConstraintFactory>,
    /// Log-probabilities of the prompt's own tokens, and of so many most likely ones in each one's place, up to
    /// [`crate::PROMPT_LOGPROBS_MAX`]. Such a prompt is read from its first token and takes longer; not for forks.
    pub prompt_logprobs: Option<usize>,
    /// Whether the sequences' rows stay when they are finished, until released: parents of forks.
    pub hold: bool,
    /// Whether its prompt may begin with rows of the prefix cache, and stays in it. Off where prefill is measured.
    pub cache: bool,
    /// Whether the share of dense attention that the exact tokens hold is measured.
    pub measure_mass: bool,
    /// Whether special tokens have no text; without it they appear as the vocabulary spells them.
    pub skip_special: bool,
    /// Whether the completion's text goes on with the prompt's, so that a space between the two is part of it; an
    /// answer in a chat begins a text of its own.
    pub joins_prompt: bool,
}

impl Request {
    /// A greedy completion of up to `max_tokens` tokens.
    pub fn new(source: Source, attention: Attention, max_tokens: usize) -> Self {
        Request {
            source,
            attention,
            sampling: Sampling::default(),
            max_tokens,
            choices: 1,
            stop_strings: Vec::new(),
            stop_tokens: Vec::new(),
            end_tokens: Vec::new(),
            ignore_eos: false,
            forced: Vec::new(),
            constraint: None,
            prompt_logprobs: None,
            hold: false,
            cache: true,
            measure_mass: false,
            skip_special: true,
            joins_prompt: false,
        }
    }

    /// Every token that the caller names, by the list that it is in. End tokens are the model's own and only compared.
    pub(crate) fn named_tokens(&self) -> impl Iterator<Item = (&'static str, TokenId)> {
        let of = |field, tokens: &[TokenId]| tokens.iter().map(move |&token| (field, token)).collect::<Vec<_>>();
        let biased = self.sampling.logit_bias.iter().map(|&(token, _)| ("logit_bias", token));
        let given = [of("the prompt", self.tokens()), of("forced", &self.forced), of("stop_tokens", &self.stop_tokens)];
        given.into_iter().flatten().chain(biased).chain(of("suppressed", &self.sampling.suppressed))
    }

    /// The tokens that the request brings, without a parent's.
    pub fn tokens(&self) -> &[TokenId] {
        match &self.source {
            Source::Prompt(tokens) | Source::Fork { tokens, .. } => tokens,
        }
    }

    /// The sequence it forks from.
    pub fn parent(&self) -> Option<SequenceId> {
        match self.source {
            Source::Prompt(_) => None,
            Source::Fork { parent, .. } => Some(parent),
        }
    }

    /// Whether its tokens are fed by decode steps.
    pub fn feeds_by_decode(&self) -> bool {
        matches!(self.source, Source::Fork { feed: Feed::Decode, .. })
    }

    /// Tokens that decode steps feed.
    pub(crate) fn fed_tokens(&self) -> usize {
        if self.feeds_by_decode() { self.tokens().len() } else { 0 }
    }

    /// Whether it decodes at all.
    pub fn decodes(&self) -> bool {
        0 < self.max_tokens || self.feeds_by_decode()
    }

    /// Whether `token` ends a completion.
    pub fn is_stop(&self, token: TokenId) -> bool {
        self.stop_tokens.contains(&token) || !self.ignore_eos && self.end_tokens.contains(&token)
    }
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Too many tokens.
    #[error(
        "the prompt has {prompt_tokens} tokens and a sequence may have {max_model_len}, completion included: shorten \
         the prompt or raise --max-model-len"
    )]
    PromptTooLong {
        /// Of the request, its parent's included.
        prompt_tokens: usize,
        /// The limit.
        max_model_len: usize,
    },
    /// More rows than there are.
    #[error(
        "the request needs {wanted_rows} rows of KV memory ({} MiB) and the pool has {pool_rows} ({} MiB): raise \
         --kv-memory, or ask for fewer tokens or choices",
        mib(*wanted_rows, *row_bytes), mib(*pool_rows, *row_bytes)
    )]
    NeverFits {
        /// Rows that it would reserve.
        wanted_rows: usize,
        /// Rows of the pool.
        pool_rows: usize,
        /// Bytes of a row.
        row_bytes: u64,
    },
    /// More rows of host memory than there are.
    #[error(
        "the request needs {wanted_rows} rows of host memory ({} MiB) and there are {dram_rows} ({} MiB): raise \
         --host-memory, or ask for fewer tokens or choices",
        mib(*wanted_rows, *row_bytes), mib(*dram_rows, *row_bytes)
    )]
    NeverFitsDram {
        /// Rows that it would reserve.
        wanted_rows: usize,
        /// Rows of host memory.
        dram_rows: usize,
        /// Bytes of a row.
        row_bytes: u64,
    },
    /// Room that nobody else will make: all others have ended, and what is held leaves too little.
    #[error(
        "the request needs {wanted_rows} rows of KV memory ({} MiB) and held sequences occupy {held_rows} of the \
         pool's {pool_rows} ({} of {} MiB): release held sequences or raise --kv-memory",
        mib(*wanted_rows, *row_bytes), mib(*held_rows, *row_bytes), mib(*pool_rows, *row_bytes)
    )]
    HeldRows {
        /// Rows that it would reserve.
        wanted_rows: usize,
        /// Rows of held sequences.
        held_rows: usize,
        /// Rows of the pool.
        pool_rows: usize,
        /// Bytes of a row.
        row_bytes: u64,
    },
    /// More completions than lanes.
    #[error("{choices} choices were asked for and at most {max_lanes} sequences decode at once: raise --max-lanes")]
    TooManyChoices {
        /// Asked for.
        choices: usize,
        /// The limit.
        max_lanes: usize,
    },
    /// The queue is at its bound.
    #[error("{max_queue} requests wait already; try again later")]
    QueueFull {
        /// The bound.
        max_queue: usize,
    },
    /// The parent is not held (any more).
    #[error("sequence {parent} is not held: only a held sequence can be forked")]
    UnknownParent {
        /// As asked.
        parent: SequenceId,
    },
    /// A token that the model does not know.
    #[error("{field} has token {token} and the model's vocabulary has {vocab} tokens, from 0 to {}", vocab - 1)]
    UnknownToken {
        /// Which of the request's lists.
        field: &'static str,
        /// The token.
        token: TokenId,
        /// Tokens of the vocabulary.
        vocab: usize,
    },
    /// Something that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No engine.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
}

fn mib(rows: usize, row_bytes: u64) -> u64 {
    (rows as u64 * row_bytes).div_ceil(1 << 20)
}
