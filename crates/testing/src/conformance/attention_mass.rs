//! `attention_mass`: what `sample` reports of it.

use super::MakeBackend;
use super::heads::{Heads, swept};
use super::selection_rig::{CODES, LAYER, MEANS, Rig, RigSpec, selection};
use backend::reference::group_reduce::log_sum_exp;
use backend::reference::score_dot::score_dot;
use backend::{AlgorithmSet, SampleTarget, StepInput, StepKey};

/// Partials of known log-sum-exps; lanes of two algorithms, of which one is measured, twice (as two layers would).
///
/// # Panics
/// The backend does not conform.
pub fn attention_mass(make: MakeBackend<'_>) {
    let awkward = [Heads::new(1, 1, 16), Heads::new(2, 2, 64), Heads::new(1, 3, 80), Heads::new(2, 4, 128)];
    for heads in swept(make, &awkward) {
        let lanes =
            vec![(MEANS, selection(8, 0.1), 7), (CODES, selection(48, 0.1), 60), (MEANS, selection(8, 0.1), 301)];
        let mut bits = Vec::new();
        for threads in [1, 3] {
            let rig = Rig::new(make, &RigSpec { heads, lanes: lanes.clone(), seed: 10, threads });
            bits.push(check(&rig));
        }
        assert_eq!(bits[0], bits[1], "threads change the mass");
    }
}

fn check(rig: &Rig) -> Vec<Option<u32>> {
    let group = rig.q_heads / rig.geometry.kv_heads;
    let (out, mut lse) = (rig.partial(), Vec::new());
    let mut want = Vec::new();
    for (i, lane) in rig.lanes.iter().enumerate() {
        let mut mass = 0.0;
        for h in 0..rig.q_heads {
            let logits: Vec<f64> = score_dot(rig.query(i, h), rig.keys(lane, h / group));
            let part = log_sum_exp(&logits) as f32 - 0.1 * (1 + h + i) as f32;
            lse.push(part);
            mass += (f64::from(part) - log_sum_exp(&logits)).exp();
        }
        want.push((lane.algorithm == MEANS).then_some(mass / rig.q_heads as f64));
    }
    rig.runtime.write(&out.lse, &lse);
    let logits = rig.backend.buffer("logits", rig.lanes.len(), 16).expect("logits fit");
    let active = rig.lanes.iter().map(|lane| lane.lane).collect();
    let key = StepKey {
        bucket: 3,
        algorithms: AlgorithmSet::default().with(MEANS).with(CODES),
        measure_mass: true,
        retrieves: false,
    };
    let ticket = rig.runtime.launch(key, &StepInput { active, ..StepInput::default() }, &mut || {
        rig.runtime.attention_mass(MEANS, LAYER, rig.q(), &out);
        rig.runtime.attention_mass(MEANS, LAYER, rig.q(), &out);
        rig.runtime.sample((&logits).into(), SampleTarget::Lanes);
    });
    let output = rig.runtime.collect(ticket).expect("the device works");
    let masses: Vec<Option<f32>> = output.lanes.iter().map(|lane| lane.attention_mass).collect();
    for (got, want) in masses.iter().zip(&want) {
        match (got, want) {
            (Some(got), Some(want)) => assert!((f64::from(*got) - want).abs() < 1e-5, "{got}, not {want}"),
            (None, None) => (),
            _ => panic!("{got:?}, not {want:?}"),
        }
    }
    masses.iter().map(|mass| mass.map(f32::to_bits)).collect()
}
