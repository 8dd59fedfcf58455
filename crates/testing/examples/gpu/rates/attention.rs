//! Exact attention: of decode steps over whole row tables, and of prefill.

use super::bed::{Bed, BedSpec, D, KV_HEADS, Q_HEADS};
use super::{Table, Work};
use backend::{AlgorithmId, Backend, PageSource};
use cuda::CudaBackend;
use kv::Selection;
use std::sync::Arc;

/// Lanes and their tokens.
const DENSE: [(usize, usize); 4] = [(8, 32_768), (1, 131_072), (1, 32_768), (32, 8192)];

/// Positions of the first query and the number of queries' tokens of whole prefills, and of a late stride.
const PREFILLS: [(usize, usize); 4] = [(0, 8192), (0, 32_768), (28_672, 4096), (126_976, 4096)];

/// Tokens that pass a layer together.
const STRIDE: usize = 4096;

/// One row a shape.
pub(crate) fn measure(table: &mut Table<'_>, backend: &Arc<CudaBackend>) {
    if table.wants("attend") {
        DENSE.into_iter().for_each(|(lanes, tokens)| attend(table, backend, lanes, tokens));
    }
    if table.wants("prefill_attend") {
        prefill_attend(table, backend);
    }
}

fn attend(table: &mut Table<'_>, backend: &Arc<CudaBackend>, lanes: usize, tokens: usize) {
    let layers = 2;
    let bed = Bed::new(backend, BedSpec { layers, lanes, tokens, summaries: false });
    bed.fill();
    let (q, out, dense) = (bed.noise(lanes, Q_HEADS * D, 5), bed.partial(), AlgorithmId(0));
    bed.set(dense, Selection::dense());
    let record = |i: usize| bed.runtime.attend(dense, i % layers, PageSource::RowTable, (&q).into(), &out);
    let work = Work::bytes(lanes * tokens * KV_HEADS * D * 4);
    table.step(&bed, ("attend", &format!("row tables, {lanes} x {tokens}")), work, None, &record);
}

fn prefill_attend(table: &mut Table<'_>, backend: &Arc<CudaBackend>) {
    let longest = PREFILLS.iter().map(|(first, n)| first + n).max().expect("a shape");
    let bed = Bed::new(backend, BedSpec::SMALL);
    let staging = backend.staging(&bed.shape, longest).expect("staging");
    bed.write(&staging, 1);
    let (q, out) = (bed.noise(STRIDE, Q_HEADS * D, 2), bed.product(STRIDE, Q_HEADS * D));
    for (first, n) in PREFILLS {
        // Pairs of a query and a key that it sees, counted once.
        let pairs = n as f64 * (first as f64 + (n + 1) as f64 / 2.0);
        let work = Work { bytes: (4 * n * Q_HEADS * D) as f64, flops: 4.0 * pairs * (Q_HEADS * D) as f64 };
        let record = |_| {
            for start in (first..first + n).step_by(STRIDE) {
                bed.runtime.prefill_attend(&staging, start, STRIDE, (&q).into(), (&out).into());
            }
        };
        let shape = format!("{n} tokens behind {first}, causal");
        table.unit(&bed, ("prefill_attend", &shape), work, &record);
    }
}
