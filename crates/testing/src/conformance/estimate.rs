//! `estimate`: approximate attention over the candidates that were not selected, and over nothing else.

use super::MakeBackend;
use super::heads::{Heads, swept};
use super::selection_rig::{CODES, LAYER, MEANS, Rig, RigLane, RigSpec, check_error, check_error_rounded, selection};
use backend::reference::estimate::{estimate as reference, rotate_back};
use backend::reference::rotate_code::Decoded;
use backend::{EstimateSource, VectorSummary};
use half::bf16;
use std::collections::BTreeMap;

/// What a lane's head adds up.
struct Items {
    logits: Vec<f32>,
    /// Of each item, `[d]`.
    value_sums: Vec<Vec<f32>>,
    /// Tokens of an item.
    count: usize,
    /// Six standard deviations of what rounding a group's weights to 8 bits adds to an output.
    rounding: f64,
}

/// Both sources in one step, with lanes without unselected candidates and lanes beyond one split; the same bits from
/// one thread and three.
///
/// # Panics
/// The backend does not conform.
pub fn estimate(make: MakeBackend<'_>) {
    let awkward = [Heads::new(2, 3, 48), Heads::new(2, 2, 64)];
    for heads in swept(make, &awkward) {
        let longest = match heads.head_dim {
            48 => 9000,
            64 if heads.group == 2 && !make.is_reduced() => 17_000,
            _ => 600 + 40 * heads.group,
        };
        let lanes = vec![
            (MEANS, selection(8, 0.1), 300),
            (CODES, selection(48, 0.1), 301),
            (CODES, selection(48, 1.0), 302),
            (CODES, selection(48, 0.1), 30),
            (MEANS, selection(8, 1.0), 303),
            (CODES, selection(48, 0.01), longest),
            (MEANS, selection(8, 0.02), longest),
        ];
        let spec = RigSpec { heads, lanes, seed: 9, threads: 1 };
        let all = [1, 3].map(|threads| run(&Rig::new(make, &RigSpec { threads, ..spec.clone() }), threads == 1));
        assert!(all[0] == all[1], "threads change estimates");
    }
}

fn run(rig: &Rig, check: bool) -> Vec<u32> {
    let form = VectorSummary::MeanKeyAndValueSum;
    for lane in rig.lanes.iter().filter(|lane| lane.algorithm == MEANS) {
        let whole = (0, lane.selection.indexed_tokens(lane.len));
        rig.index(lane, &[whole], |rt, units| rt.pool_mean(MEANS, LAYER, units, form));
    }
    rig.index_codes();
    let out = rig.partial();
    rig.start();
    rig.step(|rt| {
        rt.score_dot(MEANS, LAYER, rig.q(), form);
        rt.score_codes(CODES, LAYER, rig.q(), &rig.rotations[0]);
        for algorithm in [CODES, MEANS] {
            rt.group_reduce(algorithm);
            rt.topk(algorithm);
        }
        rt.estimate(MEANS, LAYER, EstimateSource::Vectors, rig.q(), &out);
        let source = EstimateSource::Codes { value_rotation: &rig.rotations[1] };
        rt.estimate(CODES, LAYER, source, rig.q(), &out);
    });
    let (output, lse) = (rig.runtime.read(&out.output), rig.runtime.read(&out.lse));
    let d = rig.geometry.head_dim;
    for (i, lane) in rig.lanes.iter().enumerate().filter(|_| check) {
        for h in 0..rig.q_heads {
            let row = i * rig.q_heads + h;
            check_head(rig, lane, h, &output[row * d..(row + 1) * d], lse[row]);
        }
    }
    output.iter().chain(&lse).map(|x| x.to_bits()).collect()
}

