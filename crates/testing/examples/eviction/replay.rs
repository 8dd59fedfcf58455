//! One head's steps through one policy.

use crate::policy::{Policy, Resident, Uses};
use crate::recording::Step;
use kv::bucketed_lru::{Eviction, Resolved, Scores, Tag, resolve};

/// Steps that fill the cache and are not counted.
pub(crate) const WARM_UP_STEPS: usize = 64;

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// (Step, head) pairs.
    pub(crate) resolved: usize,
    /// Pages selected.
    pub(crate) selected: usize,
    /// Of them, not there.
    pub(crate) missed: usize,
    /// Fetched after a step, wanted or not.
    pub(crate) prefetched: usize,
}

impl Tally {
    /// Adds another.
    pub(crate) fn add(&mut self, other: Tally) {
        self.resolved += other.resolved;
        self.selected += other.selected;
        self.missed += other.missed;
        self.prefetched += other.prefetched;
    }

    fn count(&mut self, step: usize, selected: usize, missed: usize, prefetched: usize) {
        if WARM_UP_STEPS <= step {
            self.add(Tally { resolved: 1, selected, missed, prefetched });
        }
    }

    /// Share of selected pages that were there.
    pub(crate) fn hit_ratio(&self) -> f64 {
        1.0 - self.missed as f64 / self.selected as f64
    }

    /// Misses of a (layer, KV head) in a step.
    pub(crate) fn misses_per_step(&self) -> f64 {
        self.missed as f64 / self.resolved as f64
    }

    /// Pages prefetched for a (layer, KV head) in a step.
    pub(crate) fn prefetched_per_step(&self) -> f64 {
        self.prefetched as f64 / self.resolved as f64
    }
}

/// Replays a head through a cache that begins with the `slots` best pages of its first step.
pub(crate) fn replay(steps: &[Step], first_page: usize, uses: &Uses, policy: Policy, slots: usize) -> Tally {
    let pages = best_pages(&steps[0], first_page, slots);
    match policy {
        Policy::AgeBuckets => replay_buckets(steps, first_page, Eviction::Age, &pages),
        Policy::ScoreBuckets => replay_buckets(steps, first_page, Eviction::Score, &pages),
        Policy::FadingBuckets => replay_buckets(steps, first_page, Eviction::FadingScore, &pages),
        _ => replay_model(steps, first_page, uses, policy, &pages),
    }
}

/// Ascending.
fn best_pages(step: &Step, first_page: usize, slots: usize) -> Vec<u32> {
    let mut places: Vec<usize> = (0..step.scores.len()).collect();
    places.sort_by(|a, b| step.scores[*b].total_cmp(&step.scores[*a]).then(a.cmp(b)));
    places.truncate(slots);
    places.sort_unstable();
    places.into_iter().map(|at| (first_page + at) as u32).collect()
}

fn replay_buckets(steps: &[Step], first_page: usize, eviction: Eviction, pages: &[u32]) -> Tally {
    let mut tags: Vec<Tag> = pages.iter().map(|page| Tag::of(*page as usize)).collect();
    let scores = Scores { first_page, values: &steps[0].scores };
    let mut ages: Vec<u8> = pages.iter().map(|page| eviction.first_age(*page as usize, scores)).collect();
    let (mut resolved, mut tally) = (Resolved::default(), Tally::default());
    for (at, step) in steps.iter().enumerate() {
        let scores = Scores { first_page, values: &step.scores };
        resolve(&step.pages, &mut tags, &mut ages, scores, eviction, &mut resolved);
        tally.count(at, step.pages.len(), resolved.misses.len(), 0);
    }
    tally
}

fn replay_model(steps: &[Step], first_page: usize, uses: &Uses, policy: Policy, pages: &[u32]) -> Tally {
    let mut cache = Cache::new(policy, pages, first_page, &steps[0]);
    let mut tally = Tally::default();
    for (at, step) in steps.iter().enumerate() {
        let missed = cache.resolve(at + 1, step, policy, uses);
        let prefetched = match policy {
            Policy::FadingWithPrefetch => cache.prefetch(at + 1, step, step.pages.len() / 8, uses),
            _ => 0,
        };
        tally.count(at, step.pages.len(), missed, prefetched);
    }
    tally
}

