//! Long launches of `score_codes` deal their work to whichever warp is ready; short ones share it out beforehand. No
//! conformance suite is that long: here lanes in company must get the scores that each gets alone.

use crate::arguments::Arguments;
use crate::rates::bed::{Bed, BedSpec, D, KV_HEADS, Q_HEADS};
use backend::{Backend, IndexUnits, Rotations, View, WeightRole};
use kv::PAGE_TOKENS;
use kv::geometry::SKETCH_TOKENS;
use sparse::{Specs, default_rotation, rotation_parts};

/// More than sixteen units of scoring for every warp of a large GPU.
const LANES: usize = 20;

/// Of each lane.
const TOKENS: usize = 55_000;

/// Lanes that are scored alone, too.
const ALONE: [usize; 4] = [0, 7, 14, LANES - 1];

/// Compares to the bit.
pub(crate) fn check(arguments: &Arguments) -> String {
    let backend = arguments.backend(false, None);
    let bed = Bed::new(&backend, BedSpec { layers: 1, lanes: LANES, tokens: TOKENS, summaries: true });
    bed.fill();
    let specs = Specs::of(bed.shape.geometry);
    let id = specs.by_name("sketch").expect("a known algorithm");
    let selection = specs.get(id).selection();
    let parts = rotation_parts(bed.shape.geometry, default_rotation(D).repeat(KV_HEADS));
    let rotation = backend.prepare_weight(WeightRole::Rotation, &parts).expect("a rotation");
    let rotations = Rotations { key: &rotation, value: &rotation };
    for [kv_rows, summary_rows] in &bed.tables {
        let units = IndexUnits::Rows { kv_rows, summary_rows, tokens: (0, TOKENS / SKETCH_TOKENS * SKETCH_TOKENS) };
        bed.runtime.enqueue(&mut || bed.runtime.rotate_code(id, 0, units, rotations));
    }
    bed.set(id, selection);
    // A query of its own for every lane: keys are all lanes' alike.
    let q = bed.noise(LANES, Q_HEADS * D, 5);
    // Page scores, and then token logits.
    let scores = |lanes: &[usize], q: View<'_>, of: &[usize]| -> Vec<[Vec<f32>; 2]> {
        bed.step(lanes, &|| bed.runtime.score_codes(id, 0, q, &rotation));
        let read = |lane| [bed.runtime.read_page_scores(lane, false), bed.runtime.read_token_logits(lane)];
        of.iter().map(|lane| read(Bed::lane(*lane))).collect()
    };
    let all: Vec<usize> = (0..LANES).collect();
    for round in 0..3 {
        let company = scores(&all, (&q).into(), &ALONE);
        for (lane, company) in ALONE.iter().zip(&company) {
            let alone = &scores(&[*lane], q.from_row(*lane), &[*lane])[0];
            let pages = Q_HEADS * selection.indexed_pages(TOKENS);
            assert_eq!(alone.each_ref().map(Vec::len), [pages, pages * PAGE_TOKENS]);
            assert!(alone == company, "round {round}: lane {lane} alone and in company");
        }
        assert!(company[0] != company[1], "queries differ");
    }
    format!("{LANES} lanes of {TOKENS} tokens")
}
