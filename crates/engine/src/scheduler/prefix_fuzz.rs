//! `PrefixCache` against a naive model: a list of the prompts that were kept, and a pool whose rows say which text they
//! hold the end of.
//!
//! The cache may forget what the list has, by its own rules and by cuts; it never knows more, never mixes texts up, and
//! refuses rows only where sequences hold them.

use super::prefix::{PREFIXES_MAX, PrefixCache};
use kv::{
    Indexing, PAGE_TOKENS, Promise, Reservation, Residence, RowId, Selection, SequenceKv, SummaryKey, Tiers, TokenId,
};
use std::collections::BTreeSet;

/// Seeded numbers (SplitMix64).
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % bound as u64) as usize
    }
}

/// A sequence that has read its prompt and holds its rows.
struct Living {
    prompt: Vec<TokenId>,
    kv: SequenceKv,
}

struct Model {
    cache: PrefixCache,
    tiers: Tiers,
    living: Vec<Living>,
    /// Every prompt that was ever kept.
    kept: Vec<Vec<TokenId>>,
    /// What each row holds the end of: K and V of whole pages, and summaries.
    cells: Vec<Vec<TokenId>>,
}

fn indexing(noise: &mut Noise) -> Option<Indexing> {
    let selection = Selection { window_tokens: 8 * noise.below(3), ..Selection::dense() };
    let (algorithm, row_tokens) = [(1, 16), (2, 24)][noise.below(2)];
    (0 < noise.below(3)).then_some(Indexing { key: SummaryKey { algorithm, row_tokens }, selection })
}

/// A text of few words, so that many begin alike; sometimes one that was kept goes on.
fn text(noise: &mut Noise, kept: &[Vec<TokenId>]) -> Vec<TokenId> {
    let mut text = match kept.len() {
        0 => Vec::new(),
        many => kept[noise.below(many)].clone(),
    };
    text.truncate(noise.below(text.len() + 2));
    let more = 1 + noise.below(60);
    text.extend((0..more).map(|_| 1 + noise.below(2) as TokenId));
    text
}

impl Model {
    /// Admits, prefills and keeps a prompt as the scheduler does.
    fn read(&mut self, noise: &mut Noise, seed: u64) {
        let (prompt, indexing) = (text(noise, &self.kept), indexing(noise));
        let mut kv = self.cache.share(&prompt, indexing, &mut self.tiers);
        let at = kv.len();
        let common =
            |kept: &Vec<TokenId>| prompt[..prompt.len() - 1].iter().zip(kept).take_while(|(a, b)| a == b).count();
        let most = self.kept.iter().map(common).max().unwrap_or(0) / PAGE_TOKENS * PAGE_TOKENS;
        assert!(at <= most && at < prompt.len(), "seed {seed}: {at} of {most}");
        if self.cache.evicted_tokens() == 0 {
            assert_eq!(at, most, "seed {seed}: nothing was let go");
        }
        self.verify(&kv, &prompt[..at], seed);
        let end = prompt.len() + 1;
        let whole = indexing.map_or(0, |indexing| indexing.rows(end) - kv.summary_rows(indexing.key).len());
        let wanted = kv::geometry::pages(end) - at / PAGE_TOKENS + whole;
        let Some(mut promise) = self.reserve(wanted, &kv, seed) else { return kv.release(&mut self.tiers) };
        let summary = promise.split(whole);
        kv.promise(Promise { kv: promise, summary, ..Promise::default() }, Residence::Full);
        kv.prepare(prompt.len(), &mut self.tiers);
        kv.advance(prompt.len() - at);
        self.write(&mut kv, &prompt, at);
        self.cache.keep(&prompt, &kv, &mut self.tiers.pool);
        self.kept.push(prompt[..prompt.len() / PAGE_TOKENS * PAGE_TOKENS].to_vec());
        self.living.push(Living { prompt, kv });
    }

