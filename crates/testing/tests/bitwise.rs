//! CPU results are bitwise independent of batch, threads and prefill units (invariant 3), op by op.

use backend::cpu::{CpuBackend, CpuOptions, Isa};
use backend::{Batch, KvTarget, PageSource, Partial, Sampling, WeightRole};
use std::ops::Range;
use std::sync::Arc;
use testing::conformance::fixture::{ALGORITHM, Fixture, KeysValues, LAYER, Random, all_exact, bits};
use testing::conformance::heads::Heads;
use testing::conformance::{Extent, MakeBackend};

const HEADS: [Heads; 3] = [
    Heads { kv_heads: 2, group: 2, head_dim: 64 },
    Heads { kv_heads: 1, group: 7, head_dim: 48 },
    Heads { kv_heads: 3, group: 4, head_dim: 128 },
];

/// Calls `check` for one, two and three threads of every instruction set; all of one set must return the same.
fn same_on_all_threads<T: PartialEq + std::fmt::Debug>(check: impl Fn(MakeBackend<'_>) -> T) {
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("skipped on {}: this machine lacks it", isa.name());
            continue;
        }
        let with = |threads| {
            let options = CpuOptions { threads, isa };
            check(MakeBackend::new(&|_| Arc::new(CpuBackend::new(options).expect("available")), Extent::Full))
        };
        let alone = with(1);
        for threads in [2, 3] {
            assert!(alone == with(threads), "{threads} threads of {} change a bit", isa.name());
        }
    }
}

/// Rows `rows` of an op over `x` `[_, cols]`, computed together.
fn rows_together(fixture: &Fixture, x: &[f32], cols: [usize; 2], rows: Range<usize>, op: &RowOp<'_>) -> Vec<u32> {
    let n = rows.len();
    let input = fixture.buffer(n, cols[0], &x[rows.start * cols[0]..rows.end * cols[0]]);
    let out = fixture.blank(n, cols[1]);
    fixture.runtime.enqueue(&mut || op(fixture, n, &input, &out));
    bits(&fixture.runtime.read(&out))
}

type RowOp<'a> = dyn Fn(&Fixture, usize, &backend::Buffer, &backend::Buffer) + Sync + 'a;

/// The same rows alone, in small parts and together give the same bits; returns them.
fn same_in_all_batches(fixture: &Fixture, cols: [usize; 2], count: usize, op: &RowOp<'_>) -> Vec<u32> {
    let x = Random(count as u64).normals(count * cols[0], 2.0);
    let together = rows_together(fixture, &x, cols, 0..count, op);
    for part in [1, 2, 3, 4, 5, 6, 7, 64] {
        for start in (0..count).step_by(part) {
            let rows = start..count.min(start + part);
            let got = rows_together(fixture, &x, cols, rows.clone(), op);
            assert!(got == together[rows.start * cols[1]..rows.end * cols[1]], "rows {rows:?} of {count} differ");
        }
    }
    together
}

#[test]
fn products() {
    same_on_all_threads(|make| {
        let fixture = Fixture::new(make, HEADS[0], 1, 8, 3);
        let shapes = [(7, 113), (272, 300), (48, 1023)];
        let product = |(n, k): (usize, usize)| {
            let weight = fixture.weight(WeightRole::Down, &[n, k], &Random(n as u64).rounded(n * k, 0.1));
            same_in_all_batches(&fixture, [k, n], 103, &|fixture, rows, x, out| {
                fixture.runtime.gemm(Batch::Tokens(rows), x.into(), &weight, out.into());
            })
        };
        shapes.map(product)
    });
}

#[test]
fn rows_of_norms_and_activations() {
    same_on_all_threads(|make| {
        let fixture = Fixture::new(make, HEADS[0], 1, 8, 3);
        let norm = fixture.weight(WeightRole::Norm, &[113], &Random(1).normals(113, 1.0));
        let normed = same_in_all_batches(&fixture, [113, 113], 67, &|fixture, rows, x, out| {
            fixture.runtime.add_norm(Batch::Tokens(rows), x.into(), None, &norm, 1e-5, out.into());
        });
        let activated = same_in_all_batches(&fixture, [226, 113], 67, &|fixture, rows, x, out| {
            fixture.runtime.silu_mul(Batch::Tokens(rows), x.into(), out.into());
        });
        [normed, activated]
    });
}

