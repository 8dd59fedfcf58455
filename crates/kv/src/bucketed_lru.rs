//! Bucketed LRU: which slot of a sparsely resident sequence holds which page, for one (lane, layer, KV head).
//!
//! Plain functions over the tags and ages of Q slots, which the caller keeps; the CPU calls them and a kernel computes
//! the same to the bit. Nothing here touches a page's bytes: the caller copies what [`Resolved::misses`] and the
//! moves of [`shrink`] say, misses before anything reads their slots.

/// Age and score buckets; an empty slot's bucket is one above them all.
pub const BUCKETS: usize = 64;

/// The bucket that nothing leaves upwards.
const LAST_BUCKET: u8 = BUCKETS as u8 - 1;

/// An empty slot's: taken before any page is.
const EMPTY_BUCKET: u8 = BUCKETS as u8;

/// How a slot stands that holds a selected page, above every bucket: whoever takes victims stops below it.
const HIT: u8 = EMPTY_BUCKET + 1;

/// Score buckets a nat; a power of two, so that every device rounds the product alike: not at all.
const BUCKETS_PER_NAT: f32 = 4.0;

/// What a slot holds: 0 nothing, otherwise a logical page + 1. Shared bit for bit with the CUDA kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Tag(pub u32);

impl Tag {
    /// No page.
    pub const EMPTY: Tag = Tag(0);

    /// A page's.
    pub fn of(page: usize) -> Self {
        Tag(page as u32 + 1)
    }

    /// The logical page, if there is one.
    pub fn page(self) -> Option<usize> {
        self.0.checked_sub(1).map(|page| page as usize)
    }
}

/// The age of a page of which nothing is known yet: it goes first, and the first step gives it a better one.
pub const AGE_UNKNOWN: u8 = LAST_BUCKET;

/// By what the pages that a step does not select are ordered; the highest bucket goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// Steps since the page was last selected.
    Age,
    /// The page's selection score in this step.
    Score,
    /// The best score bucket that the page had since it came, which every step makes one worse.
    #[default]
    FadingScore,
}

/// One step's selection scores: the log of the softmax over the candidates, the maximum over the group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scores<'a> {
    /// The page of `values[0]`: the first candidate.
    pub first_page: usize,
    /// `[candidates]`.
    pub values: &'a [f32],
}

impl Scores<'_> {
    /// A page's; minus infinity where it is no candidate.
    fn of(&self, page: usize) -> f32 {
        let at = page.checked_sub(self.first_page);
        at.and_then(|at| self.values.get(at)).copied().unwrap_or(f32::NEG_INFINITY)
    }
}

/// A selected page that no slot held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Its place among the selected pages.
    pub at: usize,
    /// The slot that is now its own, and must be filled.
    pub slot: u32,
}

/// What [`resolve`] found; kept from step to step, so that a step allocates nothing once it has grown.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// The slot of each selected page.
    pub slots: Vec<u32>,
    /// Pages to fetch, ascending both by page and by slot.
    pub misses: Vec<Miss>,
    /// Scratch: the selected pages, to look a slot's up.
    selected: Places,
    /// Scratch: how each slot stands in the step: [`HIT`], or its eviction bucket.
    standings: Vec<u8>,
    /// Scratch: whether each selected page was found in a slot.
    found: Vec<bool>,
}

/// Where each page lies in an ascending list of them: a look at one word, because every slot asks and few are there.
#[derive(Clone, Debug, Default)]
struct Places {
    /// `[pages / 64]`.
    words: Vec<Word>,
}

/// Sixty-four pages.
#[derive(Clone, Copy, Debug)]
struct Word {
    /// Bit `p % 64` is set where page `p` is in the list.
    bits: u64,
    /// How many pages of the list lie before these.
    before: u32,
}

impl Places {
    fn refill(&mut self, pages: &[u32]) {
        self.words.clear();
        for (at, page) in pages.iter().enumerate() {
            let word = *page as usize / 64;
            if self.words.len() <= word {
                self.words.resize(word + 1, Word { bits: 0, before: at as u32 });
            }
            self.words[word].bits |= 1 << (page % 64);
        }
    }

