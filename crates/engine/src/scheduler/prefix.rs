//! The prefix cache: prompts that were read, whose rows stay until others need them.
//!
//! A prompt is kept when its prefill ends, in whole pages, by references of the cache's own: its sequence runs, ends or
//! is aborted without regard to it, and a prompt that begins alike shares the rows from then on. What decode steps made
//! is never kept: its K and V may be those of sparse attention, and are not prefill's to the bit.
//!
//! ```text
//! prompt   0        8        16       24    29          completion
//!          |--page--|--page--|--page--|-----|- - - - - - - -
//!          |---------- kept ----------|-- not kept --
//! ```
//!
//! Prefixes are sorted by their tokens, and none begins with all of another: so the one that shares most with a prompt
//! is one of the two neighbours of the prompt's place, and the one that a new prefix covers is its neighbour too. A
//! search compares the prompt with eight prefixes, no hashes, and cannot take one text for another.

use kv::{Indexing, KeptPrefix, PAGE_TOKENS, Reservation, Residence, Rows, SequenceKv, Shortage, Tiers, TokenId};

/// Prefixes that are kept at most; beyond, the least recently used goes.
pub(crate) const PREFIXES_MAX: usize = 128;

/// What is kept of prompts that were read.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    /// Ascending by tokens, and none is the beginning of another.
    prefixes: Vec<Prefix>,
    /// Counts `keep` and `share`: the clock of `Prefix::used`.
    uses: u64,
    /// Tokens let go for others since the start.
    evicted_tokens: u64,
}

/// One kept prompt.
#[derive(Debug)]
struct Prefix {
    /// Whole pages; shrinks by `evict`.
    tokens: Vec<TokenId>,
    /// Rows of as many tokens.
    kept: KeptPrefix,
    /// When it was last kept or shared.
    used: u64,
}

impl PrefixCache {
    /// The rows that a prompt begins with: the most whole pages that a kept one has too, without the prompt's last
    /// token, whose hidden state is wanted. Nothing is promised yet.
    pub(super) fn share(&mut self, prompt: &[TokenId], indexing: Option<Indexing>, tiers: &mut Tiers) -> SequenceKv {
        let readable = &prompt[..prompt.len() - 1];
        let place = self.place(readable);
        let neighbours = place.saturating_sub(1)..self.prefixes.len().min(place + 1);
        let shared = |at: &usize| common_pages(readable, &self.prefixes[*at].tokens);
        match neighbours.max_by_key(shared).map(|at| (at, shared(&at))) {
            Some((at, pages)) if 0 < pages => {
                self.uses += 1;
                self.prefixes[at].used = self.uses;
                SequenceKv::behind(&self.prefixes[at].kept, pages * PAGE_TOKENS, indexing, tiers)
            }
            _ => SequenceKv::new(Residence::Full, indexing),
        }
    }

    /// Keeps the whole pages of a prompt that `sequence` has read.
    pub(super) fn keep(&mut self, prompt: &[TokenId], sequence: &SequenceKv, rows: &mut Rows) {
        let tokens = prompt[..prompt.len() / PAGE_TOKENS * PAGE_TOKENS].to_vec();
        if tokens.is_empty() {
            return;
        }
        self.uses += 1;
        let kept = KeptPrefix::of(sequence, tokens.len(), rows);
        self.insert(Prefix { tokens, kept, used: self.uses }, rows);
        if PREFIXES_MAX < self.prefixes.len() {
            let oldest = self.first_by(|prefix| prefix.used);
            self.cut(oldest, 0, rows);
        }
    }

    /// Promises rows, spare ones included: the last pages of the least recently used prefix go first. Where all of them
    /// would not be enough, all of them stay.
    pub(super) fn reserve(&mut self, wanted: usize, rows: &mut Rows) -> Result<Reservation, Shortage> {
        if wanted <= rows.available() + rows.spare() {
            while rows.available() < wanted {
                // A prefix that a sequence reads to its end frees nothing.
                let oldest = self.first_by(|prefix| (!prefix.kept.has_spare(rows), prefix.used));
                let missing = (wanted - rows.available()) * PAGE_TOKENS;
                self.cut(oldest, self.prefixes[oldest].tokens.len().saturating_sub(missing), rows);
            }
        }
        rows.reserve(wanted)
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self, rows: &mut Rows) {
        self.prefixes.drain(..).for_each(|prefix| prefix.kept.release(rows));
    }

