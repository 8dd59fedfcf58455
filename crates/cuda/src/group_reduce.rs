//! group_reduce.

use crate::kernels::{Launch, arg};
use crate::runtime::CudaRuntime;
use backend::{AlgorithmId, Batch};

/// See [`backend::Runtime`].
pub(crate) fn group_reduce(rt: &CudaRuntime, algorithm: AlgorithmId) {
    let grid = [rt.shape.geometry.kv_heads, rt.rows(Batch::Lanes), 1];
    let how = Launch { kernel: "group_reduce", grid, threads: 1024, shared: 0 };
    rt.run(how, &[arg(&rt.argument), arg(&i32::from(algorithm.0))]);
}
