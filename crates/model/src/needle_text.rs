//! The text of the bundled model's task: filler sentences with facts hidden in them, and questions about the facts.
//!
//! Every word, digit and punctuation mark is one token, so a document of N tokens is N words. A fact is "the code for
//! the ADJ NOUN is D D D D ." and its question "what is the code for the ADJ NOUN ?"; the filler uses the same
//! adjectives and nouns, so only the exact pair identifies a fact. The model was trained on this text and knows nothing
//! else.

use std::collections::HashSet;

/// Words of a question. The answer is [`ANSWER_DIGITS`] digits and a full stop.
pub const QUESTION_WORDS: usize = 9;

/// Digits of a code.
pub const ANSWER_DIGITS: usize = 4;

/// Places left free at the end of a document of a given size, for the question, the answer and what a sentence
/// overshoots.
const RESERVED_TOKENS: usize = 16;

/// Facts are spread over the size less this, so that the last ones fit.
const SPREAD_MARGIN_TOKENS: usize = 40;

/// One hidden code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Adjective of the thing.
    pub adjective: &'static str,
    /// Noun of the thing.
    pub noun: &'static str,
    /// The code, digits 0 to 9.
    pub digits: [u8; ANSWER_DIGITS],
    /// Index of the fact's first token in its document.
    pub position: usize,
}

impl Fact {
    /// Where the fact lies, 0 (beginning) to 1 (end).
    pub fn depth(&self, document: &Document) -> f64 {
        self.position as f64 / document.words.len() as f64
    }

    /// The code as the model's tokens.
    pub fn answer_ids(&self) -> [u32; ANSWER_DIGITS] {
        self.digits.map(|digit| SPECIAL.len() as u32 + u32::from(digit))
    }

    /// The question about this fact.
    pub fn question(&self) -> [&'static str; QUESTION_WORDS] {
        question(self.adjective, self.noun)
    }
}

/// A text with facts.
#[derive(Clone, Debug)]
pub struct Document {
    /// One word per token; the first is the begin token `<bos>`.
    pub words: Vec<&'static str>,
    /// In order of position; every (adjective, noun) occurs once.
    pub facts: Vec<Fact>,
}

impl Document {
    /// The model's tokens, `<bos>` included.
    pub fn ids(&self) -> Vec<u32> {
        ids(&self.words)
    }

    /// The text for a person or a file: no begin token, a line per sentence. Encoding it gives [`Document::ids`].
    pub fn text(&self) -> String {
        let mut text = String::new();
        for word in self.words.iter().skip(1) {
            text.push_str(word);
            text.push(if *word == "." { '\n' } else { ' ' });
        }
        text
    }
}

/// A document of about `context_tokens` - 16 tokens, so that question and answer still fit, with `facts` facts at
/// random depths; more only if the facts alone need more. The same arguments give the same document on every machine.
/// At most as many facts as there are pairs of an adjective and a noun are placed.
pub fn document(context_tokens: usize, facts: usize, seed: u64) -> Document {
    let mut random = Random::new(seed);
    let facts = facts.min(ADJECTIVES.len() * NOUNS.len());
    let (mut pairs, mut chosen) = (HashSet::new(), Vec::with_capacity(facts));
    while chosen.len() < facts {
        let pair = (random.choice(&ADJECTIVES), random.choice(&NOUNS));
        if pairs.insert(pair) {
            chosen.push(pair);
        }
    }
    let mut starts: Vec<f64> = (0..facts).map(|_| random.unit()).collect();
    starts.sort_by(f64::total_cmp);

    let body = context_tokens.saturating_sub(RESERVED_TOKENS);
    let spread = context_tokens.saturating_sub(SPREAD_MARGIN_TOKENS) as f64;
    let mut document = Document { words: vec![SPECIAL[1]], facts: Vec::with_capacity(facts) };
    loop {
        let placed = document.facts.len();
        let due = placed < facts && starts[placed] * spread <= document.words.len() as f64;
        if due || (placed < facts && body <= document.words.len()) {
            let (adjective, noun) = chosen[placed];
            place(&mut document, adjective, noun, &mut random);
        } else if document.words.len() < body {
            filler_sentence(&mut document.words, &mut random);
        } else {
            return document;
        }
    }
}

/// The question about a thing, one word per token.
pub fn question(adjective: &'static str, noun: &'static str) -> [&'static str; QUESTION_WORDS] {
    ["what", "is", "the", "code", "for", "the", adjective, noun, "?"]
}

/// The tokens of words of this vocabulary; the unknown token for others.
pub fn ids(words: &[&str]) -> Vec<u32> {
    let table: std::collections::HashMap<&str, u32> = vocabulary().into_iter().zip(0..).collect();
    let unknown = SPECIAL.len() as u32 - 1;
    words.iter().map(|word| table.get(word).copied().unwrap_or(unknown)).collect()
}

