//! topk.

use crate::kernels::{Launch, arg};
use crate::runtime::CudaRuntime;
use backend::{AlgorithmId, Batch};

/// Keys of sequences of at most this many pages are kept in shared memory: those of 128K tokens.
const STAGED_PAGES: i32 = 16_640;

/// See [`backend::Runtime`].
pub(crate) fn topk(rt: &CudaRuntime, algorithm: AlgorithmId) {
    let (pages, words) = (rt.argument.max_pages, rt.argument.bitmap_words);
    let staged = if pages <= STAGED_PAGES { pages } else { 0 };
    let grid = [rt.shape.geometry.kv_heads, rt.rows(Batch::Lanes), 1];
    let how = Launch { kernel: "topk", grid, threads: 512, shared: 4 * (2 * words + staged) as usize };
    rt.run(how, &[arg(&rt.argument), arg(&i32::from(algorithm.0))]);
}