    fn of(&self, page: usize) -> Option<usize> {
        let Word { bits, before } = *self.words.get(page / 64)?;
        let bit = 1 << (page % 64);
        (bits & bit != 0).then(|| before as usize + (bits & (bit - 1)).count_ones() as usize)
    }
}

/// The eviction bucket of a selection score: `floor(-4 * score)`, quarter nats below 0, at least 0 and at most 63.
/// Minus infinity and NaN have 63. One product with a power of two, one comparison, one truncation: the same anywhere.
/// Scores of a head's slots lie on both sides of the last bucket: the comparison chooses a number, so as not to branch.
pub fn score_bucket(score: f32) -> u8 {
    let bucket = score * -BUCKETS_PER_NAT;
    let bucket = if bucket < f32::from(LAST_BUCKET) { bucket } else { f32::from(LAST_BUCKET) };
    bucket.max(0.0) as u8
}

/// Finds a slot for each of the step's pages (ascending, distinct), as follows.
///
/// 1. A slot whose tag is among the pages is a hit. `n` is the number of pages that no slot holds.
/// 2. A slot that is not empty has an age, from 0 to 63; an empty slot's is 0 and stays 0. In this step
///
///    ```text
///                    age of a hit               age of another            age of a page that comes
///    Age, Score      0                          min(age + 1, 63)          0
///    FadingScore     min(age + 1, bucket)       min(age + 1, bucket)      bucket
///    ```
///
///    becomes its age; `bucket` is the [`score_bucket`] of the page's score in this step.
/// 3. Every slot that is not a hit has an eviction bucket: an empty one 64; else under [`Eviction::Age`] its age as it
///    was before this step, under [`Eviction::Score`] `bucket`, under [`Eviction::FadingScore`] its new age.
/// 4. `T` is the largest eviction bucket such that at least `n` slots that are not hits have `T` or more. Victims are
///    all such slots above `T`, and as many of those at `T`, lowest slots first, as make `n` in all.
/// 5. Victims in ascending order of slots take the missing pages in ascending order of pages: each gets its page's
///    tag and age.
///
/// `scores` is not read under [`Eviction::Age`]. Before the call no page is in two slots; after it neither.
///
/// # Panics
/// There are more pages than slots, or not one age a tag.
pub fn resolve(
    pages: &[u32],
    tags: &mut [Tag],
    ages: &mut [u8],
    scores: Scores<'_>,
    eviction: Eviction,
    resolved: &mut Resolved,
) {
    assert!(pages.len() <= tags.len(), "{} pages do not fit {} slots", pages.len(), tags.len());
    assert_eq!(tags.len(), ages.len(), "an age a slot");
    debug_assert!(pages.is_sorted_by(|a, b| a < b), "ascending and distinct");
    let Resolved { slots, misses, selected, standings, found } = resolved;
    refill(slots, pages.len(), 0);
    refill(found, pages.len(), false);
    selected.refill(pages);
    standings.clear();
    misses.clear();

    let mut counts = [0; HIT as usize + 1];
    standings.extend(tags.iter().zip(&mut *ages).enumerate().map(|(slot, (tag, age))| {
        let at = tag.page().and_then(|page| selected.of(page));
        if let Some(at) = at {
            (slots[at], found[at]) = (slot as u32, true);
        }
        let standing = eviction.pass(*tag, age, at.is_some(), scores);
        counts[usize::from(standing)] += 1;
        standing
    }));
    let missing = pages.len() - counts[usize::from(HIT)];

    let (threshold, mut at_threshold) = threshold(&counts, missing);
    let candidates = standings.iter().enumerate().filter(|(_, standing)| (threshold..HIT).contains(standing));
    let victims = candidates.filter_map(|(slot, bucket)| {
        let taken = *bucket != threshold || 0 < at_threshold;
        at_threshold -= usize::from(taken && *bucket == threshold);
        taken.then_some(slot)
    });
    let absent = (0..pages.len()).filter(|&at| !found[at]);
    for (at, slot) in absent.zip(victims) {
        let page = pages[at] as usize;
        (tags[slot], ages[slot]) = (Tag::of(page), eviction.first_age(page, scores));
        slots[at] = slot as u32;
        misses.push(Miss { at, slot: slot as u32 });
    }
    debug_assert_eq!(misses.len(), missing);
}

