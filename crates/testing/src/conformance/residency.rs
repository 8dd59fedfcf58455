//! Pages at home in host memory: `resolve` and `retrieve` step after step, `change_cache`, and what else reads homes,
//! against `kv::bucketed_lru` over the device's own scores, and against the bytes of every page's home.

use super::MakeBackend;
use super::fixture::Random;
use super::heads::{Heads, covered};
use super::selection_rig::{CODES, LAYER, MEANS, Rig, RigLane, RigSpec, selection};
use backend::reference::topk::topk;
use backend::{CacheChange, FirstInput, HomeDelta, LaneStart, Retrieved, RowCopy, Sampling, VectorSummary};
use kv::bucketed_lru::{self, AGE_UNKNOWN, Eviction, Resolved, Scores, Tag};
use kv::{LaneId, PAGE_TOKENS, PageEntry, RowId, Selection, geometry};

/// Steps of a lane: two of them make pages leave its window.
const STEPS: usize = 18;

/// One lane's cache, as it should be.
struct Model {
    /// The homes of its pages.
    homes: Vec<RowId>,
    /// Its cache rows.
    slots: Vec<RowId>,
    /// Tags and ages of each head's slots.
    heads: Vec<(Vec<Tag>, Vec<u8>)>,
}

/// Every policy, caches of all sizes, contexts that grow, lanes with and without pages in host memory.
///
/// # Panics
/// The backend does not conform.
pub fn residency(make: MakeBackend<'_>) {
    let heads = covered(make, &[Heads::new(2, 2, 64), Heads::new(3, 1, 96), Heads::new(1, 4, 128)]);
    for (round, heads) in heads.into_iter().enumerate() {
        for eviction in [Eviction::Age, Eviction::Score, Eviction::FadingScore] {
            let lanes = vec![
                (MEANS, selection(8, 0.1), 700 + round),
                (MEANS, selection(8, 1.0), 203),
                (CODES, selection(48, 0.12), 655),
                (MEANS, Selection { min_context: 10_000, ..selection(8, 0.1) }, 90),
                (MEANS, selection(8, 0.02), 3001),
            ];
            let spec = RigSpec { heads, lanes, seed: round as u64, threads: 2 };
            check(&mut Rig::with_host(make, &spec, eviction), eviction, &mut Random(77 + round as u64));
        }
    }
}

fn check(rig: &mut Rig, eviction: Eviction, random: &mut Random) {
    rig.wait_for_host();
    let mut free: Vec<RowId> = rig.spare_rows.clone();
    let mut host = (0..rig.runtime.dram_rows() as u32).map(RowId::dram);
    index(rig);
    let mut models: Vec<Model> = Vec::new();
    for lane in rig.lanes.clone() {
        models.push(start(rig, &lane, &mut free, &mut host, random));
    }
    for step in 0..STEPS {
        let moves = leave(rig, &mut models, &mut host, step);
        let queries = drift(&rig.queries, random);
        rig.set_queries(queries);
        let outputs = rig.retrieving_step(&moves);
        for (i, lane) in rig.lanes.iter().enumerate() {
            let at = lane.len - STEPS + step + 1;
            let want = expect(rig, lane, at, &mut models[i], eviction);
            assert_eq!(outputs[i].retrieved, want, "{eviction:?} step {step} of {}", lane.lane);
            verify(rig, lane, &models[i]);
        }
        change(rig, &mut models, &mut free, random);
    }
}

/// Summaries of everything, from rows in the pool, and the same bytes from homes in host memory.
fn index(rig: &Rig) {
    for lane in rig.lanes.iter().filter(|lane| lane.algorithm == MEANS) {
        let whole = (0, lane.selection.indexed_tokens(lane.len));
        rig.index(lane, &[whole], |rt, units| rt.pool_mean(MEANS, LAYER, units, VectorSummary::MeanKey));
    }
    rig.index_codes();
    for lane in &rig.lanes {
        let (before, whole) = (rig.summaries(lane), (0, lane.selection.indexed_tokens(lane.len)));
        let moved: Vec<RowId> = (0..lane.kv_rows.len() as u32).map(RowId::dram).collect();
        copy(rig, lane.kv_rows.iter().copied().zip(moved.iter().copied()));
        let lane = RigLane { kv_rows: moved, ..lane.clone() };
        match lane.algorithm == MEANS {
            true => rig.index(&lane, &[whole], |rt, units| rt.pool_mean(MEANS, LAYER, units, VectorSummary::MeanKey)),
            false => rig.index_codes_of(&lane),
        }
        assert!(rig.summaries(&lane) == before, "{}: summaries of pages in host memory", lane.lane);
    }
}

