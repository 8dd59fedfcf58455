//! `topk`: the page list, entry by entry, against sorting all candidates.

use super::MakeBackend;
use super::fixture::Random;
use super::heads::{Heads, swept};
use super::selection_rig::{CODES, LAYER, MEANS, Rig, RigSpec, selection};
use backend::VectorSummary;
use backend::made_up::MadeUp;
use backend::reference::topk as reference;
use kv::{PageEntry, Selection};

/// Every length modulo 48 and more, budgets from nothing to everything, lanes of both algorithms in one step.
///
/// # Panics
/// The backend does not conform.
pub fn topk(make: MakeBackend<'_>) {
    let mut random = Random(8);
    for (round, heads) in swept(make, &[Heads::new(2, 2, 64); 12]).into_iter().enumerate() {
        let mut lanes = Vec::new();
        for at in 0..8 {
            let budget = [0.0, 0.0156, 0.12, 0.5, 1.0][random.below(5)];
            let unit = if random.below(2) == 0 { 8 } else { 48 };
            let mut selection = Selection { sink_tokens: 8 * random.below(3), ..selection(unit, budget) };
            selection.window_tokens = random.below(80);
            selection.floor_tokens = random.below(2) * 64;
            selection.min_context = if random.below(4) == 0 { 200 } else { 0 };
            let len = 1 + 48 * random.below(8) + (round * 8 + at) % 48;
            lanes.push((if unit == 8 { MEANS } else { CODES }, selection, len));
        }
        lanes.push((MEANS, selection(8, 0.03), 9001));
        let spec = RigSpec { heads, lanes, seed: round as u64, threads: 1 + round % 3 };
        check(&Rig::new(make, &spec), round % 4 == 1);
    }
}

/// With `ties`, all queries are zero, so that all pages of mean keys have one score.
fn check(rig: &Rig, ties: bool) {
    if ties {
        rig.runtime.write(&rig.q, &vec![0.0; rig.queries.len()]);
    }
    let form = VectorSummary::MeanKey;
    for lane in rig.lanes.iter().filter(|lane| lane.algorithm == MEANS) {
        let whole = (0, lane.selection.indexed_tokens(lane.len));
        rig.index(lane, &[whole], |rt, units| rt.pool_mean(MEANS, LAYER, units, form));
    }
    rig.index_codes();
    rig.start();
    rig.step(|rt| {
        rt.score_dot(MEANS, LAYER, rig.q(), form);
        rt.score_codes(CODES, LAYER, rig.q(), &rig.rotations[0]);
        for algorithm in [CODES, MEANS] {
            rt.group_reduce(algorithm);
            rt.topk(algorithm);
        }
    });
    for lane in &rig.lanes {
        let reduced = rig.runtime.read_page_scores(lane.lane, true);
        for head in 0..rig.geometry.kv_heads {
            let all: Vec<usize> = (0..lane.kv_rows.len()).collect();
            let pages = match rig.candidates(lane) {
                None => all,
                Some((candidates, k)) => {
                    let scores = &reduced[head * candidates.end..][candidates.clone()];
                    let chosen = reference::topk(scores, candidates.start, k);
                    assert_eq!(chosen.len(), k);
                    let exact = |page: &usize| !candidates.contains(page) || chosen.binary_search(page).is_ok();
                    all.into_iter().filter(exact).collect()
                }
            };
            let entry = |page: &usize| PageEntry::new(lane.kv_rows[*page], 0, 8.min(lane.len - 8 * page));
            let want: Vec<PageEntry> = pages.iter().map(entry).collect();
            let got = rig.runtime.read_page_list(lane.lane, head);
            assert!(got == want, "{:?} at length {}: {got:?}, not {want:?}", lane.selection, lane.len);
            let tokens: usize = got.iter().map(|entry| entry.count()).sum();
            assert_eq!(tokens, lane.selection.exact_tokens(lane.len), "{:?} at {}", lane.selection, lane.len);
        }
    }
}

/// Made-up pages in the place of chosen ones, entry by entry.
///
/// # Panics
/// The backend does not conform.
pub fn made_up_selection(make: MakeBackend<'_>) {
    let lanes =
        vec![(MEANS, selection(8, 0.05), 3001), (CODES, selection(48, 0.2), 700), (MEANS, selection(8, 0.1), 9)];
    let rig = Rig::new(make, &RigSpec { heads: Heads::new(2, 2, 64), lanes, seed: 4, threads: 2 });
    rig.step(|rt| {
        for algorithm in [CODES, MEANS] {
            rt.group_reduce(algorithm);
            rt.topk(algorithm);
            rt.made_up_selection(algorithm, LAYER, 0.8);
        }
    });
    for lane in rig.lanes.iter().filter(|lane| rig.candidates(lane).is_some()) {
        let (candidates, k) = rig.candidates(lane).expect("it selects");
        for head in 0..rig.geometry.kv_heads {
            let (lane_number, budget) = (lane.lane.0, lane.selection.budget);
            let made_up = MadeUp { lane: lane_number, layer: LAYER, head, overlap: 0.8, budget };
            let page = |n| made_up.page(n, k, candidates.start, candidates.end, lane.len);
            assert_eq!(rig.selected(lane, head), (0..k).map(page).collect::<Vec<_>>(), "{} head {head}", lane.lane);
        }
    }
}
