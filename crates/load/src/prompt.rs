//! What a prompt says: random token ids, or words.
//!
//! ```text
//! prompt  0        shared        shared + 4 words        prompt_tokens
//!         |-- group's own --|-- of this request alone ----|
//! ```
//!
//! Two prompts share what their group shares and nothing else, so that a server's prefix cache neither helps nor hurts
//! where nobody asked for it.

use crate::random::Random;
use crate::words::WORDS;
use serde::Serialize;
use std::sync::Arc;

/// How prompts are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// Token ids: lengths are exact, and the server must take ids.
    Ids,
    /// Words: lengths are as exact as the number of tokens per word is.
    Text,
}

/// Words at the start of every text that are drawn, so that passages of a file do not start alike.
const DRAWN_WORDS: usize = 4;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Ids(Vec<u32>),
    Text(String),
}

/// Where prompts come from.
#[derive(Clone, Debug)]
pub(crate) enum PromptSource {
    /// Ids below `vocab`.
    Ids { vocab: u32 },
    /// Words, so many that they make the tokens asked for.
    Text { words: WordSource, tokens_per_word: f64 },
}

/// Where words come from.
#[derive(Clone, Debug)]
pub(crate) enum WordSource {
    /// Drawn from our list.
    List,
    /// Passages of a file, each from a place of its own; never empty.
    File(Arc<[String]>),
}

impl PromptSource {
    /// A prompt of `shared_tokens` from the group's stream, then of this request's own.
    pub(crate) fn prompt(&self, tokens: usize, shared_tokens: usize, group: Random, own: Random) -> Prompt {
        // At least one token is the request's own: a prompt that is another's as a whole measures the cache alone.
        let shared = shared_tokens.min(tokens - 1);
        match self {
            PromptSource::Ids { vocab } => {
                let draw = |mut random: Random, count| {
                    std::iter::repeat_with(move || random.below(u64::from(*vocab)) as u32).take(count)
                };
                Prompt::Ids(draw(group, shared).chain(draw(own, tokens - shared)).collect())
            }
            PromptSource::Text { words, tokens_per_word } => {
                let count = |tokens: usize| (tokens as f64 / tokens_per_word).round() as usize;
                let (shared, all) = (count(shared), count(tokens).max(1));
                let mut text = words.words(shared, group);
                text.extend(words.words(all.saturating_sub(shared).max(1), own));
                Prompt::Text(text.join(" "))
            }
        }
    }
}

impl WordSource {
    /// A passage of so many words.
    pub(crate) fn words(&self, count: usize, mut random: Random) -> Vec<&str> {
        let mut draw = |count| {
            std::iter::repeat_with(|| WORDS[random.below(WORDS.len() as u64) as usize]).take(count).collect::<Vec<_>>()
        };
        match self {
            WordSource::List => draw(count),
            WordSource::File(file) => {
                let mut words = draw(DRAWN_WORDS.min(count));
                let start = random.below(file.len() as u64) as usize;
                let rest = count - words.len();
                words.extend(file.iter().map(String::as_str).cycle().skip(start).take(rest));
                words
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(group: u64, own: u64) -> (Random, Random) {
        (Random::new(&[0, group]), Random::new(&[1, own]))
    }

    fn ids(tokens: usize, shared: usize, group: u64, own: u64) -> Vec<u32> {
        let (group, own) = streams(group, own);
        match (PromptSource::Ids { vocab: 500 }).prompt(tokens, shared, group, own) {
            Prompt::Ids(ids) => ids,
            Prompt::Text(text) => panic!("{text}"),
        }
    }

    fn text(source: &PromptSource, tokens: usize, shared: usize, own: u64) -> String {
        let (group, own) = streams(0, own);
        match source.prompt(tokens, shared, group, own) {
            Prompt::Text(text) => text,
            Prompt::Ids(ids) => panic!("{ids:?}"),
        }
    }

    #[test]
    fn prompts_of_a_group_share_what_they_should_and_no_more() {
        let (a, b, c) = (ids(100, 40, 0, 1), ids(60, 40, 0, 2), ids(100, 40, 1, 1));
        assert_eq!((a.len(), b.len(), c.len()), (100, 60, 100));
        assert!(a.iter().all(|id| *id < 500));
        assert_eq!(a[..40], b[..40]);
        assert_ne!(a[40..48], b[40..48]);
        assert_ne!(a[..8], c[..8]);
        assert_ne!(ids(10, 10, 0, 1), ids(10, 10, 0, 5), "one token is its own");
        assert_eq!(ids(1, 40, 0, 1).len(), 1);
    }

    #[test]
    fn text_has_the_words_that_its_tokens_take() {
        let source = PromptSource::Text { words: WordSource::List, tokens_per_word: 1.5 };
        let (a, b) = (text(&source, 150, 60, 1), text(&source, 150, 60, 2));
        assert_eq!(a.split(' ').count(), 100);
        let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        assert_eq!(words(&a)[..40], words(&b)[..40]);
        assert_ne!(words(&a)[40..48], words(&b)[40..48]);
        assert_eq!(text(&source, 1, 60, 1).split(' ').count(), 1);
    }

    #[test]
    fn passages_of_a_file_begin_with_words_of_their_own() {
        let file: Arc<[String]> = (0..50).map(|i| format!("w{i}")).collect();
        let source = PromptSource::Text { words: WordSource::File(file), tokens_per_word: 1.0 };
        let a = text(&source, 120, 0, 1);
        let words: Vec<&str> = a.split(' ').collect();
        assert_eq!(words.len(), 120);
        assert!(words[..4].iter().all(|word| WORDS.contains(word)));
        assert!(words[4..].iter().all(|word| word.starts_with('w')), "{a}");
        assert_eq!(words[4], words[54], "the file starts again at its end");
        assert_ne!(a, text(&source, 120, 0, 2));
    }
}