fn copy(rig: &Rig, pairs: impl Iterator<Item = (RowId, RowId)>) {
    let copies: Vec<RowCopy> = pairs.map(|(source, target)| RowCopy { source, target }).collect();
    rig.runtime.copy_rows(&copies);
}

/// Puts a lane `STEPS` tokens before its length, with all candidates in host memory, and nothing but noise where they
/// were.
fn start(
    rig: &Rig,
    lane: &RigLane,
    free: &mut Vec<RowId>,
    host: &mut impl Iterator<Item = RowId>,
    random: &mut Random,
) -> Model {
    let len = lane.len - STEPS;
    let (first, end) = (lane.selection.sink_pages(), lane.selection.cached_end(len));
    let mut homes = lane.kv_rows[..geometry::pages(lane.len)].to_vec();
    for page in first..end {
        move_page(rig, &mut homes, page, host.next().expect("a row of host memory for each page"));
    }
    let most = lane.selection.selected_pages(lane.len);
    // A lane whose every token is exact is fully resident.
    let slots = if most == 0 { 0 } else { most + random.below(2 * most + 40) };
    let slots: Vec<RowId> = (0..slots).map(|_| free.swap_remove(random.below(free.len()))).collect();
    rig.runtime.start_lane(&LaneStart {
        lane: lane.lane,
        algorithm: lane.algorithm,
        selection: lane.selection,
        len,
        first: FirstInput::Prompt { token: 0, outputs: STEPS },
        kv_rows: homes.clone(),
        summary_rows: lane.summary_rows.clone(),
        cache_rows: slots.clone(),
        sampling: Sampling::default(),
        prompt: Vec::new(),
        mask: None,
    });
    let heads = vec![(vec![Tag::EMPTY; slots.len()], vec![0; slots.len()]); rig.geometry.kv_heads];
    Model { homes, slots, heads }
}

fn move_page(rig: &Rig, homes: &mut [RowId], page: usize, target: RowId) {
    copy(rig, [(homes[page], target)].into_iter());
    for head in 0..rig.geometry.kv_heads {
        rig.runtime.write_frame(homes[page], LAYER, head, &vec![0xa5; rig.geometry.page_bytes()]);
    }
    homes[page] = target;
}

/// Pages that the step only reads if it selects them go to host memory before it.
fn leave(rig: &Rig, models: &mut [Model], host: &mut impl Iterator<Item = RowId>, step: usize) -> Vec<HomeDelta> {
    let mut moves = Vec::new();
    for (lane, model) in rig.lanes.iter().zip(models) {
        let len = lane.len - STEPS + step + 1;
        let (before, now) = (lane.selection.cached_end(len - 1), lane.selection.cached_end(len));
        for page in before..now {
            move_page(rig, &mut model.homes, page, host.next().expect("a row of host memory for each page"));
            moves.push(HomeDelta { lane: lane.lane, page, row: model.homes[page] });
        }
    }
    moves
}

/// Queries that are much like the last ones, so that some pages are selected again.
fn drift(queries: &[f32], random: &mut Random) -> Vec<f32> {
    let noise = random.rounded(queries.len(), 1.0);
    queries.iter().zip(noise).map(|(q, noise)| half::bf16::from_f32(0.7 * q + 0.7 * noise).to_f32()).collect()
}

/// What a step at `len` should do to a lane's cache, by the scores that the device has; checks its page lists.
fn expect(rig: &Rig, lane: &RigLane, len: usize, model: &mut Model, eviction: Eviction) -> Retrieved {
    let k = lane.selection.selected_pages(len);
    let (sink, end) = (lane.selection.sink_pages(), lane.selection.cached_end(len));
    let (mut total, mut resolved) = (Retrieved::default(), Resolved::default());
    let reduced = rig.runtime.read_page_scores(lane.lane, true);
    for (head, (tags, ages)) in model.heads.iter_mut().enumerate() {
        let indexed = lane.selection.indexed_pages(len);
        let values = &reduced[head * indexed..(head + 1) * indexed];
        let chosen = if k == 0 { Vec::new() } else { topk(&values[sink..], sink, k) };
        let pages: Vec<u32> = chosen.iter().map(|page| *page as u32).collect();
        bucketed_lru::resolve(&pages, tags, ages, Scores { first_page: 0, values }, eviction, &mut resolved);
        let misses = resolved.misses.len() as u64;
        total += Retrieved { hits: pages.len() as u64 - misses, misses };
        let entry = |page: usize| PageEntry::new(model.homes[page], 0, PAGE_TOKENS.min(len - page * PAGE_TOKENS));
        let cached = resolved.slots.iter().map(|slot| PageEntry::new(model.slots[*slot as usize], 0, PAGE_TOKENS));
        let want: Vec<PageEntry> =
            (0..sink).map(entry).chain(cached).chain((end..geometry::pages(len)).map(entry)).collect();
        let got = rig.runtime.read_page_list(lane.lane, head);
        assert!(got == want, "{} head {head} at {len}: {got:?}, not {want:?}", lane.lane);
    }
    total
}

