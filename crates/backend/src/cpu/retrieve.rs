//! Pages at home in host memory: which slot of its layer and head holds each, and how the others get there.
//!
//! The decisions are `kv::bucketed_lru`'s; here are the arrays that it works on, and the copies. Misses are waited for:
//! attention reads the same bytes in the same order wherever a page was, so residency never changes an answer.

use super::array::Array;
use super::lanes::Lane;
use super::runtime::CpuRuntime;
use crate::{AlgorithmId, BackendError, CacheChange, MemoryUse, Retrieved, RuntimeShape};
use kv::bucketed_lru::{self, AGE_UNKNOWN, Resolved, Scores, Tag};
use kv::{LaneId, PAGE_TOKENS, PageEntry, RowId};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the pool's frames hold as slots of a cache; empty where there is no host memory behind the pool.
pub struct SlotStates {
    /// `[layers][kv_heads][rows]`: what each frame holds, as a [`Tag`].
    tags: Array<u32>,
    /// `[layers][kv_heads][rows]`: steps since its page was selected.
    ages: Array<u8>,
    /// What `resolve` found in the layer in work.
    found: Mutex<Found>,
}

/// What the heads of a layer lack; kept from layer to layer, so that a step allocates nothing once it has grown.
#[derive(Default)]
struct Found {
    /// Emptied by `retrieve`.
    fetches: Vec<Fetch>,
    /// Of each head, on their way into the lanes; emptied by `resolve`.
    counted: Vec<(LaneId, Retrieved)>,
}

/// Elements that a task copies: a frame alone takes hardly longer than to claim it.
const TASK_ELEMENTS: usize = 16 << 10;

/// A page on its way into a slot.
#[derive(Clone, Copy, Debug)]
struct Fetch {
    source: RowId,
    target: RowId,
    head: usize,
}

/// One head's tags and ages, gathered slot by slot, and what `bucketed_lru` makes of them.
#[derive(Default)]
struct Scratch {
    tags: Vec<Tag>,
    ages: Vec<u8>,
    pages: Vec<u32>,
    resolved: Resolved,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl SlotStates {
    fn frames(shape: &RuntimeShape) -> usize {
        let pool_rows = if shape.dram_rows == 0 { 0 } else { shape.pool_rows };
        shape.geometry.layers * shape.geometry.kv_heads * pool_rows
    }

    /// A line of the memory plan.
    pub fn plan(shape: &RuntimeShape) -> MemoryUse {
        MemoryUse { name: "cache tags and ages", bytes: 5 * Self::frames(shape) as u64 }
    }

    /// All empty.
    ///
    /// # Errors
    /// No memory.
    pub fn new(shape: &RuntimeShape) -> Result<Self, BackendError> {
        let (what, frames) = ("cache tags and ages", Self::frames(shape));
        Ok(SlotStates { tags: Array::zeros(what, frames)?, ages: Array::zeros(what, frames)?, found: Mutex::default() })
    }

    fn at(&self, shape: &RuntimeShape, layer: usize, head: usize, row: RowId) -> usize {
        (layer * shape.geometry.kv_heads + head) * shape.pool_rows + row.at()
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a frame holds.
    pub fn tag(&self, shape: &RuntimeShape, layer: usize, head: usize, row: RowId) -> Tag {
        Tag(self.tags.all()[self.at(shape, layer, head, row)])
    }

    /// # Safety
    /// Nobody else reads or writes the frame's state meanwhile.
    unsafe fn set(&self, at: usize, tag: Tag, age: u8) {
        // SAFETY: by the caller's promise.
        unsafe { (self.tags.part(at..at + 1)[0], self.ages.part(at..at + 1)[0]) = (tag.0, age) };
    }

    /// Rows become slots: each of their frames holds the given page, or nothing.
    pub fn join(&self, shape: &RuntimeShape, rows: impl IntoIterator<Item = (RowId, Option<usize>)>) {
        for (row, page) in rows {
            let (tag, age) = page.map_or((Tag::EMPTY, 0), |page| (Tag::of(page), AGE_UNKNOWN));
            for layer in 0..shape.geometry.layers {
                for head in 0..shape.geometry.kv_heads {
                    // SAFETY: no op runs beside the ones between steps.
                    unsafe { self.set(self.at(shape, layer, head, row), tag, age) };
                }
            }
        }
    }

    /// Calls `work` with the tags and ages of a head's slots and keeps what it makes of them.
    ///
    /// # Safety
    /// Nobody else reads or writes these slots' states meanwhile.
    unsafe fn with_slots<R>(
        &self,
        places: impl Iterator<Item = usize> + Clone,
        work: impl FnOnce(&mut Scratch) -> R,
    ) -> R {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.tags.clear();
            scratch.ages.clear();
            // SAFETY: by the caller's promise.
            scratch.tags.extend(places.clone().map(|at| Tag(unsafe { self.tags.slice(at..at + 1)[0] })));
            // SAFETY: by the caller's promise.
            scratch.ages.extend(places.clone().map(|at| unsafe { self.ages.slice(at..at + 1)[0] }));
            let result = work(scratch);
            for (at, (tag, age)) in places.zip(scratch.tags.iter().zip(&scratch.ages)) {
                // SAFETY: by the caller's promise.
                unsafe { self.set(at, *tag, *age) };
            }
            result
        })
    }
}