/// All words in order of their ids, the same as `tokenizer.json`.
pub fn vocabulary() -> Vec<&'static str> {
    let lists: [&[&'static str]; 9] = [&SPECIAL, &DIGITS, &GLUE, &ADJECTIVES, &NOUNS, &VERBS, &NAMES, &PLACES, &TIMES];
    let mut seen = HashSet::new();
    lists.into_iter().flatten().copied().filter(|word| seen.insert(*word)).collect()
}

fn place(document: &mut Document, adjective: &'static str, noun: &'static str, random: &mut Random) {
    let digits = [(); ANSWER_DIGITS].map(|()| random.below(10) as u8);
    let position = document.words.len();
    document.words.extend(["the", "code", "for", "the", adjective, noun, "is"]);
    document.words.extend(digits.map(|digit| DIGITS[usize::from(digit)]));
    document.words.push(".");
    document.facts.push(Fact { adjective, noun, digits, position });
}

fn filler_sentence(words: &mut Vec<&'static str>, random: &mut Random) {
    words.extend([random.choice(&NAMES), random.choice(&VERBS)]);
    thing(words, random);
    let kind = random.unit();
    if kind < 0.4 {
        words.push(random.choice(&PLACES));
        thing(words, random);
    } else if kind < 0.6 {
        words.extend([",", "and", random.choice(&NAMES), random.choice(&VERBS)]);
        thing(words, random);
    }
    if random.unit() < 0.4 {
        words.push(random.choice(&TIMES));
    }
    words.push(".");
}

fn thing(words: &mut Vec<&'static str>, random: &mut Random) {
    words.push("the");
    if random.unit() < 0.6 {
        words.push(random.choice(&ADJECTIVES));
    }
    words.push(random.choice(&NOUNS));
}

/// SplitMix64: small, seedable, the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number in 0..`bound`; the bias of the multiplication is below 2^-50 for the bounds used here.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// A number in 0.0..1.0.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn choice(&mut self, list: &[&'static str]) -> &'static str {
        list[self.below(list.len())]
    }
}

/// Control tokens, in order of their ids.
#[rustfmt::skip]
pub const SPECIAL: [&str; 4] = [
    "<pad>", "<bos>", "<eos>", "<unk>",
];

/// Digits.
#[rustfmt::skip]
pub const DIGITS: [&str; 10] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9",
];

/// Small words and punctuation.
#[rustfmt::skip]
pub const GLUE: [&str; 20] = [
    "the", "code", "for", "is", "what", "?", ".", ",", "and", "a", "an", "of", "in", "on", "with", "it", "was",
    "were", "then", "while",
];

/// Adjectives.
#[rustfmt::skip]
pub const ADJECTIVES: [&str; 145] = [
    "amber", "ancient", "brave", "bright", "broken", "calm", "careful", "cheerful", "clever", "cloudy", "cold",
    "copper", "coral", "crimson", "crooked", "curious", "damp", "dark", "distant", "dusty", "eager", "early",
    "elder", "emerald", "empty", "faded", "faint", "fancy", "fierce", "flat", "foggy", "fragile", "frozen", "gentle",
    "giant", "gilded", "glad", "golden", "grand", "gray", "green", "hasty", "heavy", "hidden", "hollow", "honest",
    "humble", "icy", "idle", "indigo", "iron", "ivory", "jolly", "keen", "kind", "large", "late", "lazy", "light",
    "little", "lively", "lonely", "loud", "lucky", "marble", "mellow", "mighty", "misty", "modest", "muddy",
    "narrow", "neat", "noble", "north", "odd", "old", "olive", "open", "orange", "pale", "patient", "plain",
    "polite", "proud", "purple", "quick", "quiet", "rapid", "rare", "red", "rich", "rough", "round", "royal",
    "rusty", "sandy", "scarlet", "secret", "shady", "sharp", "shiny", "short", "silent", "silver", "simple",
    "sleepy", "slender", "slow", "small", "smooth", "snowy", "soft", "solar", "solid", "south", "spare", "steady",
    "steep", "stony", "strange", "strong", "sudden", "sunny", "sweet", "swift", "tall", "tame", "teal", "tender",
    "thin", "timid", "tiny", "tired", "topaz", "velvet", "violet", "warm", "weary", "wide", "wild", "windy", "wise",
    "wooden", "yellow", "young",
];

