//! Exact attention over row tables and page lists.

use crate::abi::ALGORITHMS_MAX;
use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, partial, view};
use backend::{AlgorithmId, Batch, PageSource, Partial, View};

/// Threads of a block: `WARPS` of kernels/attend.cuh.
pub(crate) const THREADS: usize = 128;

/// A block's rings of pages, of keys and values: whatever the head size.
const RINGS: usize = 96 << 10;

/// `Work` of kernels/runtime.cuh.
pub(crate) const ROWS: i32 = 0;
const LIST: i32 = 1;

/// See [`backend::Runtime`].
pub(crate) fn attend(
    rt: &CudaRuntime,
    algorithm: AlgorithmId,
    layer: usize,
    source: PageSource,
    q: View<'_>,
    out: &Partial,
) {
    check(rt, algorithm, layer, Some(q), out);
    let work = match source {
        PageSource::RowTable => ROWS,
        PageSource::PageList => LIST,
    };
    let kernel = format!("attend_{}", rt.shape.geometry.head_dim);
    let how = Launch { kernel: &kernel, grid: grid(rt, work as usize), threads: THREADS, shared: RINGS };
    let (algorithm, layer, beside) = (i32::from(algorithm.0), layer as i32, i32::from(rt.is_behind_retrieve()));
    let (q, out) = (view(q), partial(out));
    rt.run(how, &[arg(&rt.argument), arg(&algorithm), arg(&layer), arg(&work), arg(&beside), arg(&q), arg(&out)]);
}

/// Blocks for a kind of work: as many for each KV head as it is cut into items.
pub(crate) fn grid(rt: &CudaRuntime, work: usize) -> [usize; 3] {
    let kv_heads = rt.shape.geometry.kv_heads;
    [kv_heads, (rt.argument.targets[work] as usize / kv_heads).max(1), 1]
}

/// What ops of an algorithm rely on.
pub(crate) fn check(rt: &CudaRuntime, algorithm: AlgorithmId, layer: usize, q: Option<View<'_>>, partial: &Partial) {
    let (rows, q_heads) = (rt.rows(Batch::Lanes), rt.shape.q_heads);
    let cols = q_heads * rt.shape.geometry.head_dim;
    assert!(usize::from(algorithm.0) < ALGORITHMS_MAX, "an algorithm's number is below {ALGORITHMS_MAX}");
    assert!(layer < rt.shape.geometry.layers, "a layer of the pool");
    assert!(q.is_none_or(|q| q.buffer.cols() == cols && rows <= q.buffer.rows() - q.row), "a query for every lane");
    assert!(partial.output.cols() == cols && rows <= partial.output.rows(), "an output for every lane");
    assert!(partial.lse.cols() == q_heads && rows <= partial.lse.rows(), "a log-sum-exp for every head");
}
