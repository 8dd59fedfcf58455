//! Bucketed LRU against a naive model: slots as a map, victims by sorting, and exact LRU by the step of last use.

use crate::bucketed_lru::{BUCKETS, Eviction, Resolved, Scores, Tag, resolve, score_bucket, shrink};
use crate::noise::Noise;
use std::collections::{BTreeSet, HashMap};

/// What a slot holds: a page and its age.
type Slots = HashMap<usize, (u32, u8)>;

/// The model's slot of every page, and its misses as (place, slot).
fn model(
    pages: &[u32],
    slots: &mut Slots,
    count: usize,
    eviction: Eviction,
    bucket: impl Fn(u32) -> u8,
) -> (Vec<usize>, Vec<(usize, usize)>) {
    let held: HashMap<u32, usize> = slots.iter().map(|(slot, (page, _))| (*page, *slot)).collect();
    let fades = eviction == Eviction::FadingScore;
    let older = |page: u32, age: u8| match fades {
        true => bucket(page).min(age + 1),
        false => (age + 1).min(BUCKETS as u8 - 1),
    };
    let rank = |page: u32, age: u8| match eviction {
        Eviction::Age => age,
        Eviction::Score => bucket(page),
        Eviction::FadingScore => older(page, age),
    };
    let mut free: Vec<(usize, usize)> = (0..count)
        .filter_map(|slot| match slots.get(&slot) {
            None => Some((BUCKETS, slot)),
            Some((page, age)) => (!pages.contains(page)).then(|| (usize::from(rank(*page, *age)), slot)),
        })
        .collect();
    free.sort_by_key(|&(bucket, slot)| (std::cmp::Reverse(bucket), slot));
    let missing: Vec<usize> = (0..pages.len()).filter(|at| !held.contains_key(&pages[*at])).collect();
    let mut victims: Vec<usize> = free.into_iter().take(missing.len()).map(|(_, slot)| slot).collect();
    victims.sort_unstable();
    for (page, age) in slots.values_mut() {
        *age = if pages.contains(page) && !fades { 0 } else { older(*page, *age) };
    }
    let misses: Vec<(usize, usize)> = missing.into_iter().zip(victims).collect();
    for &(at, slot) in &misses {
        slots.insert(slot, (pages[at], if fades { bucket(pages[at]) } else { 0 }));
    }
    let places: HashMap<u32, usize> = slots.iter().map(|(slot, (page, _))| (*page, *slot)).collect();
    (pages.iter().map(|page| places[page]).collect(), misses)
}

/// `k` distinct pages of a universe, ascending: some of the step before, the others at random.
fn selected(noise: &mut Noise, before: &[u32], k: usize, universe: usize, kept_in_ten: usize) -> Vec<u32> {
    let mut pages: BTreeSet<u32> = before.iter().copied().filter(|_| noise.below(10) < kept_in_ten).take(k).collect();
    while pages.len() < k {
        pages.insert(noise.below(universe) as u32);
    }
    pages.into_iter().collect()
}

/// One sequence's cache on its way through a run.
struct Run {
    seed: u64,
    tags: Vec<Tag>,
    ages: Vec<u8>,
    slots: Slots,
    resolved: Resolved,
}

impl Run {
    fn step(&mut self, pages: &[u32], scores: Scores<'_>, eviction: Eviction) {
        let Run { seed, tags, ages, slots, resolved } = self;
        let seed = *seed;
        let held: Vec<bool> = pages.iter().map(|page| tags.contains(&Tag::of(*page as usize))).collect();
        resolve(pages, tags, ages, scores, eviction, resolved);
        let bucket = |page: u32| {
            let at = (page as usize).wrapping_sub(scores.first_page);
            scores.values.get(at).map_or(BUCKETS as u8 - 1, |score| score_bucket(*score))
        };
        let (places, misses) = model(pages, slots, tags.len(), eviction, bucket);
        let got: Vec<usize> = resolved.slots.iter().map(|slot| *slot as usize).collect();
        assert_eq!(got, places, "seed {seed}");
        let got: Vec<(usize, usize)> = resolved.misses.iter().map(|miss| (miss.at, miss.slot as usize)).collect();
        assert_eq!(got, misses, "seed {seed}");
        assert_eq!(misses.len(), held.iter().filter(|held| !**held).count(), "seed {seed}");
        for (page, slot) in pages.iter().zip(&resolved.slots) {
            assert_eq!(tags[*slot as usize], Tag::of(*page as usize), "seed {seed}: every selected page has a slot");
        }
        self.compare();
    }

