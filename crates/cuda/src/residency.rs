//! resolve, retrieve, and what changes where a lane's pages are: launches, and the host's count of each lane's slots.

use crate::abi::{Pointer, ResidencyArgument};
use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, Layout};
use crate::slots::{self, GROUP_SLOTS};
use backend::{AlgorithmId, Batch, CacheChange, HomeDelta, RuntimeShape};
use kv::bucketed_lru::{Eviction, Tag};
use kv::{LaneId, RowId};

/// Blocks that copy over the link: they saturate it and leave the other multiprocessors to attention.
pub(crate) const LINK_BLOCKS: usize = 8;

/// Threads of a block of all kernels here but `join_cache`.
const THREADS: usize = 512;

/// Moves of one launch: what any upload holds.
const MOVES_MAX: usize = 4096;

/// `Cache`, `Fetch` of kernels/runtime.cuh, in bytes.
const CACHE_BYTES: usize = 16;
const FETCH_BYTES: usize = 12;

/// What lanes with pages in host memory take on the device: nothing but counters where there is none.
pub(crate) fn lay_out(shape: &RuntimeShape, max_pages: usize, layout: &mut Layout) -> ResidencyArgument {
    let heads = shape.geometry.kv_heads;
    let (rows, slots) = if shape.dram_rows == 0 { (0, 0) } else { (shape.pool_rows, max_pages.min(shape.pool_rows)) };
    let places = if rows == 0 { 0 } else { GROUP_SLOTS * slots::groups(rows, shape.max_lanes) };
    let frames = shape.geometry.layers * heads * places;
    let int = |n: usize| i32::try_from(n).expect("sizes have 31 bits");
    ResidencyArgument {
        places: int(places),
        max_cache_rows: int(slots),
        eviction: match shape.eviction {
            Eviction::Age => 0,
            Eviction::Score => 1,
            Eviction::FadingScore => 2,
        },
        max_groups: int(slots.div_ceil(GROUP_SLOTS)),
        caches: layout.take(CACHE_BYTES * shape.max_lanes),
        cache_rows: layout.take(4 * shape.max_lanes * slots),
        groups: layout.take(4 * shape.max_lanes * slots.div_ceil(GROUP_SLOTS)),
        tags: layout.take(4 * frames),
        ages: layout.take(frames),
        fetches: layout.take(FETCH_BYTES * heads * rows),
        fetch_count: layout.take(8),
        host: 0,
    }
}

impl ResidencyArgument {
    /// Makes relative addresses absolute.
    pub(crate) fn shift(&mut self, base: Pointer) {
        let slots = [&mut self.caches, &mut self.cache_rows, &mut self.groups, &mut self.tags, &mut self.ages];
        slots.into_iter().chain([&mut self.fetches, &mut self.fetch_count]).for_each(|pointer| *pointer += base);
    }
}

/// See [`backend::Runtime`].
pub(crate) fn made_up_selection(rt: &CudaRuntime, algorithm: AlgorithmId, layer: usize, overlap: f32) {
    let grid = [rt.shape.geometry.kv_heads, rt.rows(Batch::Lanes), 1];
    let how = Launch { kernel: "made_up_selection", grid, threads: 256, shared: 0 };
    let changes = ((1.0 - overlap) * 65_536.0 + 0.5) as u32;
    rt.run(how, &[arg(&rt.argument), arg(&i32::from(algorithm.0)), arg(&(layer as i32)), arg(&changes)]);
}

/// See [`backend::Runtime`].
pub(crate) fn resolve(rt: &CudaRuntime, algorithm: AlgorithmId, layer: usize) {
    let (argument, heads) = (&rt.argument, rt.shape.geometry.kv_heads);
    let slots = argument.residency.max_cache_rows as usize;
    let shared = 8 * argument.bitmap_words as usize + 8 * slots.div_ceil(32) + slots;
    let how = Launch { kernel: "resolve", grid: [heads, rt.rows(Batch::Lanes), 1], threads: THREADS, shared };
    rt.run(how, &[arg(argument), arg(&i32::from(algorithm.0)), arg(&(layer as i32))]);
}

