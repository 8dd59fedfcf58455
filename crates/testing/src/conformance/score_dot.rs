//! `score_dot`: every query head against every indexed page's mean key.

use super::MakeBackend;
use super::heads::{Heads, swept};
use super::selection_rig::{CODES, LAYER, MEANS, Rig, RigSpec, check_error, selection};
use backend::VectorSummary;
use backend::reference::score_dot as reference;
use half::bf16;

/// Awkward lengths, heads and groups, beside lanes of another algorithm; one thread and three give the same bits.
///
/// # Panics
/// The backend does not conform.
pub fn score_dot(make: MakeBackend<'_>) {
    let awkward = [(1, 1, 16), (2, 3, 48), (2, 2, 64), (1, 4, 80), (2, 7, 128)];
    for heads in swept(make, &awkward.map(|(kv_heads, group, d)| Heads::new(kv_heads, group, d))) {
        for form in [VectorSummary::MeanKey, VectorSummary::MeanKeyAndValueSum] {
            let lengths = [19, 27, 163, 200, 1100];
            let mut lanes: Vec<_> = lengths.iter().map(|len| (MEANS, selection(8, 0.1), *len)).collect();
            lanes.insert(1, (CODES, selection(48, 0.1), 100));
            let spec = RigSpec { heads, lanes, seed: 3, threads: 1 };
            let all = [1, 3].map(|threads| scores(&Rig::new(make, &RigSpec { threads, ..spec.clone() }), form));
            assert!(all[0] == all[1], "threads change scores");
        }
    }
}

/// The bits of all scores, checked.
fn scores(rig: &Rig, form: VectorSummary) -> Vec<u32> {
    let d = rig.geometry.head_dim;
    let vectors = if form == VectorSummary::MeanKey { 1 } else { 2 };
    let mut bits = Vec::new();
    for lane in rig.lanes.iter().filter(|lane| lane.algorithm == MEANS) {
        let whole = (0, lane.selection.indexed_tokens(lane.len));
        rig.index(lane, &[whole], |rt, units| rt.pool_mean(MEANS, LAYER, units, form));
    }
    rig.start();
    rig.step(|rt| rt.score_dot(MEANS, LAYER, rig.q(), form));
    for (i, lane) in rig.lanes.iter().enumerate().filter(|(_, lane)| lane.algorithm == MEANS) {
        // Lanes that attend every token exactly are not scored.
        if rig.candidates(lane).is_none() {
            continue;
        }
        let pages = lane.selection.indexed_pages(lane.len);
        let got = rig.runtime.read_page_scores(lane.lane, false);
        for h in 0..rig.q_heads {
            let vector = |page: usize| {
                let frame = rig.summary(lane, page / (16 / vectors), h / (rig.q_heads / rig.geometry.kv_heads));
                let at = page % (16 / vectors) * vectors * 2 * d;
                let bytes = frame[at..at + 2 * d].to_vec();
                bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect::<Vec<f32>>()
            };
            let keys: Vec<f32> = (0..pages).flat_map(vector).collect();
            let (plain, exact) =
                (reference::score_dot(rig.query(i, h), &keys), reference::score_dot(rig.query(i, h), &keys));
            check_error("score_dot", &got[h * pages..(h + 1) * pages], &plain, &exact);
        }
        bits.extend(got.iter().map(|x| x.to_bits()));
    }
    bits
}
