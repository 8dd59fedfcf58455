//! `prefill_attend`.

use super::MakeBackend;
use super::fixture::{Fixture, KeysValues, Random, check_error};
use super::heads::{Heads, covered, swept};
use backend::reference::attend::attend as reference;

/// Units that begin and end around tiles and blocks of keys, all heads and groups.
pub fn prefill_attend(make: MakeBackend<'_>) {
    let awkward = [(1, 1, 16), (2, 2, 64), (1, 4, 128), (1, 8, 64), (3, 3, 80), (1, 7, 48), (2, 3, 96), (1, 2, 256)];
    let awkward = awkward.map(|(kv_heads, group, d)| Heads::new(kv_heads, group, d));
    for heads in swept(make, &awkward) {
        let all = [(0, 1), (0, 3), (0, 113), (127, 2), (128, 1), (1000, 23), (120, 140)];
        let units = if awkward.contains(&heads) { make.some(&all) } else { all[6..].to_vec() };
        units.into_iter().for_each(|(first, n)| check(make, heads, first, n));
    }
    // More heads than a GPU has multiprocessors: where blocks stay on theirs, some take a second one's rows.
    for heads in covered(make, &[64, 128].map(|d| Heads::new(140, 1, d))) {
        check(make, heads, 200, 3);
    }
}

fn check(make: MakeBackend<'_>, heads: Heads, first: usize, n: usize) {
    let (d, q_heads, group, tokens) = (heads.head_dim, heads.q_heads(), heads.group, first + n);
    let capacity = tokens + 5;
    let fixture = Fixture::new(make, heads, 1, capacity, 3);
    let mut random = Random((first * 1000 + n) as u64);
    let kv = KeysValues::random(&mut random, heads, capacity);
    let staging = fixture.backend.staging(&fixture.shape, capacity).expect("staging");
    let staged: Vec<f32> = (0..heads.kv_heads)
        .flat_map(|head| {
            let (k, v) = kv.head(head, d);
            [k, v].concat()
        })
        .collect();
    fixture.runtime.write(&staging, &staged);
    let queries = fixture.as_products(&random.normals(n * q_heads * d, 2.0));
    let (mut plain, mut exact) = (Vec::new(), Vec::new());
    for i in 0..n {
        for head in 0..heads.kv_heads {
            let at = (i * q_heads + head * group) * d;
            let (k, v) = kv.head(head, d);
            let (k, v) = (&k[..(first + i + 1) * d], &v[..(first + i + 1) * d]);
            let q = &queries[at..at + group * d];
            plain.extend(reference::<f32>(q, k, v, d).0);
            exact.extend(reference::<f64>(q, k, v, d).0);
        }
    }
    for pair in fixture.pairs() {
        let (q, _) = fixture.held(pair.0, n, q_heads * d, &queries);
        let out = fixture.blank_in(pair.1, n + 1, q_heads * d);
        fixture.runtime.enqueue(&mut || {
            fixture.runtime.prefill_attend(&staging, first, n, (&q).into(), out.from_row(1));
        });
        let (got, what) = (fixture.runtime.read(&out), format!("prefill_attend of {heads:?}, {pair:?}"));
        // Each block may rescale what came before: a few roundings more than one softmax.
        let roundings = 8.0 + fixture.weight_roundings() + fixture.store_roundings(pair.1);
        check_error(&format!("{what}, {n} tokens behind {first}"), &got[q_heads * d..], &plain, &exact, roundings);
        assert!(got[..q_heads * d].iter().all(|x| x.is_nan()), "{what} leaves rows before its view alone");
    }
}
