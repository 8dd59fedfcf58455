//! `embed`, `add_norm`, `silu_mul`.

use super::MakeBackend;
use super::fixture::{Fixture, Random, bits, check_error};
use super::heads::ANY_HEADS;
use backend::reference::elementwise as reference;
use backend::{Batch, TokenSource, View, WeightRole};

const WIDTHS: [usize; 8] = [1, 3, 16, 113, 256, 1023, 4096, 4104];

/// Rows of the packed table, bit for bit.
pub fn embed(make: MakeBackend<'_>) {
    let vocab = 37;
    let fixture = Fixture::new(make, ANY_HEADS, 1, 8, vocab);
    for width in WIDTHS {
        let mut random = Random(width as u64);
        let table = random.rounded(vocab * width, 1.0);
        let weight = fixture.weight(WeightRole::Embedding, &[vocab, width], &table);
        let tokens: Vec<u32> = (0..41).map(|i| (i * 7 % vocab) as u32).collect();
        let embed = |out: View<'_>| fixture.runtime.embed(TokenSource::Given(&tokens), &weight, out);
        for precision in fixture.precisions() {
            let out = fixture.blank_in(*precision, tokens.len() + 1, width);
            fixture.runtime.enqueue(&mut || embed(out.from_row(1)));
            let got = fixture.runtime.read(&out);
            let want: Vec<f32> =
                tokens.iter().flat_map(|t| table[*t as usize * width..][..width].iter().copied()).collect();
            assert_eq!(bits(&got[width..]), bits(&want), "embed of width {width}, {precision:?}");
            assert!(got[..width].iter().all(|x| x.is_nan()), "embed leaves rows before its view alone");
        }
    }
}

/// With and without a delta.
pub fn add_norm(make: MakeBackend<'_>) {
    let fixture = Fixture::new(make, ANY_HEADS, 1, 8, 3);
    for (width, pair) in WIDTHS.into_iter().flat_map(|width| fixture.pairs().into_iter().map(move |pair| (width, pair)))
    {
        for with_delta in [false, true] {
            let (mut random, rows, eps) = (Random(width as u64), 5, 1e-5);
            let x = random.normals(rows * width, 3.0);
            let (delta_buffer, delta) = fixture.held(pair.0, rows, width, &random.normals(rows * width, 1.0));
            let norm = random.normals(width, 1.0);
            let weight = fixture.weight(WeightRole::Norm, &[width], &norm);
            let (x_buffer, out) = (fixture.buffer(rows, width, &x), fixture.blank_in(pair.1, rows, width));
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
            let what = format!("add_norm of width {width}, {pair:?}");
            assert_eq!(bits(&fixture.runtime.read(&x_buffer)), bits(&sum), "{what}: x += delta");
            // Scale and weight are two roundings more than the plain order of division and weight.
            let roundings = 4.0 + fixture.store_roundings(pair.1);
            check_error(&what, &fixture.runtime.read(&out), &plain, &exact, roundings);
        }
    }
}

/// Gates from far below to far above zero.
pub fn silu_mul(make: MakeBackend<'_>) {
    let fixture = Fixture::new(make, ANY_HEADS, 1, 8, 3);
    for (width, pair) in WIDTHS.into_iter().flat_map(|width| fixture.pairs().into_iter().map(move |pair| (width, pair)))
    {
        let (mut random, rows) = (Random(width as u64), 4);
        let mut input = random.normals(rows * 2 * width, 4.0);
        for (x, extreme) in input.iter_mut().zip([0.0, -200.0, 200.0, -87.5, 88.5]) {
            *x = extreme;
        }
        let (gate_up, input) = fixture.held(pair.0, rows, 2 * width, &input);
        let out = fixture.blank_in(pair.1, rows, width);
        fixture.runtime.enqueue(&mut || {
            fixture.runtime.silu_mul(Batch::Tokens(rows), (&gate_up).into(), (&out).into());
        });
        let plain: Vec<f32> = input.chunks_exact(2 * width).flat_map(reference::silu_mul::<f32>).collect();
        let exact: Vec<f64> = input.chunks_exact(2 * width).flat_map(reference::silu_mul::<f64>).collect();
        // An exponential may be off by two roundings where the library's is not.
        let roundings = 4.0 + fixture.store_roundings(pair.1);
        check_error(
            &format!("silu_mul of width {width}, {pair:?}"),
            &fixture.runtime.read(&out),
            &plain,
            &exact,
            roundings,
        );
    }
}