/// See [`crate::Runtime`].
pub(super) fn resolve(rt: &CpuRuntime, algorithm: AlgorithmId, layer: usize) {
    let heads = rt.shape.geometry.kv_heads;
    {
        let lanes = rt.lanes();
        let mut cached = lanes.of(algorithm);
        cached.retain(|(_, lane)| !lane.cache_rows.is_empty());
        let cost = cached.iter().map(|(_, lane)| 16 * heads * lane.cache_rows.len()).sum();
        rt.threads.each(cached.len() * heads, cost, |task| {
            let ((i, lane), head) = (&cached[task / heads], task % heads);
            resolve_head(rt, (*i, lanes.active[*i], lane), layer, head);
        });
    }
    let (mut lanes, mut found) = (rt.lanes_mut(), rt.slots.found());
    found.counted.drain(..).for_each(|(lane, retrieved)| lanes.lane_mut(lane).retrieved += retrieved);
}

fn resolve_head(rt: &CpuRuntime, (i, id, lane): (usize, LaneId, &Lane), layer: usize, head: usize) {
    let (work, states, shape) = (&rt.work, &rt.slots, &rt.shape);
    let (sink, end) = (lane.selection.sink_pages(), lane.selection.cached_end(lane.len));
    let at = i * shape.geometry.kv_heads + head;
    let places = lane.cache_rows.iter().map(|row| states.at(shape, layer, head, *row));
    let bitmap = &work.selected.all()[at * work.bitmap_words..(at + 1) * work.bitmap_words];
    let scores = Scores { first_page: 0, values: &work.reduced.all()[at * work.max_pages..][..end] };
    // SAFETY: this task alone has the head's slots and its list.
    unsafe {
        states.with_slots(places, |Scratch { tags, ages, pages, resolved }| {
            pages.clear();
            for_each_set(bitmap, sink..end, |page| pages.push(page as u32));
            bucketed_lru::resolve(pages, tags, ages, scores, shape.eviction, resolved);
            // Selected pages follow the sink's in the list.
            let first = at * work.max_pages + sink;
            let entries = work.page_list.part(first..first + pages.len());
            for (entry, slot) in entries.iter_mut().zip(&resolved.slots) {
                *entry = PageEntry::new(lane.cache_rows[*slot as usize], 0, PAGE_TOKENS).0;
            }
            let fetches = resolved.misses.iter().map(|miss| Fetch {
                source: lane.kv_rows[pages[miss.at] as usize],
                target: lane.cache_rows[miss.slot as usize],
                head,
            });
            let misses = resolved.misses.len() as u64;
            let retrieved = Retrieved { hits: pages.len() as u64 - misses, misses };
            let mut found = states.found();
            found.fetches.extend(fetches);
            found.counted.push((id, retrieved));
        });
    }
}