impl Eviction {
    /// The age of a page that comes into a slot: by a miss, or because its sequence becomes sparsely resident.
    pub fn first_age(self, page: usize, scores: Scores<'_>) -> u8 {
        match self {
            Eviction::Age | Eviction::Score => 0,
            Eviction::FadingScore => score_bucket(scores.of(page)),
        }
    }

    /// Makes a slot a step older; how it stands in the step.
    fn pass(self, tag: Tag, age: &mut u8, is_hit: bool, scores: Scores<'_>) -> u8 {
        let Some(page) = tag.page() else { return EMPTY_BUCKET };
        let before = *age;
        let older = (before + 1).min(LAST_BUCKET);
        *age = match self {
            Eviction::FadingScore => older.min(score_bucket(scores.of(page))),
            Eviction::Age | Eviction::Score if is_hit => 0,
            Eviction::Age | Eviction::Score => older,
        };
        match self {
            _ if is_hit => HIT,
            Eviction::Age => before,
            Eviction::Score => score_bucket(scores.of(page)),
            Eviction::FadingScore => *age,
        }
    }
}

/// The largest bucket that `wanted` slots reach, and how many of them lie in that bucket itself.
fn threshold(counts: &[usize; HIT as usize + 1], wanted: usize) -> (u8, usize) {
    let mut above = 0;
    for bucket in (0..=EMPTY_BUCKET).rev() {
        let here = counts[usize::from(bucket)];
        if wanted <= above + here {
            return (bucket, wanted - above);
        }
        above += here;
    }
    unreachable!("there are as many slots as pages, so as many that are not hits as pages are missing")
}

fn refill<T: Copy>(list: &mut Vec<T>, len: usize, value: T) {
    list.clear();
    list.resize(len, value);
}

/// A page that changes its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotMove {
    /// Where it is: a slot that is dropped.
    pub from: u32,
    /// Where it goes: a slot that is kept.
    pub to: u32,
}

