//! A layer's matrix products, and the output matrix.

use super::bed::{Bed, BedSpec, VOCAB};
use super::{Table, Work};
use backend::{Backend, Batch, Weight, WeightRole};
use cuda::CudaBackend;
use std::sync::Arc;

/// Name, role, outputs, inputs.
const WEIGHTS: [(&str, WeightRole, usize, usize); 5] = [
    ("qkv", WeightRole::Qkv, 6144, 4096),
    ("attention output", WeightRole::AttentionOutput, 4096, 4096),
    ("gate and up", WeightRole::GateUp, 28_672, 4096),
    ("down", WeightRole::Down, 4096, 14_336),
    ("output", WeightRole::Output, VOCAB, 4096),
];

/// Rows of decode steps.
const FEW: [usize; 5] = [1, 8, 20, 32, 64];

/// Rows of a prefill stride.
const MANY: usize = 4096;

/// Bytes of all copies of a weight: far more than any cache.
const COPIES_BYTES: usize = 512 << 20;

/// One row a product and number of rows.
pub(crate) fn measure(table: &mut Table<'_>, backend: &Arc<CudaBackend>) {
    if !table.wants("gemm") {
        return;
    }
    let bed = Bed::new(backend, BedSpec { lanes: 1, ..BedSpec::SMALL });
    for (name, role, n, k) in WEIGHTS {
        let copies = (COPIES_BYTES / (2 * n * k)).clamp(1, 16);
        let weight = |seed| backend.random_weight(role, [n, k], false, seed as u64).expect("a weight");
        let weights: Vec<Weight> = (0..copies).map(weight).collect();
        let rows = if role == WeightRole::Output { &FEW[..] } else { &[1, 8, 20, 32, 64, MANY][..] };
        for &m in rows {
            let x = bed.noise(m, k, 3);
            // Logits are f32, everything else goes on as a product.
            let full = role == WeightRole::Output;
            let out = if full { bed.full_noise(m, n, 4) } else { bed.product(m, n) };
            let bytes = 2 * n * k + 2 * m * k + if full { 4 } else { 2 } * m * n;
            let work = Work { bytes: bytes as f64, flops: 2.0 * (m * n * k) as f64 };
            let gemm = |i: usize| {
                bed.runtime.gemm(Batch::Tokens(m), (&x).into(), &weights[i % copies], (&out).into());
            };
            let of = ("gemm", &*format!("{name}: {m} x {n} x {k}"));
            // The library's algorithm is chosen outside the graph.
            bed.unit_seconds(ONCE, &gemm);
            match m {
                MANY => table.unit(&bed, of, work, &gemm),
                _ => table.step(&bed, of, work, None, &gemm),
            }
        }
    }
    decode_input(table, &bed);
}

/// A floor at which a call is timed no more often than it must be.
const ONCE: f64 = 1.0;

/// Attention's output in a decode step is f32.
fn decode_input(table: &mut Table<'_>, bed: &Bed) {
    let (n, k, copies) = (4096, 4096, 16);
    let weight =
        |seed| bed.backend.random_weight(WeightRole::AttentionOutput, [n, k], false, seed as u64).expect("a weight");
    let weights: Vec<Weight> = (0..copies).map(weight).collect();
    for m in [1, 20, 64] {
        let (x, out) = (bed.full_noise(m, k, 3), bed.product(m, n));
        let work = Work { bytes: (2 * n * k + 4 * m * k + 2 * m * n) as f64, flops: 2.0 * (m * n * k) as f64 };
        let gemm = |i: usize| bed.runtime.gemm(Batch::Tokens(m), (&x).into(), &weights[i % copies], (&out).into());
        bed.unit_seconds(ONCE, &gemm);
        table.step(bed, ("gemm", &format!("attention output of f32: {m} x {n} x {k}")), work, None, &gemm);
    }
}
