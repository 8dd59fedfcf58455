//! `rotate_code`: a frame says what the reference says, up to numbers that lie on a rounding's edge, and its bytes do
//! not depend on how the range is cut. Rotations that are none are refused.

use super::MakeBackend;
use super::heads::{Heads, covered};
use super::selection_rig::{CODES, LAYER, Rig, RigLane, RigSpec, selection};
use backend::reference::rotate_code::{Decoded, rotate, statistics};
use backend::sketch::THRESHOLD;
use backend::{IndexUnits, Rotations, Runtime, Tensor, TensorData, WeightPart, WeightRole};
use half::bf16;

/// Frames of ranges cut in every way, of lanes as they decode, by one and three threads.
///
/// # Panics
/// The backend does not conform.
pub fn rotate_code(make: MakeBackend<'_>) {
    let heads = [(48, 2), (64, 2), (80, 1), (96, 1), (112, 1), (256, 1), (128, 2)];
    for heads in covered(make, &heads.map(|(head_dim, kv_heads)| Heads::new(kv_heads, 1, head_dim))) {
        let Heads { head_dim, kv_heads, .. } = heads;
        let lanes = vec![(CODES, selection(48, 0.1), 110), (CODES, selection(48, 0.1), 200)];
        let spec = RigSpec { heads, lanes, seed: 2, threads: 1 };
        let (rig, spread) = (Rig::new(make, &spec), Rig::new(make, &RigSpec { threads: 3, ..spec }));
        let [key, value] = &rig.rotations;
        let op =
            |rt: &dyn Runtime, units: IndexUnits<'_>| rt.rotate_code(CODES, LAYER, units, Rotations { key, value });
        let [key, value] = &spread.rotations;
        let op_spread =
            |rt: &dyn Runtime, units: IndexUnits<'_>| rt.rotate_code(CODES, LAYER, units, Rotations { key, value });
        for (lane, other) in rig.lanes.iter().zip(&spread.lanes) {
            let end = lane.len / 48 * 48;
            rig.spoil_summaries();
            rig.index(lane, &[(0, end)], op);
            let whole = rig.summaries(lane);
            for head in 0..kv_heads {
                (0..end / 48).for_each(|group| check_frame(&rig, lane, head, group));
            }
            rig.spoil_summaries();
            rig.index(lane, &(0..end).step_by(48).map(|t| (t, t + 48)).rev().collect::<Vec<_>>(), op);
            assert_eq!(rig.summaries(lane), whole, "cut otherwise, d {head_dim}");
            spread.spoil_summaries();
            spread.index(other, &[(0, end)], op_spread);
            assert_eq!(spread.summaries(other), whole, "by three threads, d {head_dim}");
        }
        decode(&rig);
    }
}

/// Lanes that decode from the first token on code each group in the step before it becomes indexed.
fn decode(rig: &Rig) {
    let lane = &rig.lanes[0];
    let [key, value] = &rig.rotations;
    let rotations = Rotations { key, value };
    rig.spoil_summaries();
    rig.index(lane, &[(0, 96)], |rt, units| rt.rotate_code(CODES, LAYER, units, rotations));
    let whole = rig.summaries(lane);
    rig.spoil_summaries();
    rig.lanes.iter().for_each(|lane| rig.start_at(lane, 0));
    for len in 1..lane.len {
        rig.step(|rt| rt.rotate_code(CODES, LAYER, IndexUnits::Lanes, rotations));
        let coded = lane.selection.indexed_tokens(len + 1) / 48 * rig.geometry.kv_heads;
        assert_eq!(rig.summaries(lane)[..coded], whole[..coded], "after the step at length {len}");
    }
}

