//! topk.

use crate::kernels::{Launch, arg};
use crate::runtime::CudaRuntime;
use backend::{AlgorithmId, Batch};

/// See [`backend::Runtime`].
pub(crate) fn topk(rt: &CudaRuntime, algorithm: AlgorithmId) {
    let grid = [rt.shape.geometry.kv_heads, rt.rows(Batch::Lanes), 1];
    let how = Launch { kernel: "topk", grid, threads: 512, shared: 4 * rt.argument.bitmap_words as usize };
    rt.run(how, &[arg(&rt.argument), arg(&i32::from(algorithm.0))]);
}