    fn cut(&mut self, kept: usize) {
        let Run { seed, tags, ages, slots, .. } = self;
        let before = tags.clone();
        let moves = shrink(tags, ages, kept);
        let mut order: Vec<(u8, usize)> = slots.iter().map(|(slot, (_, age))| (*age, *slot)).collect();
        order.sort_unstable();
        let survivors: BTreeSet<usize> = order.into_iter().take(kept).map(|(_, slot)| slot).collect();
        let leave = survivors.iter().copied().filter(|slot| kept <= *slot);
        let free = (0..kept).filter(|slot| !survivors.contains(slot));
        let want: Vec<(usize, usize)> = leave.zip(free).collect();
        let got: Vec<(usize, usize)> = moves.iter().map(|one| (one.from as usize, one.to as usize)).collect();
        assert_eq!(got, want, "seed {seed}");
        let moved: HashMap<usize, usize> = want.into_iter().collect();
        *slots = survivors.iter().map(|slot| (moved.get(slot).copied().unwrap_or(*slot), slots[slot])).collect();
        for one in &moves {
            assert_eq!(tags[one.to as usize], before[one.from as usize], "seed {seed}");
        }
        assert!(tags[kept..].iter().all(|tag| *tag == Tag::EMPTY) && ages[kept..].iter().all(|age| *age == 0));
        self.compare();
        self.tags.truncate(kept);
        self.ages.truncate(kept);
    }

    /// Tags and ages are the model's, and no page is in two slots.
    fn compare(&self) {
        let mut pages = BTreeSet::new();
        for (slot, (tag, age)) in self.tags.iter().zip(&self.ages).enumerate() {
            let want = self.slots.get(&slot).map_or((None, 0), |(page, age)| (Some(*page as usize), *age));
            assert_eq!((tag.page(), *age), want, "seed {} slot {slot}", self.seed);
            assert!(tag.page().is_none_or(|page| pages.insert(page)), "seed {}: {tag:?} twice", self.seed);
        }
    }
}

fn run(seed: u64) {
    let mut noise = Noise(seed);
    let count = 1 + noise.below(60);
    let k_most = 1 + noise.below(count);
    let universe = count + 1 + noise.below(300);
    let kept_in_ten = noise.below(11);
    let (tags, ages) = (vec![Tag::EMPTY; count], vec![0; count]);
    let mut run = Run { seed, tags, ages, slots: Slots::new(), resolved: Resolved::default() };
    let mut pages = Vec::new();
    for _ in 0..150 {
        let k = noise.below(k_most.min(run.tags.len()) + 1);
        pages = selected(&mut noise, &pages, k, universe, kept_in_ten);
        let first_page = noise.below(4);
        let score = |noise: &mut Noise| match noise.below(20) {
            0 => f32::NEG_INFINITY,
            _ => noise.below(2000) as f32 / -100.0,
        };
        let values: Vec<f32> = (0..universe - noise.below(4)).map(|_| score(&mut noise)).collect();
        let eviction = [Eviction::Age, Eviction::Score, Eviction::FadingScore][seed as usize % 3];
        run.step(&pages, Scores { first_page, values: &values }, eviction);
        if noise.below(40) == 0 {
            run.cut(noise.below(run.tags.len() + 1));
        }
    }
}