/// Cuts the cache to its first `kept` slots; the `kept` youngest pages survive, of equal ages those in lower slots.
///
/// ```text
/// slots   0                  kept                 Q
///         |------ kept -------|----- dropped ------|
///            <- survivors of the dropped, to slots whose page does not survive, both ascending
/// ```
///
/// Kept slots get the tags and ages of their pages; dropped ones become empty. Moves never overlap: every `from` is
/// dropped, every `to` is kept. Not part of a step: it sorts and allocates.
///
/// # Panics
/// There are fewer than `kept` slots, or not one age a tag.
pub fn shrink(tags: &mut [Tag], ages: &mut [u8], kept: usize) -> Vec<SlotMove> {
    assert!(kept <= tags.len(), "{kept} of {} slots cannot be kept", tags.len());
    assert_eq!(tags.len(), ages.len(), "an age a slot");
    let mut survivors: Vec<usize> = (0..tags.len()).filter(|&slot| tags[slot] != Tag::EMPTY).collect();
    survivors.sort_by_key(|&slot| ages[slot]);
    survivors.truncate(kept);
    survivors.sort_unstable();
    let (stay, leave) = survivors.split_at(survivors.partition_point(|&slot| slot < kept));
    let free = (0..kept).filter(|slot| stay.binary_search(slot).is_err());
    let moves: Vec<SlotMove> =
        leave.iter().zip(free).map(|(&from, to)| SlotMove { from: from as u32, to: to as u32 }).collect();
    for &SlotMove { from, to } in &moves {
        (tags[to as usize], ages[to as usize]) = (tags[from as usize], ages[from as usize]);
    }
    tags[kept..].fill(Tag::EMPTY);
    ages[kept..].fill(0);
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_have_quarter_nat_buckets() {
        for (score, bucket) in [
            (0.0, 0),
            (1e-6, 0),
            (-0.2499, 0),
            (-0.25, 1),
            (-1.0, 4),
            (-15.74, 62),
            (-15.75, 63),
            (-99.0, 63),
            (f32::NEG_INFINITY, 63),
            (f32::NAN, 63),
        ] {
            assert_eq!(score_bucket(score), bucket, "{score}");
        }
    }

    /// Slots as `page:age`, `-` where empty.
    fn slots(text: &str) -> (Vec<Tag>, Vec<u8>) {
        let slot = |word: &str| match word.split_once(':') {
            Some((page, age)) => (Tag::of(page.parse().expect("a page")), age.parse().expect("an age")),
            None => (Tag::EMPTY, 0),
        };
        text.split(' ').map(slot).unzip()
    }

    fn shown(tags: &[Tag], ages: &[u8]) -> String {
        let slot = |(tag, age): (&Tag, &u8)| tag.page().map_or("-".to_string(), |page| format!("{page}:{age}"));
        tags.iter().zip(ages).map(slot).collect::<Vec<_>>().join(" ")
    }

    fn check(before: &str, pages: &[u32], eviction: Eviction, after: &str, misses: &[(usize, u32)]) {
        let (mut tags, mut ages) = slots(before);
        // Page 10 + i has a score of -i.
        let values: Vec<f32> = (0..10).map(|i| -(i as f32)).collect();
        let mut resolved = Resolved::default();
        resolve(pages, &mut tags, &mut ages, Scores { first_page: 10, values: &values }, eviction, &mut resolved);
        assert_eq!(shown(&tags, &ages), after, "{before}");
        let got: Vec<(usize, u32)> = resolved.misses.iter().map(|miss| (miss.at, miss.slot)).collect();
        assert_eq!(got, misses, "{before}");
    }

    #[test]
    fn victims_are_those_of_the_highest_buckets() {
        use Eviction::{Age, FadingScore, Score};
        check("- - -", &[11, 14], Age, "11:0 14:0 -", &[(0, 0), (1, 1)]);
        check("11:5 14:0 -", &[14, 15], Age, "11:6 14:0 15:0", &[(1, 2)]);
        check("11:5 14:7 12:5 13:0", &[10, 13], Age, "11:6 10:0 12:6 13:0", &[(0, 1)]);
        check("11:5 14:7 12:5 13:0", &[10, 13, 16], Age, "10:0 16:0 12:6 13:0", &[(0, 0), (2, 1)]);
        check("11:63 14:62 12:63", &[15], Age, "15:0 14:63 12:63", &[(0, 0)]);
        check("11:9 14:0 12:5", &[15], Score, "11:10 15:0 12:6", &[(0, 1)]);
        check("9:0 14:0 25:5", &[15, 16], Score, "15:0 14:1 16:0", &[(0, 0), (1, 2)]);
        check("11:9 14:0 12:5", &[], Score, "11:10 14:1 12:6", &[]);
        check("11:9 14:2 - 12:8", &[11, 15], FadingScore, "11:4 14:3 15:20 12:8", &[(1, 2)]);
        check("11:9 14:2 12:8", &[11, 15], FadingScore, "11:4 14:3 15:20", &[(1, 2)]);
    }

    #[test]
    fn the_youngest_pages_survive_a_cut() {
        for (before, kept, after, moves) in [
            ("1:3 2:1 3:0 4:1", 2, "3:0 2:1 - -", &[(2, 0)][..]),
            ("1:3 2:1 - 4:1", 3, "1:3 2:1 4:1 -", &[(3, 2)]),
            ("- - 3:0 4:1", 1, "3:0 - - -", &[(2, 0)]),
            ("1:3 2:1", 2, "1:3 2:1", &[]),
            ("1:3 2:1", 0, "- -", &[]),
        ] {
            let (mut tags, mut ages) = slots(before);
            let got = shrink(&mut tags, &mut ages, kept);
            let got: Vec<(u32, u32)> = got.iter().map(|one| (one.from, one.to)).collect();
            assert_eq!((shown(&tags, &ages).as_str(), &got[..]), (after, moves), "{before}");
        }
    }
}
