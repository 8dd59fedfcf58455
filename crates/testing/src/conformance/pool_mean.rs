//! `pool_mean`: the bytes of every page's vectors, whichever way the range is cut.

use super::MakeBackend;
use super::heads::{Heads, covered};
use super::selection_rig::{LAYER, MEANS, Rig, RigLane, RigSpec, selection};
use backend::reference::pool_mean::{mean_of_tokens, sum_of_tokens};
use backend::{IndexUnits, Runtime, VectorSummary};
use half::bf16;

const FORMS: [VectorSummary; 2] = [VectorSummary::MeanKey, VectorSummary::MeanKeyAndValueSum];

/// Whole ranges, ranges cut anywhere, page by page as lanes decode, by one and three threads: the reference's bytes.
///
/// # Panics
/// The backend does not conform.
pub fn pool_mean(make: MakeBackend<'_>) {
    let heads = [(16, 1), (48, 3), (64, 2), (96, 1), (128, 1)];
    for heads in covered(make, &heads.map(|(head_dim, kv_heads)| Heads::new(kv_heads, 2, head_dim))) {
        for threads in [1, 3] {
            let lanes = [5, 30, 155, 300].map(|len| (MEANS, selection(8, 0.1), len)).to_vec();
            let rig = Rig::new(make, &RigSpec { heads, lanes, seed: 1, threads });
            for form in FORMS {
                check(&rig, form);
            }
        }
    }
}

fn check(rig: &Rig, form: VectorSummary) {
    let op = |rt: &dyn Runtime, units: IndexUnits<'_>| rt.pool_mean(MEANS, LAYER, units, form);
    for lane in &rig.lanes {
        let end = lane.len / 8 * 8;
        rig.spoil_summaries();
        rig.index(lane, &[(0, end)], op);
        let whole = rig.summaries(lane);
        check_bytes(rig, lane, form, end / 8);
        rig.spoil_summaries();
        let cuts: Vec<(usize, usize)> = (0..end / 8).step_by(3).map(|p| (8 * p, end.min(8 * (p + 3)))).rev().collect();
        rig.index(lane, &cuts, op);
        assert_eq!(rig.summaries(lane), whole, "{form:?}: cut otherwise");
    }
    // Lanes decode from one token on: each unit is summarised in the step before it becomes indexed.
    rig.spoil_summaries();
    rig.lanes.iter().for_each(|lane| rig.start_at(lane, 0));
    let shortest = rig.lanes[0].len;
    for _ in 0..shortest {
        rig.step(|rt| rt.pool_mean(MEANS, LAYER, IndexUnits::Lanes, form));
    }
    let indexed = rig.lanes[0].selection.indexed_pages(shortest + 1);
    rig.lanes.iter().for_each(|lane| check_bytes(rig, lane, form, indexed));
}

/// The first `pages` pages of a lane have the reference's bytes.
fn check_bytes(rig: &Rig, lane: &RigLane, form: VectorSummary, pages: usize) {
    let d = rig.geometry.head_dim;
    let vectors = if form == VectorSummary::MeanKey { 1 } else { 2 };
    let row_pages = 16 / vectors;
    for head in 0..rig.geometry.kv_heads {
        for page in 0..pages {
            let tokens = 8 * page * d..8 * (page + 1) * d;
            let mut want = mean_of_tokens::<f32>(&rig.keys(lane, head)[tokens.clone()], d);
            if vectors == 2 {
                want.extend(sum_of_tokens::<f32>(&rig.values(lane, head)[tokens], d));
            }
            let want: Vec<u8> = want.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
            let at = page % row_pages * vectors * 2 * d;
            let frame = rig.summary(lane, page / row_pages, head);
            assert_eq!(frame[at..at + want.len()], want, "{form:?} of page {page}, KV head {head}, d {d}");
        }
    }
}
