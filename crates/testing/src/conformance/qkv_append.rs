//! `qkv_append`.

use super::MakeBackend;
use super::fixture::{Fixture, LAYER, Random, all_exact, bits, check_error};
use super::heads::{Heads, swept};
use super::precision::{HALF_BF16, Precision};
use backend::reference::qkv_append::norm_and_rope as reference;
use backend::{Batch, HeadNorms, KvTarget, Sampling, WeightRole};
use half::bf16;
use kv::PAGE_TOKENS;
use std::ops::Range;

const EPS: f32 = 1e-6;

/// Into staging, at positions that begin anywhere; and the same tokens on lanes give the same bits.
pub fn qkv_append(make: MakeBackend<'_>) {
    let awkward = [(1, 1, 16), (2, 2, 64), (1, 8, 128), (3, 5, 80), (1, 2, 256)];
    let awkward = awkward.map(|(kv_heads, group, d)| Heads::new(kv_heads, group, d));
    for (heads, normed) in swept(make, &awkward).into_iter().flat_map(|heads| [(heads, false), (heads, true)]) {
        for positions in make.some(&[0..1, 0..19, 1020..1031]) {
            let fixture = Fixture::new(make, heads, positions.len(), positions.end + 1, 3);
            fixture.pairs().into_iter().for_each(|pair| check(&fixture, normed, positions.clone(), pair));
        }
    }
}

fn check(fixture: &Fixture, normed: bool, positions: Range<usize>, pair: (Precision, Precision)) {
    let heads = fixture.heads;
    let what = format!("qkv_append of {heads:?} at {positions:?}, normed {normed}, {pair:?}");
    let (d, q_heads, n) = (heads.head_dim, heads.q_heads(), positions.len());
    let mut random = Random(d as u64 + positions.start as u64);
    let cols = (q_heads + 2 * heads.kv_heads) * d;
    let (qkv, input) = fixture.held(pair.0, n, cols, &random.normals(n * cols, 2.0));
    let (q_norm, k_norm) = (random.normals(d, 1.0), random.normals(d, 1.0));
    let weights = [&q_norm, &k_norm].map(|norm| fixture.weight(WeightRole::Norm, &[d], norm));
    let norms = normed.then_some(HeadNorms { q: &weights[0], k: &weights[1], eps: EPS });
    let q = fixture.blank_in(pair.1, n, q_heads * d);
    let staging = fixture.backend.staging(&fixture.shape, positions.end).expect("staging");
    let target = KvTarget::Staging { staging: &staging, first: positions.start };
    fixture.runtime.enqueue(&mut || {
        fixture.runtime.qkv_append(LAYER, Batch::Tokens(n), (&qkv).into(), norms, target, (&q).into());
    });
    let (got_q, staged) = (fixture.runtime.read(&q), fixture.runtime.read(&staging));
    let staged_at =
        |head: usize, half: usize, position: usize| &staged[((2 * head + half) * positions.end + position) * d..][..d];
    for (i, position) in positions.clone().enumerate() {
        let row = &input[i * cols..(i + 1) * cols];
        for head in 0..q_heads + heads.kv_heads {
            let x = &row[head * d..(head + 1) * d];
            let norm = normed.then_some((if head < q_heads { &q_norm[..] } else { &k_norm }, EPS));
            let plain = reference::<f32>(x, norm, &fixture.shape.rope, position);
            let exact = reference::<f64>(x, norm, &fixture.shape.rope, position);
            match head.checked_sub(q_heads) {
                None => {
                    let got = &got_q[(i * q_heads + head) * d..][..d];
                    check_error(&what, got, &plain, &exact, 4.0 + fixture.store_roundings(pair.1));
                }
                Some(head) => {
                    check_error(&what, staged_at(head, 0, position), &plain, &exact, HALF_BF16 + 4.0);
                    let v = &row[(q_heads + heads.kv_heads + head) * d..][..d];
                    let v: Vec<f32> = v.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
                    assert_eq!(bits(staged_at(head, 1, position)), bits(&v), "{what}: values");
                }
            }
        }
    }

    let q_lanes = fixture.blank_in(pair.1, n, q_heads * d);
    for (lane, position) in positions.clone().enumerate() {
        fixture.start(lane, position, all_exact(), Sampling::default());
    }
    let lanes: Vec<usize> = (0..n).collect();
    fixture.step(&lanes, || {
        fixture.runtime.qkv_append(LAYER, Batch::Lanes, (&qkv).into(), norms, KvTarget::Lanes, (&q_lanes).into());
    });
    assert_eq!(bits(&fixture.runtime.read(&q_lanes)), bits(&got_q), "{what}: queries of lanes");
    for (lane, position) in positions.clone().enumerate() {
        let row = fixture.rows(lane, position + 1)[position / PAGE_TOKENS];
        for head in 0..heads.kv_heads {
            let frame = fixture.runtime.read_frame(row, LAYER, head);
            for half in 0..2 {
                let at = 2 * (half * PAGE_TOKENS + position % PAGE_TOKENS) * d;
                let bytes = staged_at(head, half, position).iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes());
                assert!(frame[at..at + 2 * d].iter().copied().eq(bytes), "{what}: K and V of lane {lane}");
            }
        }
    }
}