#[test]
fn bucketed_lru_equals_a_naive_model() {
    for seed in 0..400 {
        run(seed);
    }
}

/// Hits of bucketed LRU and of LRU by the step of last use are the same until an age saturates; returns the steps
/// compared.
fn compare_with_exact_lru(seed: u64) -> usize {
    let mut noise = Noise(seed);
    let k = 1 + noise.below(12);
    let count = k * (1 + noise.below(6));
    let (mut tags, mut ages) = (vec![Tag::EMPTY; count], vec![0; count]);
    let mut resolved = Resolved::default();
    // Of each slot the page and the step of its last use.
    let mut exact: Vec<Option<(u32, usize)>> = vec![None; count];
    let mut pages = Vec::new();
    for step in 1..300 {
        if ages.contains(&(BUCKETS as u8 - 1)) {
            return step;
        }
        pages = selected(&mut noise, &pages, k, 3 * count + 1, 6);
        resolve(&pages, &mut tags, &mut ages, Scores::default(), Eviction::Age, &mut resolved);
        let mut hits = 0;
        for slot in exact.iter_mut().flatten().filter(|(page, _)| pages.contains(page)) {
            (slot.1, hits) = (step, hits + 1);
        }
        assert_eq!(hits, k - resolved.misses.len(), "seed {seed} step {step}");
        let held: Vec<u32> = exact.iter().flatten().map(|(page, _)| *page).collect();
        let missing: Vec<u32> = pages.iter().copied().filter(|page| !held.contains(page)).collect();
        let mut oldest: Vec<usize> =
            (0..count).filter(|&slot| exact[slot].is_none_or(|(_, used)| used < step)).collect();
        oldest.sort_by_key(|&slot| exact[slot].map_or(0, |(_, used)| used));
        oldest.truncate(missing.len());
        oldest.sort_unstable();
        for (slot, page) in oldest.into_iter().zip(missing) {
            exact[slot] = Some((page, step));
        }
    }
    300
}

#[test]
fn bucketed_lru_is_lru_until_an_age_saturates() {
    let compared: Vec<usize> = (0..200).map(compare_with_exact_lru).collect();
    assert!(100 < compared.iter().filter(|steps| 100 < **steps).count(), "{compared:?}");
}

#[test]
fn the_same_calls_give_the_same_answers_whatever_was_resolved_before() {
    let values: Vec<f32> = (0..50).map(|page| -(page as f32) / 3.0).collect();
    let scores = Scores { first_page: 0, values: &values };
    let mut used = Resolved::default();
    for seed in 0..50 {
        let mut noise = Noise(seed);
        let first = selected(&mut noise, &[], 9, 50, 0);
        let second = selected(&mut noise, &first, 7, 50, 5);
        let mut twice = [Resolved::default(), used].map(|mut resolved| {
            let (mut tags, mut ages) = (vec![Tag::EMPTY; 12], vec![0; 12]);
            for pages in [&first, &second] {
                resolve(pages, &mut tags, &mut ages, scores, Eviction::Score, &mut resolved);
            }
            (tags, ages, resolved)
        });
        let [fresh, reused] = &twice;
        assert_eq!((&fresh.0, &fresh.1), (&reused.0, &reused.1), "seed {seed}");
        assert_eq!((&fresh.2.slots, &fresh.2.misses), (&reused.2.slots, &reused.2.misses), "seed {seed}");
        used = std::mem::take(&mut twice[1].2);
    }
}

#[test]
#[should_panic(expected = "3 pages do not fit 2 slots")]
fn more_pages_than_slots_are_refused() {
    let (mut tags, mut ages) = (vec![Tag::EMPTY; 2], vec![0; 2]);
    resolve(&[1, 2, 3], &mut tags, &mut ages, Scores::default(), Eviction::Age, &mut Resolved::default());
}