/// Slots that are always full.
struct Cache {
    slots: Vec<Resident>,
    first_page: usize,
    /// By page.
    is_resident: Vec<bool>,
}

impl Cache {
    fn new(policy: Policy, pages: &[u32], first_page: usize, step: &Step) -> Self {
        let mut cache = Cache { slots: Vec::new(), first_page, is_resident: Vec::new() };
        for &page in pages {
            let score = cache.score(step, page);
            cache.slots.push(Resident::new(policy, page, 0, score));
            cache.mark(page, true);
        }
        cache
    }

    fn score(&self, step: &Step, page: u32) -> f32 {
        step.scores[page as usize - self.first_page]
    }

    fn mark(&mut self, page: u32, is_resident: bool) {
        let page = page as usize;
        if self.is_resident.len() <= page {
            self.is_resident.resize(page + 1, false);
        }
        self.is_resident[page] = is_resident;
    }

    fn holds(&self, page: u32) -> bool {
        self.is_resident.get(page as usize).is_some_and(|is_resident| *is_resident)
    }

    fn put(&mut self, slot: usize, page: Resident) {
        self.mark(self.slots[slot].page, false);
        self.mark(page.page, true);
        self.slots[slot] = page;
    }

    /// The misses of a step, numbered from 1.
    fn resolve(&mut self, number: usize, step: &Step, policy: Policy, uses: &Uses) -> usize {
        for slot in &mut self.slots {
            let score = step.scores[slot.page as usize - self.first_page];
            slot.pass(policy, number, score, step.pages.binary_search(&slot.page).is_ok());
        }
        let missing: Vec<u32> = step.pages.iter().copied().filter(|page| !self.holds(*page)).collect();
        let rank =
            |(at, slot): (usize, &Resident)| (slot.used != number).then(|| (policy.rank(slot, number, uses), at));
        let mut others: Vec<(f64, usize)> = self.slots.iter().enumerate().filter_map(rank).collect();
        for (page, slot) in missing.iter().zip(worst(&mut others, missing.len())) {
            let score = self.score(step, *page);
            self.put(slot, Resident::new(policy, *page, number, score));
        }
        missing.len()
    }

    /// Fetches up to `most` of the best pages that are not there, each for one that is worth less.
    fn prefetch(&mut self, number: usize, step: &Step, most: usize, uses: &Uses) -> usize {
        let policy = Policy::FadingWithPrefetch;
        let absent = |at: &usize| !self.holds((self.first_page + at) as u32);
        let absent = (0..step.scores.len()).filter(absent);
        let mut best: Vec<(f64, usize)> = absent.map(|at| (f64::from(step.scores[at]), at)).collect();
        let best = worst(&mut best, most);
        let others = self.slots.iter().enumerate().filter(|(_, slot)| slot.used != number);
        let mut others: Vec<(f64, usize)> = others.map(|(at, slot)| (policy.rank(slot, number, uses), at)).collect();
        let slots = worst(&mut others, best.len());
        let arrivals = best
            .into_iter()
            .map(|at| Resident::new(policy, (self.first_page + at) as u32, number - 1, step.scores[at]));
        let mut arrivals: Vec<Resident> = arrivals.collect();
        arrivals.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut leaving: Vec<(f64, usize)> =
            slots.into_iter().map(|at| (policy.rank(&self.slots[at], number, uses), at)).collect();
        leaving.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut fetched = 0;
        for (page, (rank, slot)) in arrivals.into_iter().zip(leaving) {
            if policy.rank(&page, number, uses) < rank {
                self.put(slot, page);
                fetched += 1;
            }
        }
        fetched
    }
}

/// The places of the `count` largest ranks, of equal ones those in front; ascending.
fn worst(ranks: &mut [(f64, usize)], count: usize) -> Vec<usize> {
    let order = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let count = count.min(ranks.len());
    if 0 < count && count < ranks.len() {
        ranks.select_nth_unstable_by(count - 1, order);
    }
    let mut places: Vec<usize> = ranks[..count].iter().map(|(_, at)| *at).collect();
    places.sort_unstable();
    places
}
