//! `gemm` and the packing of its weights.

use super::MakeBackend;
use super::fixture::{Fixture, Heads, Random, check_error, tensor};
use backend::reference::gemm::gemm as reference;
use backend::{BackendError, Batch, WeightPart, WeightRole};

const HEADS: Heads = Heads { kv_heads: 1, group: 1, head_dim: 16 };

/// Rows, outputs and inputs around the sizes of tiles, panels and blocks.
pub fn gemm(make: MakeBackend<'_>) {
    let fixture = Fixture::new(make, HEADS, 1, 8, 3);
    let rows = [1, 2, 3, 4, 5, 6, 7, 8, 13, 113];
    let shapes = [(1, 1), (3, 16), (16, 3), (17, 257), (48, 256), (113, 1023), (65, 512), (272, 64)];
    for (n, k) in shapes {
        let mut random = Random((n * k) as u64);
        let weight = random.rounded(n * k, 1.0 / (k as f32).sqrt());
        let bias = random.normals(n, 1.0);
        for with_bias in [false, true] {
            let part =
                WeightPart { weight: tensor("w", &[n, k], &weight), bias: with_bias.then(|| tensor("b", &[n], &bias)) };
            let prepared = fixture.backend.prepare_weight(WeightRole::Down, &[part]).expect("a weight");
            for m in rows {
                let x = random.normals(m * k, 1.0);
                let (x_buffer, out) = (fixture.buffer(m, k, &x), fixture.blank(m + 2, n));
                fixture.runtime.enqueue(&mut || {
                    fixture.runtime.gemm(Batch::Tokens(m), (&x_buffer).into(), &prepared, out.from_row(1));
                });
                let got = fixture.runtime.read(&out);
                let bias = with_bias.then_some(&bias[..]);
                let (plain, exact) = (reference::<f32>(&x, &weight, bias, k), reference::<f64>(&x, &weight, bias, k));
                check_error(&format!("gemm {m} x {n} x {k}"), &got[n..(m + 1) * n], &plain, &exact, 1.0);
                let around = got[..n].iter().chain(&got[(m + 1) * n..]);
                assert!(around.into_iter().all(|x| x.is_nan()), "gemm {m} x {n} x {k} leaves other rows alone");
            }
        }
    }
}

/// Parts one below the other, biases where there are some; what does not fit is refused by name.
pub fn fuse(make: MakeBackend<'_>) {
    let fixture = Fixture::new(make, HEADS, 1, 8, 3);
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
    let x = random.normals(k, 1.0);
    let (x_buffer, out) = (fixture.buffer(1, k, &x), fixture.blank(1, 64));
    fixture.runtime.enqueue(&mut || {
        fixture.runtime.gemm(Batch::Tokens(1), (&x_buffer).into(), &fused, (&out).into());
    });
    let all = weights.concat();
    let all_bias = [vec![0.0; outputs[0]], bias.clone(), vec![0.0; outputs[2]]].concat();
    let (plain, exact) =
        (reference::<f32>(&x, &all, Some(&all_bias), k), reference::<f64>(&x, &all, Some(&all_bias), k));
    check_error("a fused product", &fixture.runtime.read(&out), &plain, &exact, 1.0);

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