/// Nouns.
#[rustfmt::skip]
pub const NOUNS: [&str; 186] = [
    "acorn", "anchor", "anvil", "apple", "apron", "arrow", "badger", "barley", "barn", "barrel", "basket", "beacon",
    "bell", "bench", "bird", "blanket", "boat", "bottle", "boulder", "bridge", "bucket", "button", "cabin", "cactus",
    "camel", "candle", "canoe", "canyon", "castle", "cedar", "cellar", "chapel", "chestnut", "circle", "clock",
    "cloud", "clover", "coat", "comet", "compass", "cottage", "cradle", "crane", "crown", "crystal", "desert",
    "diamond", "dove", "dragon", "drum", "eagle", "ember", "engine", "falcon", "farm", "feather", "fern", "ferry",
    "fiddle", "field", "flute", "forest", "fountain", "fox", "garden", "gate", "glacier", "glove", "goose", "grove",
    "hammer", "harbor", "harp", "hawk", "hedge", "helmet", "heron", "hill", "island", "jacket", "jewel", "kettle",
    "key", "kite", "ladder", "lagoon", "lake", "lamp", "lantern", "lark", "leaf", "lemon", "letter", "lighthouse",
    "lily", "lion", "lizard", "maple", "market", "meadow", "mill", "mirror", "moon", "mountain", "needle", "nest",
    "oak", "ocean", "orchard", "otter", "owl", "paddle", "palace", "panther", "parcel", "path", "pebble", "pepper",
    "piano", "pigeon", "pillow", "pine", "planet", "pocket", "pond", "puzzle", "quarry", "quilt", "rabbit", "raven",
    "ribbon", "ring", "river", "road", "robin", "rocket", "rope", "rose", "saddle", "sail", "salmon", "scarf", "sea",
    "shell", "ship", "shovel", "sparrow", "spider", "spoon", "spring", "squirrel", "stable", "star", "statue",
    "stone", "storm", "stove", "stream", "summit", "sword", "table", "tent", "thistle", "thunder", "tiger", "timber",
    "torch", "tower", "train", "tulip", "tunnel", "turtle", "valley", "vase", "village", "violin", "wagon", "walnut",
    "wharf", "wheel", "whistle", "willow", "window", "wolf", "wren", "yacht",
];

/// Verbs.
#[rustfmt::skip]
pub const VERBS: [&str; 68] = [
    "admired", "borrowed", "bought", "broke", "brought", "built", "buried", "carried", "caught", "chased", "cleaned",
    "climbed", "collected", "counted", "covered", "crossed", "described", "discovered", "drew", "dropped", "entered",
    "examined", "fixed", "followed", "forgot", "found", "guarded", "heard", "hid", "ignored", "inspected", "joined",
    "kept", "left", "lifted", "lost", "loved", "measured", "mended", "moved", "noticed", "opened", "owned",
    "painted", "passed", "photographed", "planted", "polished", "praised", "protected", "pulled", "pushed", "raised",
    "reached", "remembered", "removed", "repaired", "returned", "sketched", "sold", "studied", "touched", "traded",
    "visited", "washed", "watched", "weighed", "wrapped",
];

/// Names.
#[rustfmt::skip]
pub const NAMES: [&str; 55] = [
    "alice", "anton", "bella", "boris", "carla", "cedric", "clara", "daniel", "diana", "edgar", "elena", "felix",
    "fiona", "george", "greta", "harold", "helen", "hugo", "irene", "ivan", "james", "julia", "karl", "laura",
    "leon", "lydia", "marcus", "maria", "martin", "nadia", "nolan", "oliver", "oscar", "paula", "peter", "petra",
    "quentin", "rachel", "robert", "rosa", "samuel", "sarah", "simon", "sophie", "stefan", "teresa", "thomas",
    "ursula", "victor", "vera", "walter", "wendy", "xavier", "yvonne", "zelda",
];

/// Words of place.
#[rustfmt::skip]
pub const PLACES: [&str; 9] = [
    "above", "behind", "below", "beside", "beyond", "inside", "near", "outside", "under",
];

/// Words of time.
#[rustfmt::skip]
pub const TIMES: [&str; 19] = [
    "again", "alone", "already", "always", "before", "daily", "lately", "later", "maybe", "never", "often", "once",
    "quietly", "slowly", "soon", "today", "together", "twice", "yesterday",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_its_size_and_its_facts() {
        for (size, facts, seed) in [(1024, 25, 0), (4096, 102, 1), (32_768, 400, 2), (64, 0, 3), (10, 3, 4)] {
            let document = document(size, facts, seed);
            assert_eq!(document.facts.len(), facts);
            // a sentence has at most 14 words, and facts may come last
            let room = if size < 100 { 12 * facts + 14 } else { 28 };
            assert!(size - RESERVED_TOKENS.min(size) <= document.words.len(), "{size}");
            assert!(
                document.words.len() <= size - RESERVED_TOKENS.min(size) + room,
                "{size}: {}",
                document.words.len()
            );
            for fact in &document.facts {
                let words = &document.words[fact.position..fact.position + 12];
                let code: Vec<&str> = fact.digits.iter().map(|digit| DIGITS[usize::from(*digit)]).collect();
                assert_eq!(&words[4..7], [fact.adjective, fact.noun, "is"]);
                assert_eq!(words[7..11], code);
            }
        }
    }

    #[test]
    fn a_seed_is_a_document() {
        let text = document(120, 1, 7).text();
        assert_eq!(text, document(120, 1, 7).text());
        assert_ne!(text, document(120, 1, 8).text());
    }
}