    /// Reserving fails exactly where sequences hold or were promised too much, and then lets nothing go.
    fn reserve(&mut self, wanted: usize, asker: &SequenceKv, seed: u64) -> Option<Reservation> {
        let held = self.living.iter().flat_map(|one| one.kv.held_rows()).chain(asker.held_rows());
        let held: BTreeSet<RowId> = held.collect();
        let promised: usize = self.living.iter().flat_map(|one| one.kv.promised().pool()).map(Reservation::rows).sum();
        let (evicted, available) = (self.cache.evicted_tokens(), self.tiers.pool.available());
        let promise = self.cache.reserve(wanted, &mut self.tiers.pool).ok();
        let fits = held.len() + promised + wanted <= self.tiers.pool.total();
        assert_eq!(promise.is_some(), fits, "seed {seed}: {wanted} beside {} and {promised}", held.len());
        if !fits || wanted <= available {
            assert_eq!(self.cache.evicted_tokens(), evicted, "seed {seed}: nothing is let go in vain");
        }
        promise
    }

    fn write(&mut self, kv: &mut SequenceKv, prompt: &[TokenId], at: usize) {
        for page in at / PAGE_TOKENS..kv.kv_rows().len() {
            let end = prompt.len().min((page + 1) * PAGE_TOKENS);
            self.cells[kv.kv_rows()[page].at()] = prompt[..end].to_vec();
        }
        let Some(indexing) = kv.indexing() else { return };
        let (key, target) = (indexing.key, indexing.indexed_tokens(prompt.len()));
        for row in kv.indexed(key) / key.row_tokens..kv.summary_rows(key).len() {
            let end = target.min((row + 1) * key.row_tokens);
            self.cells[kv.summary_rows(key)[row].at()] = prompt[..end].to_vec();
        }
        kv.mark_indexed(key, target);
    }

    /// Every row that a sequence has of `tokens` holds them.
    fn verify(&self, kv: &SequenceKv, tokens: &[TokenId], seed: u64) {
        for (page, row) in kv.kv_rows().iter().enumerate().take(tokens.len() / PAGE_TOKENS) {
            assert_eq!(self.cells[row.at()], tokens[..(page + 1) * PAGE_TOKENS], "seed {seed}: page {page}");
        }
        let Some(key) = kv.indexing().map(|indexing| indexing.key) else { return };
        for (at, row) in kv.summary_rows(key).iter().enumerate().take(kv.indexed(key) / key.row_tokens) {
            assert_eq!(self.cells[row.at()], tokens[..(at + 1) * key.row_tokens], "seed {seed}: summary row {at}");
        }
    }

