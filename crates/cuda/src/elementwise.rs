//! embed, add_norm, silu_mul.

use crate::abi::ViewArgument;
use crate::gemm::Matrix;
use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, vector, view};
use backend::{Batch, TokenSource, View, Weight};

/// Widest row that `add_norm` keeps in registers: 4 vectors of 4 elements in each of 1,024 threads.
const KEPT_MOST: usize = 16_384;

/// See [`backend::Runtime`].
pub(crate) fn embed(rt: &CudaRuntime, tokens: TokenSource<'_>, table: &Weight, out: View<'_>) {
    let matrix: &Matrix = table.downcast().expect("a matrix of this backend");
    assert_eq!(out.buffer.cols(), table.in_features(), "embed: rows as wide as the table");
    let (tokens, n) = match tokens {
        TokenSource::Lanes => (0, rt.rows(Batch::Lanes)),
        TokenSource::Given(tokens) => (rt.upload(tokens), tokens.len()),
    };
    let how = Launch { kernel: "embed", grid: [n, 1, 1], threads: 256, shared: 0 };
    let stride = matrix.stride as i32;
    rt.run(how, &[arg(&rt.argument), arg(&tokens), arg(&matrix.elements.pointer), arg(&stride), arg(&view(out))]);
}

/// See [`backend::Runtime`].
pub(crate) fn add_norm(
    rt: &CudaRuntime,
    batch: Batch,
    x: View<'_>,
    delta: Option<View<'_>>,
    norm: &Weight,
    eps: f32,
    out: View<'_>,
) {
    let cols = x.buffer.cols();
    assert!(norm.in_features() == cols && out.buffer.cols() == cols, "add_norm: rows of one width");
    let absent = ViewArgument { data: 0, cols: 0, is_bf16: 0 };
    let delta = delta.map_or(absent, view);
    let kept = cols.is_multiple_of(4) && cols <= KEPT_MOST;
    let threads = if kept { cols.div_ceil(16).next_multiple_of(32) } else { 256 };
    let kernel = if kept { "add_norm" } else { "add_norm_any" };
    let how = Launch { kernel, grid: [rt.rows(batch), 1, 1], threads, shared: 0 };
    rt.run(how, &[arg(&view(x)), arg(&delta), arg(&vector(norm)), arg(&eps), arg(&view(out))]);
}

/// See [`backend::Runtime`].
pub(crate) fn silu_mul(rt: &CudaRuntime, batch: Batch, gate_up: View<'_>, out: View<'_>) {
    let cols = out.buffer.cols();
    assert_eq!(gate_up.buffer.cols(), 2 * cols, "silu_mul: a gate for every output");
    let vectors = cols.is_multiple_of(4);
    let (kernel, work) = if vectors { ("silu_mul", cols / 4) } else { ("silu_mul_any", cols) };
    let how = Launch { kernel, grid: [work.div_ceil(256), rt.rows(batch), 1], threads: 256, shared: 0 };
    rt.run(how, &[arg(&view(gate_up)), arg(&view(out))]);
}
