//! What a completion must spell: JSON, JSON of a schema, calls of tools; as masks over the vocabulary.
//!
//! The work is llguidance's. This module reads what a request asks ([`ResponseFormat`], and tools as
//! [`crate::tools::choice`] reads them), joins it to one grammar ([`Rule`]), and gives the engine a constraint for
//! every completion. End tokens are allowed exactly where the grammar may end, so a completion that ends by itself is
//! whole; one that `max_tokens`, a stop string or the client ends may be cut anywhere. Control tokens and ids that
//! have no text are never allowed.
//!
//! Compiling takes from a tenth of a millisecond to some tens of them, and memory by the schema: callers run it off
//! the threads that serve connections. A mask takes from some microseconds to what `limits` allows, on the step loop's
//! thread. Both are bounded by work that is counted, never by a clock, so the same tokens give the same masks.

pub(crate) mod response_format;

pub(crate) mod rule;

mod schema;

mod vocabulary;

mod follower;

pub(crate) use response_format::ResponseFormat;
pub(crate) use rule::Rule;

use engine::ConstraintFactory;
use follower::Follower;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use model::Tokenizer;
use std::sync::Arc;

/// The compiler's stack: it recurses over a schema's properties and references, of which [`schema::BYTES_MAX`] has
/// room for thousands. The pages that it does not touch cost nothing.
const COMPILE_STACK_BYTES: usize = 256 << 20;

/// Characters of a reason; llguidance repeats what it was given.
const REASON_CHARS_MAX: usize = 300;

/// What llguidance puts before the message of a panic of its own.
const PANIC: &str = "panic:";

/// A model's vocabulary, ready for grammars. Made once per model and shared between threads.
pub(crate) struct Grammars {
    factory: ParserFactory,
    end_tokens: Arc<[u32]>,
}

/// Something of a request that no grammar can be made of: the server answers 400 and names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct GrammarError {
    /// The request's field, as `response_format.json_schema.schema`.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) reason: String,
}

impl GrammarError {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        GrammarError { field: field.into(), reason: reason.into() }
    }
}

impl Grammars {
    /// Reads the vocabulary, which takes up to a second. `vocab_size` is the model's, which may have more ids than the
    /// tokenizer.
    ///
    /// # Errors
    /// Why completions of this model cannot be constrained: it has no end token, or its tokens do not spell text.
    pub(crate) fn new(tokenizer: &Tokenizer, end_tokens: &[u32], vocab_size: usize) -> Result<Self, String> {
        let end_tokens: Vec<u32> = end_tokens.iter().copied().filter(|end| (*end as usize) < vocab_size).collect();
        let environment = vocabulary::environment(tokenizer, &end_tokens, vocab_size)?;
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| reason(&error.to_string()))?;
        *factory.limits_mut() = limits();
        factory.quiet();
        Ok(Grammars { factory, end_tokens: end_tokens.into() })
    }

    /// Compiles what a request asks for; its choices share the compiled grammar and what it has learnt.
    ///
    /// # Errors
    /// A schema has a keyword that is not supported, contradicts itself, or is too large.
    pub(crate) fn compile(&self, rule: &Rule) -> Result<ConstraintFactory, GrammarError> {
        let compiler = std::thread::Builder::new().name("grammar".into()).stack_size(COMPILE_STACK_BYTES);
        let compiled = std::thread::scope(|scope| {
            let thread = compiler.spawn_scoped(scope, || self.compile_here(rule)).map_err(|error| error.to_string())?;
            thread.join().map_err(|_| reason(PANIC))
        });
        compiled.unwrap_or_else(|reason| Err(GrammarError::new(rule.field(), reason)))
    }

    fn compile_here(&self, rule: &Rule) -> Result<ConstraintFactory, GrammarError> {
        let schemas = rule.schemas();
        if 1 < schemas.len() || rule.has_calls() {
            // One by one first, so that an error names the schema that it is about.
            for schema in schemas {
                let alone = GrammarInit::Serialized(TopLevelGrammar::from_json_schema(schema.to_json()));
                alone
                    .to_internal(Some(self.factory.tok_env().clone()), limits())
                    .map_err(|error| GrammarError::new(&schema.field, reason(&error.to_string())))?;
            }
        }
        let parser = self.factory.create_parser(rule.to_grammar());
        let mut matcher =
            Matcher::new(Ok(parser.map_err(|error| GrammarError::new(rule.field(), reason(&error.to_string())))?));
        // What is too large for the first mask is too large for every request.
        let first = matcher.compute_mask_or_eos();
        first.map_err(|error| GrammarError::new(rule.field(), reason(&error.to_string())))?;
        let end_tokens = self.end_tokens.clone();
        Ok(ConstraintFactory::new(move || Box::new(Follower::new(matcher.clone(), end_tokens.clone()))))
    }
}

/// Bounds of one grammar and of one mask.
fn limits() -> ParserLimits {
    ParserLimits {
        // Ways in which a text may be meant at a time.
        max_items_in_row: 2_000,
        // Nodes of regular expressions at the start: at 50,000 a millisecond, 20 ms.
        initial_lexer_fuel: 1_000_000,
        // The same, for one mask: at 14,000 a millisecond, 14 ms.
        step_lexer_fuel: 200_000,
        // Items for one mask: at 20,000 a millisecond, 2.5 ms.
        step_max_items: 50_000,
        // At 1 to 2 KB each, 100 MB for a request, which its choices share.
        max_lexer_states: 50_000,
        // Symbols in productions; a schema of 64 KB takes about a third of it.
        max_grammar_size: 100_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// llguidance's words, without what is for its own developers and with what a client can do.
fn reason(message: &str) -> String {
    const OURS: &[(&str, &str)] = &[
        (PANIC, "it cannot be made a grammar"),
        ("coerce_one_of", "oneOf whose options are not told apart is not supported: use anyOf"),
        ("'referencing' feature", "$ref may point into the schema itself only (#/...)"),
    ];
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("unknown");
    let text = match OURS.iter().find(|(theirs, _)| first.contains(theirs)) {
        Some((_, ours)) => (*ours).to_owned(),
        None if first == "regex parse error:" => {
            format!("a pattern is not supported: {}", lines.next_back().unwrap_or(""))
        }
        None => first.replace("Unimplemented keys: ", "keywords that are not supported: "),
    };
    match text.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod masks_tests;

#[cfg(test)]
mod refusals_tests;

#[cfg(test)]
mod completions_tests;