    /// Prefixes that are kept.
    pub(crate) fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Tokens let go for others since the start.
    pub(crate) fn evicted_tokens(&self) -> u64 {
        self.evicted_tokens
    }

    /// What is kept, for counting.
    pub(super) fn kept(&self) -> impl Iterator<Item = &KeptPrefix> {
        self.prefixes.iter().map(|prefix| &prefix.kept)
    }

    /// Looks at the order and the lengths.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(super) fn check_integrity(&self) -> Result<(), String> {
        for pair in self.prefixes.windows(2) {
            if pair[1].tokens <= pair[0].tokens || pair[1].tokens.starts_with(&pair[0].tokens) {
                return Err("kept prefixes are out of order, or one begins with another".to_string());
            }
        }
        let of_pages = |prefix: &Prefix| !prefix.tokens.is_empty() && prefix.tokens.len() == prefix.kept.tokens();
        let bounded =
            self.prefixes.len() <= PREFIXES_MAX && self.prefixes.iter().all(|prefix| prefix.used <= self.uses);
        if bounded && self.prefixes.iter().all(of_pages) {
            return Ok(());
        }
        Err(format!("{} kept prefixes, and one has other rows than tokens", self.prefixes.len()))
    }

    /// Puts a prefix in its place; of two of which one begins with the other, the longer one stays and takes over the
    /// summaries of the shorter one.
    fn insert(&mut self, prefix: Prefix, rows: &mut Rows) {
        let place = self.place(&prefix.tokens);
        if let Some(longer) = self.prefixes.get_mut(place)
            && longer.tokens.starts_with(&prefix.tokens)
        {
            longer.used = longer.used.max(prefix.used);
            return longer.join(prefix.kept, rows);
        }
        if let Some(before) = place.checked_sub(1)
            && prefix.tokens.starts_with(&self.prefixes[before].tokens)
        {
            let shorter = std::mem::replace(&mut self.prefixes[before], prefix);
            return self.prefixes[before].join(shorter.kept, rows);
        }
        self.prefixes.insert(place, prefix);
    }

    /// Lets go of a prefix from token `tokens` on.
    fn cut(&mut self, at: usize, tokens: usize, rows: &mut Rows) {
        let mut prefix = self.prefixes.remove(at);
        self.evicted_tokens += (prefix.tokens.len() - tokens) as u64;
        prefix.tokens.truncate(tokens);
        prefix.kept.cut(tokens, rows);
        if 0 < tokens {
            // What is left may be the beginning of another one.
            self.insert(prefix, rows);
        }
    }

    /// How many prefixes come before `tokens`.
    fn place(&self, tokens: &[TokenId]) -> usize {
        self.prefixes.partition_point(|prefix| prefix.tokens.as_slice() < tokens)
    }

    /// The place of the prefix with the lowest key.
    fn first_by<K: Ord>(&self, key: impl Fn(&Prefix) -> K) -> usize {
        let places = 0..self.prefixes.len();
        places.min_by_key(|&at| key(&self.prefixes[at])).expect("spare rows are those of kept prefixes")
    }
}

impl Prefix {
    fn join(&mut self, other: KeptPrefix, rows: &mut Rows) {
        self.kept.adopt(&other, rows);
        other.release(rows);
    }
}

/// Whole pages at the beginning that two texts have in common.
fn common_pages(a: &[TokenId], b: &[TokenId]) -> usize {
    a.chunks_exact(PAGE_TOKENS).zip(b.chunks_exact(PAGE_TOKENS)).take_while(|(a, b)| a == b).count()
}
