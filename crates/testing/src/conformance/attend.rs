//! `attend` over row tables.

use super::MakeBackend;
use super::fixture::{ALGORITHM, Fixture, Heads, KeysValues, LAYER, Random, all_exact, check_error};
use backend::reference::attend::attend as reference;
use backend::{PageSource, Partial, Sampling};

/// Lengths around pages and splits, all heads and groups.
pub fn row_tables(make: MakeBackend<'_>) {
    let shapes = [(1, 1, 16), (2, 2, 64), (1, 4, 128), (1, 8, 128), (3, 3, 80), (1, 7, 48), (2, 5, 32), (1, 2, 256)];
    for (kv_heads, group, head_dim) in shapes {
        let heads = Heads { kv_heads, group, head_dim };
        for lengths in [[1, 3, 113], [7, 8, 9], [1023, 511, 513], [512, 1, 1030]] {
            check(make, heads, lengths);
        }
    }
}

fn check(make: MakeBackend<'_>, heads: Heads, lengths: [usize; 3]) {
    let (d, q_heads, group) = (heads.head_dim, heads.q_heads(), heads.group);
    let longest = lengths.into_iter().max().expect("three");
    let fixture = Fixture::new(make, heads, lengths.len(), longest, 3);
    let mut random = Random(longest as u64 + d as u64);
    let lanes: Vec<KeysValues> = lengths.iter().map(|n| KeysValues::random(&mut random, heads, *n)).collect();
    for (lane, kv) in lanes.iter().enumerate() {
        fixture.fill_rows(&fixture.rows(lane, kv.tokens), kv);
        fixture.start(lane, kv.tokens - 1, all_exact(), Sampling::default());
    }
    let queries = random.normals(3 * q_heads * d, 2.0);
    let q = fixture.buffer(3, q_heads * d, &queries);
    let out = Partial { output: fixture.blank(3, q_heads * d), lse: fixture.blank(3, q_heads) };
    fixture.step(&[0, 1, 2], || {
        fixture.runtime.attend(ALGORITHM, LAYER, PageSource::RowTable, (&q).into(), &out);
    });
    let (output, lse) = (fixture.runtime.read(&out.output), fixture.runtime.read(&out.lse));
    for (lane, kv) in lanes.iter().enumerate() {
        for head in 0..heads.kv_heads {
            let first = lane * q_heads + head * group;
            let q = &queries[first * d..(first + group) * d];
            let (k, v) = kv.head(head, d);
            let ((plain, plain_lse), (exact, exact_lse)) = (reference::<f32>(q, k, v, d), reference::<f64>(q, k, v, d));
            let what = format!("attend of {heads:?} over {} tokens", kv.tokens);
            // Normalising splits and joining them: a few roundings each.
            check_error(&what, &output[first * d..(first + group) * d], &plain, &exact, 8.0);
            check_error(&format!("{what}, lse"), &lse[first..first + group], &plain_lse, &exact_lse, 4.0);
        }
    }
}