/// See [`backend::Runtime`].
pub(crate) fn retrieve(rt: &CudaRuntime, layer: usize) {
    let how = Launch { kernel: "retrieve", grid: [LINK_BLOCKS, 1, 1], threads: THREADS, shared: 0 };
    rt.run(how, &[arg(&rt.argument), arg(&(layer as i32))]);
    rt.set_behind_retrieve();
}

/// A lane's slots at its start, all empty.
pub(crate) fn start_cache(rt: &CudaRuntime, lane: LaneId, rows: &[RowId]) {
    let joins: Vec<(RowId, Option<usize>)> = rows.iter().map(|row| (*row, None)).collect();
    set_slots(rt, lane, 0, &joins);
}

/// See [`backend::Runtime`].
pub(crate) fn change_cache(rt: &CudaRuntime, change: &CacheChange) {
    // Rows that join may have been written aside.
    rt.join();
    let CacheChange { lane, moves, summary_moves, keep, join } = change;
    let word = |table: u32| move |&(at, row): &(usize, RowId)| [u32::from(lane.0), at as u32, row.0, table];
    let moves = moves.iter().map(word(0)).chain(summary_moves.iter().map(word(1)));
    move_rows(rt, &moves.collect::<Vec<_>>());
    let before = rt.slots.lock().expect("no op panicked").count(*lane);
    assert!(*keep <= before, "{lane} has {before} slots: {change:?}");
    if *keep < before {
        let geometry = rt.shape.geometry;
        let (grid, shared) = ([geometry.kv_heads, geometry.layers, 1], 16 * before.div_ceil(32) + before);
        let how = Launch { kernel: "shrink_cache", grid, threads: THREADS, shared };
        let id = i32::from(lane.0);
        rt.run(how, &[arg(&rt.argument), arg(&id), arg(&(before as i32)), arg(&(*keep as i32))]);
    }
    set_slots(rt, *lane, *keep, join);
}

/// A lane keeps its first `keep` slots and gets others, whose frames hold the given page, or nothing.
fn set_slots(rt: &CudaRuntime, lane: LaneId, keep: usize, joins: &[(RowId, Option<usize>)]) {
    let groups = {
        let mut slots = rt.slots.lock().expect("no op panicked");
        slots.change(lane, keep, joins.iter().map(|(row, _)| *row));
        slots.groups(lane).to_vec()
    };
    let (id, kept, count) = (i32::from(lane.0), keep as i32, joins.len() as i32);
    assert!(keep + joins.len() <= rt.argument.residency.max_cache_rows as usize, "{lane}: {keep} + {count} cache rows");
    let tag = |page: &Option<usize>| page.map_or(Tag::EMPTY, Tag::of).0;
    let words: Vec<u32> = joins.iter().flat_map(|(row, page)| [row.0, tag(page)]).collect();
    let [words, groups] = [words, groups].map(|words| (if words.is_empty() { 0 } else { rt.upload(&words) }, words));
    let group_count = groups.1.len() as i32;
    let how = Launch { kernel: "set_slots", grid: [1, 1, 1], threads: 256, shared: 0 };
    let shared = [arg(&rt.argument), arg(&words.0), arg(&id), arg(&kept), arg(&count)];
    rt.run(how, &[&shared[..], &[arg(&groups.0), arg(&group_count)]].concat());
    let planes = rt.shape.geometry.layers * rt.shape.geometry.kv_heads;
    let how = Launch { kernel: "join_cache", grid: [joins.len().div_ceil(256), planes, 1], threads: 256, shared: 0 };
    rt.run(how, &shared);
}

/// Pages are at home in other rows from the next step on.
pub(crate) fn move_homes(rt: &CudaRuntime, moves: &[HomeDelta]) {
    let moves = moves.iter().map(|moved| [u32::from(moved.lane.0), moved.page as u32, moved.row.0, 0]);
    move_rows(rt, &moves.collect::<Vec<_>>());
}

/// Places in lanes' tables get other rows: lane, place, row, and 1 for the summary table.
fn move_rows(rt: &CudaRuntime, moves: &[[u32; 4]]) {
    for moves in moves.chunks(MOVES_MAX) {
        let words = rt.upload(moves.as_flattened());
        let how = Launch { kernel: "move_rows", grid: [8, 1, 1], threads: 256, shared: 0 };
        rt.run(how, &[arg(&rt.argument), arg(&words), arg(&(moves.len() as i32))]);
    }
}
