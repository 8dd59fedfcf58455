//! `gemm` and the packing of its weights.

use super::MakeBackend;
use super::fixture::{Fixture, Random, check_error, tensor};
use super::heads::ANY_HEADS;
use backend::reference::gemm::gemm as reference;
use backend::{BackendError, Batch, Weight, WeightPart, WeightRole};

/// Rows, outputs and inputs around the sizes of tiles, panels and blocks.
pub fn gemm(make: MakeBackend<'_>) {
    let fixture = Fixture::new(make, ANY_HEADS, 1, 8, 3);
    let shapes = [(1, 1), (3, 16), (16, 3), (17, 257), (48, 256), (113, 1023), (65, 512), (272, 64), (264, 1032)];
    for (n, k) in make.some(&shapes) {
        let mut random = Random((n * k) as u64);
        let weight = random.rounded(n * k, 1.0 / (k as f32).sqrt());
        let bias = random.normals(n, 1.0);
        for with_bias in [false, true] {
            let part =
                WeightPart { weight: tensor("w", &[n, k], &weight), bias: with_bias.then(|| tensor("b", &[n], &bias)) };
            let prepared = fixture.backend.prepare_weight(WeightRole::Down, &[part]).expect("a weight");
            for m in [1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 32, 33, 65, 113] {
                let x = fixture.as_products(&random.normals(m * k, 1.0));
                check(&fixture, &x, &prepared, &weight, with_bias.then_some(&bias[..]));
            }
        }
    }
}

/// `x` by a weight, from and to buffers of every precision.
fn check(fixture: &Fixture, x: &[f32], prepared: &Weight, weight: &[f32], bias: Option<&[f32]>) {
    let [n, k] = [prepared.out_features(), prepared.in_features()];
    let m = x.len() / k;
    let (plain, exact) = (reference::<f32>(x, weight, bias, k), reference::<f64>(x, weight, bias, k));
    for pair in fixture.pairs() {
        let ((x_buffer, _), out) = (fixture.held(pair.0, m, k, x), fixture.blank_in(pair.1, m + 2, n));
        fixture.runtime.enqueue(&mut || {
            fixture.runtime.gemm(Batch::Tokens(m), (&x_buffer).into(), prepared, out.from_row(1));
        });
        let (got, what) = (fixture.runtime.read(&out), format!("gemm {m} x {n} x {k}, {pair:?}"));
        // A bias may be added to what is stored already.
        let stores = if bias.is_some() { 2.0 } else { 1.0 };
        let roundings = sum_roundings(fixture, k) + stores * fixture.store_roundings(pair.1);
        check_error(&what, &got[n..(m + 1) * n], &plain, &exact, roundings);
        let around = got[..n].iter().chain(&got[(m + 1) * n..]);
        assert!(around.into_iter().all(|x| x.is_nan()), "{what} leaves other rows alone");
    }
}

/// Roundings of a sum over `k` products beside twice the plain chain's.
fn sum_roundings(fixture: &Fixture, k: usize) -> f64 {
    match fixture.rounds_products {
        false => 1.0,
        // Tensor cores cut sums off behind every 16 inputs where a chain rounds: half a step of f32 more on average, of
        // partial sums that may be twice the largest result.
        true => 4.0 + 2.0 * k.div_ceil(16) as f64,
    }
}

/// Parts one below the other, biases where there are some; what does not fit is refused by name.
pub fn fuse(make: MakeBackend<'_>) {
    let fixture = Fixture::new(make, ANY_HEADS, 1, 8, 3);
    let (k, outputs) = (40, [24, 7, 33]);
    let mut random = Random(7);
    let weights: Vec<Vec<f32>> = outputs.iter().map(|n| random.rounded(n * k, 1.0)).collect();
    let bias = random.normals(outputs[1], 1.0);
    let part = |i: usize| WeightPart {
        weight: tensor(&format!("part {i}"), &[outputs[i], k], &weights[i]),
        bias: (i == 1).then(|| tensor("bias", &[outputs[i]], &bias)),
    };
    let fused = fixture.backend.prepare_weight(WeightRole::Qkv, &[part(0), part(1), part(2)]).expect("a weight");
    assert_eq!([fused.out_features(), fused.in_features()], [64, k]);
    let all_bias = [vec![0.0; outputs[0]], bias.clone(), vec![0.0; outputs[2]]].concat();
    check(&fixture, &fixture.as_products(&random.normals(k, 1.0)), &fused, &weights.concat(), Some(&all_bias));

    let refused = |parts: &[WeightPart<'_>], name: &str| match fixture.backend.prepare_weight(WeightRole::Qkv, parts) {
        Err(BackendError::Unsupported { what, .. }) => assert!(what.contains(name), "{what} names {name}"),
        other => panic!("{name} was not refused: {other:?}"),
    };
    let narrow = WeightPart { weight: tensor("narrow", &[24, k - 1], &weights[0][..24 * (k - 1)]), bias: None };
    let flat = WeightPart { weight: tensor("flat", &[24 * k], &weights[0]), bias: None };
    let short = WeightPart { weight: tensor("short", &[25, k], &weights[0]), bias: None };
    let long_bias = WeightPart { weight: part(0).weight, bias: Some(tensor("long", &[7], &bias)) };
    refused(&[part(0), narrow], "narrow");
    refused(&[flat], "flat");
    refused(&[short], "short");
    refused(&[long_bias], "long");
}
