//! `embed`, `add_norm`, `silu_mul`.

use super::MakeBackend;
use super::fixture::{Fixture, Heads, Random, bits, check_error};
use backend::reference::elementwise as reference;
use backend::{Batch, TokenSource, WeightRole};

const WIDTHS: [usize; 6] = [1, 3, 16, 113, 256, 1023];
const HEADS: Heads = Heads { kv_heads: 1, group: 1, head_dim: 16 };

/// Rows of the packed table, bit for bit.
pub fn embed(make: MakeBackend<'_>) {
    for width in WIDTHS {
        let mut random = Random(width as u64);
        let vocab = 37;
        let fixture = Fixture::new(make, HEADS, 1, 8, vocab);
        let table = random.rounded(vocab * width, 1.0);
        let weight = fixture.weight(WeightRole::Embedding, &[vocab, width], &table);
        let tokens: Vec<u32> = (0..41).map(|i| (i * 7 % vocab) as u32).collect();
        let out = fixture.blank(tokens.len() + 1, width);
        fixture.runtime.enqueue(&mut || fixture.runtime.embed(TokenSource::Given(&tokens), &weight, out.from_row(1)));
        let got = fixture.runtime.read(&out);
        let want: Vec<f32> =
            tokens.iter().flat_map(|t| table[*t as usize * width..][..width].iter().copied()).collect();
        assert_eq!(bits(&got[width..]), bits(&want), "embed of width {width}");
        assert!(got[..width].iter().all(|x| x.is_nan()), "embed leaves rows before its view alone");
    }
}

/// With and without a delta.
pub fn add_norm(make: MakeBackend<'_>) {
    let fixture = Fixture::new(make, HEADS, 1, 8, 3);
    for width in WIDTHS {
        for with_delta in [false, true] {
            let (mut random, rows, eps) = (Random(width as u64), 5, 1e-5);
            let x = random.normals(rows * width, 3.0);
            let delta = random.normals(rows * width, 1.0);
            let norm = random.normals(width, 1.0);
            let weight = fixture.weight(WeightRole::Norm, &[width], &norm);
            let (x_buffer, out) = (fixture.buffer(rows, width, &x), fixture.blank(rows, width));
            let delta_buffer = fixture.buffer(rows, width, &delta);
            let given = with_delta.then(|| (&delta_buffer).into());
            fixture.runtime.enqueue(&mut || {
                let batch = Batch::Tokens(rows);
                fixture.runtime.add_norm(batch, (&x_buffer).into(), given, &weight, eps, (&out).into());
            });
            let mut sum = x;
            let (mut plain, mut exact) = (Vec::new(), Vec::new());
            for (x, delta) in sum.chunks_exact_mut(width).zip(delta.chunks_exact(width)) {
                plain.extend(reference::add_norm::<f32>(x, with_delta.then_some(delta), &norm, eps));
                exact.extend(reference::add_norm::<f64>(x, None, &norm, eps));
            }
            assert_eq!(bits(&fixture.runtime.read(&x_buffer)), bits(&sum), "add_norm of width {width}: x += delta");
            // Scale and weight are two roundings more than the plain order of division and weight.
            check_error(&format!("add_norm of width {width}"), &fixture.runtime.read(&out), &plain, &exact, 4.0);
        }
    }
}

/// Gates from far below to far above zero.
pub fn silu_mul(make: MakeBackend<'_>) {
    let fixture = Fixture::new(make, HEADS, 1, 8, 3);
    for width in WIDTHS {
        let (mut random, rows) = (Random(width as u64), 4);
        let mut input = random.normals(rows * 2 * width, 4.0);
        for (x, extreme) in input.iter_mut().zip([0.0, -200.0, 200.0, -87.5, 88.5]) {
            *x = extreme;
        }
        let (gate_up, out) = (fixture.buffer(rows, 2 * width, &input), fixture.blank(rows, width));
        fixture.runtime.enqueue(&mut || {
            fixture.runtime.silu_mul(Batch::Tokens(rows), (&gate_up).into(), (&out).into());
        });
        let plain: Vec<f32> = input.chunks_exact(2 * width).flat_map(reference::silu_mul::<f32>).collect();
        let exact: Vec<f64> = input.chunks_exact(2 * width).flat_map(reference::silu_mul::<f64>).collect();
        // An exponential may be off by two roundings where the library's is not.
        check_error(&format!("silu_mul of width {width}"), &fixture.runtime.read(&out), &plain, &exact, 4.0);
    }
}