/// Tags are the model's, and every slot holds its page's bytes.
fn verify(rig: &Rig, lane: &RigLane, model: &Model) {
    for (head, (tags, _)) in model.heads.iter().enumerate() {
        assert_eq!(&rig.runtime.read_tags(lane.lane, LAYER, head), tags, "{} head {head}", lane.lane);
        for (row, tag) in model.slots.iter().zip(tags) {
            let Some(page) = tag.page() else { continue };
            let frames = [*row, model.homes[page]].map(|row| rig.runtime.read_frame(row, LAYER, head));
            assert!(frames[0] == frames[1], "{} head {head}: page {page} in {row}", lane.lane);
        }
    }
}

/// A lane gets fewer slots, or more, some of which hold a page already.
fn change(rig: &Rig, models: &mut [Model], free: &mut Vec<RowId>, random: &mut Random) {
    let at = random.below(models.len());
    let (lane, model) = (&rig.lanes[at], &mut models[at]);
    let (most, has) = (lane.selection.selected_pages(lane.len), model.slots.len());
    if most == 0 {
        return;
    }
    let keep = most + random.below(has - most + 1);
    let join: Vec<(RowId, Option<usize>)> =
        (0..random.below(4)).map(|_| (free.swap_remove(random.below(free.len())), None)).collect();
    rig.runtime.change_cache(&CacheChange { keep, join: join.clone(), ..CacheChange::of(lane.lane) });
    for (tags, ages) in &mut model.heads {
        bucketed_lru::shrink(tags, ages, keep);
        tags.truncate(keep);
        ages.truncate(keep);
        tags.extend(join.iter().map(|_| Tag::EMPTY));
        ages.extend(join.iter().map(|_| 0));
    }
    free.extend(model.slots.drain(keep..));
    model.slots.extend(join.iter().map(|(row, _)| *row));
    verify(rig, lane, model);
}

/// A fully resident lane's rows become slots that hold their pages, and pages go to host memory at once.
///
/// # Panics
/// The backend does not conform.
pub fn emptied(make: MakeBackend<'_>) {
    let heads = covered(make, &[Heads::new(2, 2, 64)])[0];
    let spec = RigSpec { heads, lanes: vec![(MEANS, selection(8, 0.1), 600)], seed: 3, threads: 1 };
    let mut rig = Rig::with_host(make, &spec, Eviction::FadingScore);
    rig.wait_for_host();
    index(&rig);
    let lane = rig.lanes[0].clone();
    rig.start_at(&lane, lane.len - STEPS);
    let (sink, end) = (lane.selection.sink_pages(), lane.selection.cached_end(lane.len - STEPS + 1));
    let mut homes = lane.kv_rows.clone();
    let moves: Vec<(usize, RowId)> = (sink..end).map(|page| (page, RowId::dram(1000 + page as u32))).collect();
    copy(&rig, moves.iter().map(|(page, target)| (homes[*page], *target)));
    let join: Vec<(RowId, Option<usize>)> = (end - 20..end).rev().map(|page| (homes[page], Some(page))).collect();
    moves.iter().for_each(|(page, target)| homes[*page] = *target);
    rig.runtime.change_cache(&CacheChange { moves, join: join.clone(), ..CacheChange::of(lane.lane) });
    let tags: Vec<Tag> = join.iter().map(|(_, page)| page.map_or(Tag::EMPTY, Tag::of)).collect();
    let heads = vec![(tags, vec![AGE_UNKNOWN; join.len()]); rig.geometry.kv_heads];
    let mut model = Model { homes, slots: join.iter().map(|(row, _)| *row).collect(), heads };
    verify(&rig, &lane, &model);
    for step in 0..4 {
        let queries = drift(&rig.queries, &mut Random(step));
        rig.set_queries(queries);
        let outputs = rig.retrieving_step(&[]);
        let want = expect(&rig, &lane, lane.len - STEPS + step as usize + 1, &mut model, Eviction::FadingScore);
        assert_eq!((outputs[0].lane, outputs[0].retrieved), (LaneId(1), want), "step {step}");
        verify(&rig, &lane, &model);
    }
}
