//! `merge`.

use super::MakeBackend;
use super::fixture::{ALGORITHM, Fixture, Random, all_exact, bits, check_error};
use super::heads::{Heads, swept};
use backend::reference::merge::merge as reference;
use backend::{Partial, Sampling};

/// Partials of ordinary, distant and empty sides.
pub fn merge(make: MakeBackend<'_>) {
    swept(make, &[Heads::new(2, 3, 48)]).into_iter().for_each(|heads| check(make, heads));
}

fn check(make: MakeBackend<'_>, heads: Heads) {
    let fixture = Fixture::new(make, heads, 2, 64, 3);
    let mut random = Random(3);
    for lane in 0..2 {
        fixture.start(lane, 5, all_exact(), Sampling::default());
    }
    let (q_heads, d) = (heads.q_heads(), heads.head_dim);
    let side = |random: &mut Random, lse: &[f32]| {
        let lse: Vec<f32> = lse.iter().copied().cycle().take(2 * q_heads).collect();
        let output = random.normals(2 * q_heads * d, 1.0);
        let empty = lse.iter().map(|x| *x == f32::NEG_INFINITY);
        let keep = empty.flat_map(|empty| vec![if empty { 0.0 } else { 1.0 }; d]);
        (output.iter().zip(keep).map(|(x, keep)| x * keep).collect::<Vec<f32>>(), lse)
    };
    let none = f32::NEG_INFINITY;
    let a = side(&mut random, &[1.0, none, 3.0, none, 50.0, -70.0, 0.1, 0.2, 0.3, none, 88.0, 1e-3]);
    let b = side(&mut random, &[1.5, 2.0, none, none, -60.0, 60.0, 0.1, -9.0, 9.0, -3.0, 89.0, 1e-3]);
    let partial = |(output, lse): &(Vec<f32>, Vec<f32>)| Partial {
        output: fixture.buffer(2, q_heads * d, output),
        lse: fixture.buffer(2, q_heads, lse),
    };
    let (into, other) = (partial(&a), partial(&b));
    fixture.step(&[0, 1], || fixture.runtime.merge(ALGORITHM, &into, &other));
    let (got, got_lse) = (fixture.runtime.read(&into.output), fixture.runtime.read(&into.lse));
    for (h, got_lse) in got_lse.into_iter().enumerate() {
        let part = h * d..(h + 1) * d;
        let (got, x, y) = (&got[part.clone()], &a.0[part.clone()], &b.0[part]);
        let kept = match (a.1[h] == none, b.1[h] == none) {
            (_, true) => Some((x, a.1[h])),
            (true, false) => Some((y, b.1[h])),
            _ => None,
        };
        if let Some((kept, lse)) = kept {
            assert_eq!((bits(got), got_lse.to_bits()), (bits(kept), lse.to_bits()), "merge keeps head {h}");
            continue;
        }
        let (plain, plain_lse) = reference::<f32>((x, a.1[h]), (y, b.1[h]));
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (exact, exact_lse) = reference::<f64>((&wide(x), a.1[h].into()), (&wide(y), b.1[h].into()));
        // Normalising the two factors first costs a rounding more.
        check_error(&format!("merge of head {h}"), got, &plain, &exact, 2.0);
        check_error(&format!("merge of head {h}, lse"), &[got_lse], &[plain_lse], &[exact_lse], 1.0);
    }
}