fn check_head(rig: &Rig, lane: &RigLane, h: usize, output: &[f32], lse: f32) {
    let d = rig.geometry.head_dim;
    let head = h / (rig.q_heads / rig.geometry.kv_heads);
    let Items { logits, value_sums: values, count, rounding } = items(rig, lane, h, head);
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let wide_values: Vec<Vec<f64>> = values.iter().map(|v| wide(v)).collect();
    let (mut plain, plain_lse) = reference(&logits, &values, count, d);
    let (mut exact, exact_lse) = reference(&wide(&logits), &wide_values, count, d);
    let (Some(plain_lse), Some(exact_lse)) = (plain_lse, exact_lse) else {
        assert!(lse == f32::NEG_INFINITY && output.iter().all(|x| *x == 0.0), "nothing to estimate: {lse} {output:?}");
        return;
    };
    if lane.algorithm == CODES {
        let matrix = &rig.rotation_elements[1][head * d * d..(head + 1) * d * d];
        (plain, exact) = (rotate_back(matrix, &plain), rotate_back(matrix, &exact));
    }
    let what = format!("estimate {:?}, length {}, d {d}", lane.algorithm, lane.len);
    let largest = exact.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
    let rounding = rounding + rig.weight_rounding() * largest;
    check_error_rounded(&what, output, &plain, &exact, rounding);
    check_error(&format!("{what}: lse"), &[lse], &[plain_lse], &[exact_lse]);
}

/// The unselected candidates, from the logits and scores that the op reads and the frames.
fn items(rig: &Rig, lane: &RigLane, h: usize, head: usize) -> Items {
    let d = rig.geometry.head_dim;
    let Some((candidates, _)) = rig.candidates(lane) else {
        return Items { logits: Vec::new(), value_sums: Vec::new(), count: 1, rounding: 0.0 };
    };
    let selected = rig.selected(lane, head);
    let pages: Vec<usize> = candidates.clone().filter(|page| !selected.contains(page)).collect();
    if lane.algorithm == MEANS {
        let scores = &rig.runtime.read_page_scores(lane.lane, false)[h * candidates.end..];
        let value_sum = |page: &usize| {
            let frame = rig.summary(lane, page / 8, head);
            let bytes = &frame[(page % 8 * 2 + 1) * 2 * d..][..2 * d];
            bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        };
        let logits = pages.iter().map(|page| scores[*page]).collect();
        return Items { logits, value_sums: pages.iter().map(value_sum).collect(), count: 8, rounding: 0.0 };
    }
    let all = rig.runtime.read_token_logits(lane.lane);
    let all = &all[h * 8 * candidates.end..];
    let frames: Vec<Decoded> = (0..candidates.end / 6).map(|row| Decoded::new(&rig.summary(lane, row, head))).collect();
    let tokens: Vec<usize> = pages.iter().flat_map(|page| 8 * page..8 * page + 8).collect();
    let value = |token: &usize| frames[token / 48].value(token % 48);
    let logits: Vec<f32> = tokens.iter().map(|token| all[*token]).collect();
    let deviation = |token: &usize| frames[token / 48].value_deviation[token % 48];
    let deviations: Vec<f32> = tokens.iter().map(deviation).collect();
    let rounding = 6.0 * rounding_deviation(&tokens, &logits, &deviations);
    Items { logits, value_sums: tokens.iter().map(value).collect(), count: 1, rounding }
}

/// Per group of 48 tokens (and split), weights a = 0.996 p dev are rounded to multiples of the largest over 255:
/// each is off by that over sqrt(12), times a level (code - 1.5) of 1.12 (root mean square).
fn rounding_deviation(tokens: &[usize], logits: &[f32], deviations: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let p: Vec<f64> = logits.iter().map(|l| f64::from(l - most).exp()).collect();
    let mut groups: BTreeMap<(usize, usize), (f64, f64)> = BTreeMap::new();
    for ((token, p), deviation) in tokens.iter().zip(&p).zip(deviations) {
        let (largest, count) = groups.entry((token / 48, token / 8192)).or_default();
        (*largest, *count) = (largest.max(0.996 * p * f64::from(*deviation)), *count + 1.0);
    }
    let variance: f64 = groups.values().map(|(a, count)| count * (a / 255.0).powi(2) * 1.25 / 12.0).sum();
    variance.sqrt() / p.iter().sum::<f64>()
}
