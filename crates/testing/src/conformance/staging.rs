//! `scatter_layer`, `gather_layer`, `copy_rows`.

use super::MakeBackend;
use super::fixture::{Fixture, LAYER, Random, bits};
use super::heads::{Heads, covered};
use backend::RowCopy;

/// Staging to rows and back, over ranges that begin and end inside pages; and rows to rows.
pub fn round_trip(make: MakeBackend<'_>) {
    let heads = [32, 64, 96, 128].map(|head_dim| Heads::new(3, 1, head_dim));
    covered(make, &heads).into_iter().for_each(|heads| check(make, heads));
}

fn check(make: MakeBackend<'_>, heads: Heads) {
    let capacity = 61;
    let fixture = Fixture::new(make, heads, 2, capacity, 3);
    let elements = 2 * heads.kv_heads * capacity * heads.head_dim;
    for range in [0..1, 0..8, 3..9, 7..8, 8..61, 0..61, 17..55] {
        let mut random = Random(range.start as u64 * 100 + range.end as u64);
        let staged = random.rounded(elements, 1.0);
        let source = fixture.backend.staging(&fixture.shape, capacity).expect("staging");
        let target = fixture.backend.staging(&fixture.shape, capacity).expect("staging");
        fixture.runtime.write(&source, &staged);
        let (rows, copies) = (fixture.rows(0, capacity), fixture.rows(1, capacity));
        fixture.runtime.enqueue(&mut || fixture.runtime.scatter_layer(&source, LAYER, range.clone(), &rows));
        let pairs: Vec<_> = rows.iter().zip(&copies).map(|(s, t)| RowCopy { source: *s, target: *t }).collect();
        fixture.runtime.copy_rows(&pairs);
        fixture.runtime.enqueue(&mut || fixture.runtime.gather_layer(&target, LAYER, range.clone(), &copies));
        let got = fixture.runtime.read(&target);
        let d = heads.head_dim;
        for (part, (got, want)) in got.chunks(capacity * d).zip(staged.chunks(capacity * d)).enumerate() {
            let inside = range.start * d..range.end * d;
            assert_eq!(bits(&got[inside.clone()]), bits(&want[inside.clone()]), "{range:?} of part {part}");
            let outside = got[..inside.start].iter().chain(&got[inside.end..]);
            assert!(outside.into_iter().all(|x| *x == 0.0), "{range:?} of part {part}: nothing else is written");
        }
    }
}
