//! Partials joined by log-sum-exp.

use crate::attend::check;
use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, partial};
use backend::{AlgorithmId, Batch, Partial};

/// Heads of a block, one a warp: `MERGE_WARPS` of kernels/merge.cu.
const HEADS: usize = 4;

/// See [`backend::Runtime`].
pub(crate) fn merge(rt: &CudaRuntime, algorithm: AlgorithmId, into: &Partial, other: &Partial) {
    check(rt, algorithm, 0, None, into);
    check(rt, algorithm, 0, None, other);
    let grid = [rt.rows(Batch::Lanes), rt.shape.q_heads.div_ceil(HEADS), 1];
    let how = Launch { kernel: "merge", grid, threads: 32 * HEADS, shared: 0 };
    let algorithm = i32::from(algorithm.0);
    rt.run(how, &[arg(&rt.argument), arg(&algorithm), arg(&partial(into)), arg(&partial(other))]);
}
