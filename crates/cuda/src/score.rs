//! Scores of indexed pages: of mean keys, and of coded tokens.

use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, device_buffer, vector, view};
use backend::{AlgorithmId, Batch, VectorSummary, View, Weight};
use kv::PAGE_TOKENS;
use kv::geometry::SKETCH_TOKENS;

const THREADS: usize = 128;

/// Blocks of `score_dot` on a multiprocessor, for queries in bf16 and f32: as many as registers leave room for. Warps
/// share the frames of a launch equally, so more would only wait.
const DOT_BLOCKS: usize = 4;
const DOT_F32_BLOCKS: usize = 3;

/// Likewise of `score_codes`.
fn codes_blocks(head_dim: usize) -> usize {
    if head_dim == 64 { 4 } else { 3 }
}

/// Outputs of one block that rotates queries.
const ROTATED: usize = 32;

/// See [`backend::Runtime`].
pub(crate) fn score_dot(rt: &CudaRuntime, algorithm: AlgorithmId, layer: usize, q: View<'_>, form: VectorSummary) {
    let d = rt.shape.geometry.head_dim;
    assert_eq!(q.buffer.cols(), rt.shape.q_heads * d, "score_dot: queries");
    let (kernel, blocks) = match device_buffer(q.buffer).is_bf16 {
        true => (format!("score_dot_{d}"), DOT_BLOCKS),
        false => (format!("score_dot_{d}_f32"), DOT_F32_BLOCKS),
    };
    let with_values = i32::from(form == VectorSummary::MeanKeyAndValueSum);
    rt.run(
        Launch { kernel: &kernel, grid: [rt.gpu.sms * blocks, 1, 1], threads: THREADS, shared: 0 },
        &[arg(&rt.argument), arg(&i32::from(algorithm.0)), arg(&(layer as i32)), arg(&view(q)), arg(&with_values)],
    );
}

/// See [`backend::Runtime`].
pub(crate) fn score_codes(rt: &CudaRuntime, algorithm: AlgorithmId, layer: usize, q: View<'_>, key_rotation: &Weight) {
    let (heads, d, rows) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim, rt.rows(Batch::Lanes));
    assert_eq!(q.buffer.cols(), rt.shape.q_heads * d, "score_codes: queries");
    const { assert!(SKETCH_TOKENS == 48 && PAGE_TOKENS == 8, "what the kernels' matrices are cut for") };
    let (number, rotation) = (i32::from(algorithm.0), vector(key_rotation));
    rt.run(
        Launch { kernel: &format!("rotate_query_{d}"), grid: [rows, heads, d / ROTATED], threads: THREADS, shared: 0 },
        &[arg(&rt.argument), arg(&number), arg(&view(q)), arg(&rotation)],
    );
    rt.run(
        Launch {
            kernel: &format!("score_codes_{d}_{}", slots(rt)),
            grid: [rt.gpu.sms * codes_blocks(d), 1, 1],
            threads: THREADS,
            shared: 0,
        },
        &[arg(&rt.argument), arg(&number), arg(&(layer as i32))],
    );
}

/// Query heads of a KV head that a kernel has room for.
pub(crate) fn slots(rt: &CudaRuntime) -> usize {
    if rt.group() <= 4 { 4 } else { 8 }
}