/// Queries, keys and values of a prefill cut into `units`, through `qkv_append` and `prefill_attend`.
fn prefill(fixture: &Fixture, tokens: usize, unit: usize) -> [Vec<u32>; 2] {
    let (heads, d) = (fixture.heads, fixture.heads.head_dim);
    let (q_cols, cols) = (heads.q_heads() * d, (heads.q_heads() + 2 * heads.kv_heads) * d);
    let input = Random(tokens as u64).normals(tokens * cols, 2.0);
    let staging = fixture.backend.staging(&fixture.shape, tokens).expect("staging");
    let qkv = fixture.buffer(tokens, cols, &input);
    let (q, out) = (fixture.blank(tokens, q_cols), fixture.blank(tokens, q_cols));
    fixture.runtime.enqueue(&mut || {
        for first in (0..tokens).step_by(unit) {
            let (n, runtime) = (unit.min(tokens - first), &fixture.runtime);
            let target = KvTarget::Staging { staging: &staging, first };
            let (qkv, q, out) = (qkv.from_row(first), q.from_row(first), out.from_row(first));
            runtime.qkv_append(LAYER, Batch::Tokens(n), qkv, None, target, q);
            runtime.prefill_attend(&staging, first, n, q, out);
        }
    });
    [bits(&fixture.runtime.read(&staging)), bits(&fixture.runtime.read(&out))]
}

#[test]
fn prefill_units() {
    same_on_all_threads(|make| {
        HEADS.map(|heads| {
            let tokens = 403;
            let fixture = Fixture::new(make, heads, 1, tokens, 3);
            let whole = prefill(&fixture, tokens, tokens);
            for unit in [1, 7, 64, 128, 129, 400] {
                assert!(whole == prefill(&fixture, tokens, unit), "units of {unit} change a bit of {heads:?}");
            }
            whole
        })
    });
}

#[test]
fn decode_attention() {
    same_on_all_threads(|make| {
        HEADS.map(|heads| {
            let lengths = [1300, 5, 513, 4100];
            let (d, q_heads) = (heads.head_dim, heads.q_heads());
            let fixture = Fixture::new(make, heads, lengths.len(), 4100, 3);
            let mut random = Random(d as u64);
            for (lane, tokens) in lengths.into_iter().enumerate() {
                let kv = KeysValues::random(&mut random, heads, tokens);
                fixture.fill_rows(&fixture.rows(lane, tokens), &kv);
            }
            let queries = random.normals(lengths.len() * q_heads * d, 2.0);
            let attend = |lanes: &[usize]| {
                let n = lanes.len();
                let rows = lanes.iter().flat_map(|lane| &queries[lane * q_heads * d..(lane + 1) * q_heads * d]);
                let q = fixture.buffer(n, q_heads * d, &rows.copied().collect::<Vec<f32>>());
                let out = Partial { output: fixture.blank(n, q_heads * d), lse: fixture.blank(n, q_heads) };
                for lane in lanes {
                    fixture.start(*lane, lengths[*lane] - 1, all_exact(), Sampling::default());
                }
                fixture.step(lanes, || {
                    fixture.runtime.attend(ALGORITHM, LAYER, PageSource::RowTable, (&q).into(), &out);
                });
                [bits(&fixture.runtime.read(&out.output)), bits(&fixture.runtime.read(&out.lse))]
            };
            let together = attend(&[0, 1, 2, 3]);
            for lane in 0..lengths.len() {
                let alone = attend(&[lane]);
                for (alone, together) in alone.iter().zip(&together) {
                    let len = alone.len();
                    assert!(alone[..] == together[lane * len..(lane + 1) * len], "lane {lane} of {heads:?} alone");
                }
            }
            together
        })
    });
}