/// The pages of `range` whose bit is set, ascending. Few are: a word is looked at once, and once more for each.
fn for_each_set(bitmap: &[u32], range: Range<usize>, mut work: impl FnMut(usize)) {
    for word in range.start / 32..range.end.div_ceil(32) {
        let mut bits = bitmap[word];
        if word == range.start / 32 {
            bits &= !0 << (range.start % 32);
        }
        if word == range.end / 32 {
            bits &= !(!0 << (range.end % 32));
        }
        while bits != 0 {
            work(32 * word + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
}

/// See [`crate::Runtime`].
pub(super) fn retrieve(rt: &CpuRuntime, layer: usize) {
    let fetches = &mut rt.slots.found().fetches;
    let elements = rt.shape.geometry.frame_elements();
    let part = (TASK_ELEMENTS / elements).max(1);
    rt.threads.each(fetches.len().div_ceil(part), fetches.len() * elements, |i| {
        for Fetch { source, target, head } in fetches[i * part..].iter().take(part) {
            // SAFETY: a slot is filled by one fetch, which is in one part, and host memory is not written meanwhile.
            unsafe { rt.frame_mut(*target, layer, *head) }.copy_from_slice(rt.frame(*source, layer, *head));
        }
    });
    fetches.clear();
}

/// See [`crate::Runtime`].
pub(super) fn change_cache(rt: &CpuRuntime, change: &CacheChange) {
    let mut lanes = rt.lanes_mut();
    let lane = lanes.lane_mut(change.lane);
    for (page, row) in &change.moves {
        lane.kv_rows[*page] = *row;
    }
    for (at, row) in &change.summary_moves {
        lane.summary_rows[*at] = *row;
    }
    if change.keep < lane.cache_rows.len() {
        shrink(rt, &lane.cache_rows, change.keep);
        lane.cache_rows.truncate(change.keep);
    }
    lane.cache_rows.extend(change.join.iter().map(|(row, _)| *row));
    rt.slots.join(&rt.shape, change.join.iter().copied());
}

/// Cuts a cache to its first `keep` rows; what is youngest stays.
fn shrink(rt: &CpuRuntime, cache_rows: &[RowId], keep: usize) {
    let geometry = rt.shape.geometry;
    rt.threads.each(geometry.layers * geometry.kv_heads, cache_rows.len() * geometry.row_bytes(), |task| {
        let (layer, head) = (task / geometry.kv_heads, task % geometry.kv_heads);
        let places = cache_rows.iter().map(|row| rt.slots.at(&rt.shape, layer, head, *row));
        // SAFETY: this task alone has the head's slots; moves go from dropped slots to kept ones.
        unsafe {
            rt.slots.with_slots(places, |Scratch { tags, ages, .. }| {
                for step in bucketed_lru::shrink(tags, ages, keep) {
                    let source = rt.frame(cache_rows[step.from as usize], layer, head);
                    rt.frame_mut(cache_rows[step.to as usize], layer, head).copy_from_slice(source);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_bits_of_a_range_are_found() {
        let bitmap = [0x8000_0001, 0, u32::MAX, 0x0000_0002];
        for range in [0..0, 0..1, 0..32, 1..31, 1..32, 31..64, 40..96, 70..75, 64..98, 5..128, 97..97] {
            let want: Vec<usize> = range.clone().filter(|p| bitmap[p / 32] >> (p % 32) & 1 == 1).collect();
            let mut got = Vec::new();
            for_each_set(&bitmap, range.clone(), |page| got.push(page));
            assert_eq!(got, want, "{range:?}");
        }
    }
}