/// `code` must be the number of thresholds below `centred`, unless one is within `slack` of it.
fn check_code(what: &str, code: u8, x: f64, mean: f32, deviation: f32) {
    let centred = x - f64::from(mean);
    let edges = [-1.0, 0.0, 1.0].map(|sign| sign * f64::from(THRESHOLD) * f64::from(deviation));
    let slack = 1e-5 * (x.abs() + f64::from(mean).abs() + f64::from(deviation));
    let least = edges.iter().filter(|edge| centred > **edge + slack).count() as u8;
    let most = edges.iter().filter(|edge| centred > **edge - slack).count() as u8;
    assert!((least..=most).contains(&code), "{what}: code {code}, {least} to {most} expected");
}

/// A bf16 of the frame must be `exact` rounded, up to half a unit and what f32 sums lose.
fn check_number(what: &str, got: f32, exact: f64, size: f64) {
    let unit = f64::from(bf16::EPSILON) * exact.abs();
    let bound = 0.5 * unit + 1e-5 * size;
    assert!((f64::from(got) - exact).abs() <= bound, "{what}: {got}, not {exact}");
}

fn check_frame(rig: &Rig, lane: &RigLane, head: usize, group: usize) {
    let d = rig.geometry.head_dim;
    let frame = rig.summary(lane, group, head);
    assert!(frame[28 * d + 192..].iter().all(|b| *b == 0), "the rest of a frame is zero");
    let decoded = Decoded::new(&frame);
    let tokens = group * 48 * d..(group + 1) * 48 * d;
    let matrix = head * d * d..(head + 1) * d * d;
    let keys: Vec<f64> = rotate(&rig.rotation_elements[0][matrix.clone()], &rig.keys(lane, head)[tokens.clone()], d);
    let values: Vec<f64> = rotate(&rig.rotation_elements[1][matrix], &rig.values(lane, head)[tokens], d);
    for c in 0..d {
        let channel: Vec<f64> = (0..48).map(|t| keys[t * d + c]).collect();
        let (mean, deviation) = statistics(&channel);
        check_number("a key mean", decoded.key_mean[c], mean, deviation);
        check_number("a key deviation", decoded.key_deviation[c], deviation, deviation);
        for (t, x) in channel.iter().enumerate() {
            let (mean, deviation) = (decoded.key_mean[c], decoded.key_deviation[c]);
            check_code("a key", decoded.key_codes[t * d + c], *x, mean, deviation);
        }
    }
    for t in 0..48 {
        let token = &values[t * d..(t + 1) * d];
        let (mean, deviation) = statistics(token);
        check_number("a value mean", decoded.value_mean[t], mean, deviation);
        check_number("a value deviation", decoded.value_deviation[t], deviation, deviation);
        for (c, x) in token.iter().enumerate() {
            let (mean, deviation) = (decoded.value_mean[t], decoded.value_deviation[t]);
            check_code("a value", decoded.value_codes[t * d + c], *x, mean, deviation);
        }
    }
}

/// What `prepare_weight` must refuse, by name.
///
/// # Panics
/// The backend takes one of them.
pub fn refused_rotations(make: MakeBackend<'_>) {
    let backend = make.backend(1);
    let refusal = |shape: [usize; 3], elements: Vec<f32>| {
        let weight = Tensor { name: "bad".to_string(), shape: shape.to_vec(), data: TensorData::F32(elements.into()) };
        let parts = [WeightPart { weight, bias: None }];
        backend.prepare_weight(WeightRole::Rotation, &parts).expect_err("no rotation").to_string()
    };
    let identity = |d: usize| (0..d * d).map(|i| f32::from(u8::from(i % (d + 1) == 0))).collect::<Vec<f32>>();
    let mut skewed = identity(64);
    skewed[5] = 2e-3;
    for (message, part) in [
        (refusal([1, 64, 64], skewed), "R R^T differs from I"),
        (refusal([1, 64, 64], vec![f32::NAN; 64 * 64]), "R R^T differs from I"),
        (refusal([1, 64, 32], vec![0.0; 64 * 32]), "of shape [1, 64, 32]"),
        (refusal([2, 64, 64], identity(64)), "of shape [2, 64, 64]"),
        (refusal([1, 32, 32], identity(32)), "head_dim 32"),
    ] {
        assert!(message.contains(part), "{message}");
    }
}