    fn check(&self, seed: u64) {
        let held = self.living.iter().flat_map(|one| one.kv.held_rows());
        let promises = self.living.iter().flat_map(|one| one.kv.promised().pool());
        let counted = self.tiers.pool.check_integrity(held, self.cache.kept(), promises);
        counted.and_then(|()| self.cache.check_integrity()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        self.living.iter().for_each(|one| self.verify(&one.kv, &one.prompt, seed));
    }
}

fn run(seed: u64) {
    let mut noise = Noise(seed);
    let total = 20 + noise.below(400);
    let (cache, living, kept) = (PrefixCache::default(), Vec::new(), Vec::new());
    let mut model = Model { cache, tiers: Tiers::new(total, 0), living, kept, cells: vec![Vec::new(); total] };
    for _ in 0..200 {
        let at = noise.below(model.living.len().max(1));
        match noise.below(3) {
            0 if at < model.living.len() => model.living.swap_remove(at).kv.release(&mut model.tiers),
            1 if noise.below(40) == 0 => {
                model.cache.clear(&mut model.tiers.pool);
                model.kept.clear();
            }
            _ => model.read(&mut noise, seed),
        }
        model.check(seed);
    }
    model.living.drain(..).for_each(|one| one.kv.release(&mut model.tiers));
    assert_eq!(model.tiers.pool.available() + model.tiers.pool.spare(), total, "seed {seed}: the rest is spare");
    let all = model.cache.reserve(total, &mut model.tiers.pool).expect("spare rows are given up");
    assert_eq!(model.cache.len(), 0, "seed {seed}");
    model.tiers.pool.give_back(all);
    assert_eq!(model.tiers.pool.available(), total, "seed {seed}: rows leak");
}

#[test]
fn the_cache_knows_what_was_kept_and_is_in_nobodys_way() {
    for seed in 0..200 {
        run(seed);
    }
}

/// Reads prompts one after the other in a pool of `total` rows, each ending at once; tells how many tokens of each of
/// `asked` the cache has then.
fn known(total: usize, prompts: &[&[TokenId]], asked: &[&[TokenId]]) -> Vec<usize> {
    let (mut cache, mut tiers) = (PrefixCache::default(), Tiers::new(total, 0));
    for prompt in prompts {
        let mut kv = cache.share(prompt, None, &mut tiers);
        let pages = kv::geometry::pages(prompt.len()) - kv.len() / PAGE_TOKENS;
        let promised = cache.reserve(pages, &mut tiers.pool).expect("nothing but the cache holds rows");
        kv.promise(Promise { kv: promised, ..Promise::default() }, Residence::Full);
        kv.prepare(prompt.len(), &mut tiers);
        kv.advance(prompt.len() - kv.len());
        cache.keep(prompt, &kv, &mut tiers.pool);
        kv.release(&mut tiers);
    }
    let known = asked.iter().map(|prompt| {
        let kv = cache.share(prompt, None, &mut tiers);
        let len = kv.len();
        kv.release(&mut tiers);
        len
    });
    let known = known.collect();
    cache.clear(&mut tiers.pool);
    assert_eq!(tiers.pool.available(), total);
    known
}

#[test]
fn the_last_pages_of_the_least_recently_used_go_first() {
    let text = |first: TokenId, len: usize| [vec![first], vec![0; len]].concat();
    let (a, b, c) = (text(1, 40), text(2, 40), text(3, 24));
    let asked: Vec<&[TokenId]> = vec![&a, &b, &c];
    assert_eq!(known(20, &[&a, &b, &c], &asked), [40, 40, 24], "there is room for all");
    assert_eq!(known(12, &[&a, &b, &c], &asked), [24, 40, 24], "two pages are missing: the first one's last ones");
    assert_eq!(known(12, &[&a, &b, &a, &c], &asked), [40, 24, 24], "the first one was used again");
    assert_eq!(known(6, &[&a, &b, &c], &asked), [0, 16, 24], "one goes, and then the next one's end");
}

fn sequence(rows: usize, tiers: &mut Tiers) -> SequenceKv {
    let mut kv = SequenceKv::new(Residence::Full, None);
    let promised = tiers.pool.reserve(rows).expect("there is room");
    kv.promise(Promise { kv: promised, ..Promise::default() }, Residence::Full);
    kv
}

#[test]
fn what_another_prefix_covers_is_not_kept_beside_it() {
    let long: Vec<TokenId> = (0..64).collect();
    let (mut cache, mut tiers) = (PrefixCache::default(), Tiers::new(40, 0));
    for tokens in [24, 64, 32, 7] {
        let mut kv = sequence(8, &mut tiers);
        kv.prepare(tokens, &mut tiers);
        kv.advance(tokens);
        cache.keep(&long[..tokens], &kv, &mut tiers.pool);
        kv.release(&mut tiers);
    }
    assert_eq!((cache.len(), tiers.pool.spare()), (1, 8), "the longest alone");
    cache.clear(&mut tiers.pool);
}

#[test]
fn the_number_of_prefixes_is_bounded() {
    let (mut cache, mut tiers) = (PrefixCache::default(), Tiers::new(4 * PREFIXES_MAX, 0));
    for first in 0..2 * PREFIXES_MAX as TokenId {
        let mut kv = sequence(1, &mut tiers);
        kv.prepare(8, &mut tiers);
        kv.advance(8);
        cache.keep(&[first, 0, 0, 0, 0, 0, 0, 0], &kv, &mut tiers.pool);
        kv.release(&mut tiers);
    }
    assert_eq!((cache.len(), tiers.pool.spare()), (PREFIXES_MAX, PREFIXES_MAX));
    cache.clear(&mut tiers.pool);
}
