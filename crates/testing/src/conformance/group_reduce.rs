//! `group_reduce`: log-softmax over the candidates, then the group's largest.

use super::MakeBackend;
use super::heads::{Heads, swept};
use super::selection_rig::{LAYER, MEANS, Rig, RigSpec, check_error, selection};
use backend::VectorSummary;
use backend::reference::group_reduce as reference;

/// Lengths around every border, groups of one to eight; the same bits from one thread and three.
///
/// # Panics
/// The backend does not conform.
pub fn group_reduce(make: MakeBackend<'_>) {
    for heads in swept(make, &[Heads::new(2, 8, 64)]) {
        let lanes: Vec<_> = [12, 28, 36, 90, 91, 98, 99, 3000].map(|len| (MEANS, selection(8, 0.1), len)).to_vec();
        let spec = RigSpec { heads, lanes, seed: 7, threads: 1 };
        let all = [1, 3].map(|threads| scores(&Rig::new(make, &RigSpec { threads, ..spec.clone() })));
        assert!(all[0] == all[1], "threads change scores");
    }
}

/// The bits of all reduced scores, checked.
fn scores(rig: &Rig) -> Vec<u32> {
    let form = VectorSummary::MeanKey;
    for lane in &rig.lanes {
        let whole = (0, lane.selection.indexed_tokens(lane.len));
        rig.index(lane, &[whole], |rt, units| rt.pool_mean(MEANS, LAYER, units, form));
    }
    rig.start();
    rig.step(|rt| {
        rt.score_dot(MEANS, LAYER, rig.q(), form);
        rt.group_reduce(MEANS);
    });
    let group = rig.q_heads / rig.geometry.kv_heads;
    let mut bits = Vec::new();
    for lane in &rig.lanes {
        let Some((candidates, _)) = rig.candidates(lane) else { continue };
        let scores = rig.runtime.read_page_scores(lane.lane, false);
        let reduced = rig.runtime.read_page_scores(lane.lane, true);
        let pages = candidates.end;
        for head in 0..rig.geometry.kv_heads {
            let of_head = |h: usize| scores[h * pages + candidates.start..(h + 1) * pages].to_vec();
            let heads: Vec<Vec<f32>> = (head * group..(head + 1) * group).map(of_head).collect();
            let (plain, exact) = (reference::group_reduce(&heads), reference::group_reduce(&heads));
            let got = &reduced[head * pages + candidates.start..(head + 1) * pages];
            check_error("group_reduce", got, &plain, &exact);
            bits.extend(got.iter().map(|x| x.to_bits()));
        }
    }
    bits
}
