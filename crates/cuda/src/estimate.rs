//! Approximate attention over unselected candidates.

use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, partial, vector};
use crate::score::slots;
use backend::{AlgorithmId, Batch, EstimateSource, Partial, View};

const THREADS: usize = 128;

/// Kind of work whose target the items follow: `INDEXED` of the kernels.
const INDEXED: usize = 2;

/// See [`backend::Runtime`].
pub(crate) fn estimate(
    rt: &CudaRuntime,
    algorithm: AlgorithmId,
    layer: usize,
    source: EstimateSource<'_>,
    _q: View<'_>,
    out: &Partial,
) {
    let (heads, d, rows) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim, rt.rows(Batch::Lanes));
    assert_eq!(out.output.cols(), rt.shape.q_heads * d, "estimate: outputs");
    assert_eq!(out.lse.cols(), rt.shape.q_heads, "estimate: log-sum-exps");
    // One block for each item and KV head: blocks that skip more make room for the next.
    let grid = [rt.argument.targets[INDEXED] as usize + rows * heads, 1, 1];
    let (number, layer, out) = (i32::from(algorithm.0), layer as i32, partial(out));
    let beside = i32::from(rt.is_behind_retrieve());
    let launch = |form| format!("estimate_{form}_{d}_{}", slots(rt));
    match source {
        EstimateSource::Vectors => rt.run(
            Launch { kernel: &launch("vectors"), grid, threads: THREADS, shared: 0 },
            &[arg(&rt.argument), arg(&number), arg(&layer), arg(&beside), arg(&out)],
        ),
        EstimateSource::Codes { value_rotation } => rt.run(
            Launch { kernel: &launch("codes"), grid, threads: THREADS, shared: 0 },
            &[arg(&rt.argument), arg(&number), arg(&layer), arg(&beside), arg(&vector(value_rotation)), arg(&out)],
        ),
    }
}
