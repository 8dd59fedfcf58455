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
use std::sync::{Mutex, PoisonError};

/// What the pool's frames hold as slots of a cache; empty where there is no host memory behind the pool.
pub struct SlotStates {
    /// `[layers][kv_heads][rows]`: what each frame holds, as a [`Tag`].
    tags: Array<u32>,
    /// `[layers][kv_heads][rows]`: steps since its page was selected.
    ages: Array<u8>,
    /// What the layer in work lacks; written by `resolve`, emptied by `retrieve`.
    fetches: Mutex<Vec<Fetch>>,
}

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
        Ok(SlotStates {
            tags: Array::zeros(what, frames)?,
            ages: Array::zeros(what, frames)?,
            fetches: Mutex::default(),
        })
    }

    fn at(&self, shape: &RuntimeShape, layer: usize, head: usize, row: RowId) -> usize {
        (layer * shape.geometry.kv_heads + head) * shape.pool_rows + row.at()
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
            for at in places.clone() {
                // SAFETY: by the caller's promise.
                let (tag, age) = unsafe { (self.tags.slice(at..at + 1)[0], self.ages.slice(at..at + 1)[0]) };
                scratch.tags.push(Tag(tag));
                scratch.ages.push(age);
            }
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
    let counted: Mutex<Vec<(LaneId, Retrieved)>> = Mutex::default();
    {
        let lanes = rt.lanes();
        let mut cached = lanes.of(algorithm);
        cached.retain(|(_, lane)| !lane.cache_rows.is_empty());
        let cost = cached.iter().map(|(_, lane)| 16 * heads * lane.cache_rows.len()).sum();
        rt.threads.each(cached.len() * heads, cost, |task| {
            let ((i, lane), head) = (&cached[task / heads], task % heads);
            let retrieved = resolve_head(rt, *i, lane, layer, head);
            counted.lock().unwrap_or_else(PoisonError::into_inner).push((lanes.active[*i], retrieved));
        });
    }
    let counted = counted.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !counted.is_empty() {
        let mut lanes = rt.lanes_mut();
        counted.into_iter().for_each(|(lane, retrieved)| lanes.lane_mut(lane).retrieved += retrieved);
    }
}

fn resolve_head(rt: &CpuRuntime, i: usize, lane: &Lane, layer: usize, head: usize) -> Retrieved {
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
            pages.extend((sink..end).filter(|p| bitmap[p / 32] >> (p % 32) & 1 == 1).map(|p| p as u32));
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
            states.fetches.lock().unwrap_or_else(PoisonError::into_inner).extend(fetches);
            let misses = resolved.misses.len() as u64;
            Retrieved { hits: pages.len() as u64 - misses, misses }
        })
    }
}

/// See [`crate::Runtime`].
pub(super) fn retrieve(rt: &CpuRuntime, layer: usize) {
    let mut fetches = rt.slots.fetches.lock().unwrap_or_else(PoisonError::into_inner);
    rt.threads.each(fetches.len(), fetches.len() * rt.shape.geometry.frame_elements(), |i| {
        let Fetch { source, target, head } = fetches[i];
        // SAFETY: a slot is filled by one fetch, and host memory is not written meanwhile.
        unsafe { rt.frame_mut(target, layer, head) }.copy_from_slice(rt.frame(source, layer, head));
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
