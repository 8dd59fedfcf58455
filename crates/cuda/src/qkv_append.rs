//! Head norms, rotary embedding, K and V to staging or rows.

use crate::abi::Pointer;
use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, device_buffer, vector, view};
use crate::staging::Staging;
use backend::{Batch, HeadNorms, KvTarget, View};

/// Heads of one block, a warp each.
const BLOCK_HEADS: usize = 8;

/// `Target` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Target {
    staging: Pointer,
    capacity: i32,
    first: i32,
}

/// See [`backend::Runtime`].
pub(crate) fn qkv_append(
    rt: &CudaRuntime,
    layer: usize,
    batch: Batch,
    qkv: View<'_>,
    norms: Option<HeadNorms<'_>>,
    target: KvTarget<'_>,
    q: View<'_>,
) {
    let (geometry, n) = (rt.shape.geometry, rt.rows(batch));
    let heads = rt.shape.q_heads + 2 * geometry.kv_heads;
    assert_eq!(qkv.buffer.cols(), heads * geometry.head_dim, "qkv_append: q, k and v of every head");
    assert_eq!(q.buffer.cols(), rt.shape.q_heads * geometry.head_dim, "qkv_append: queries");
    let target = match target {
        KvTarget::Lanes => Target { staging: 0, capacity: 0, first: 0 },
        KvTarget::Staging { staging, first } => {
            rt.wait_for_scatter(device_buffer(staging));
            let Staging { data, capacity } = Staging::of(staging, geometry.kv_heads);
            assert!(first + n <= capacity as usize, "{n} tokens behind {first} in a staging buffer of {capacity}");
            Target { staging: data, capacity, first: first as i32 }
        }
    };
    let (q_norm, k_norm, eps) = norms.map_or((0, 0, 0.0), |norms| (vector(norms.q), vector(norms.k), norms.eps));
    let grid = [n, heads.div_ceil(BLOCK_HEADS), 1];
    rt.run(
        Launch { kernel: "qkv_append", grid, threads: 32 * BLOCK_HEADS, shared: 0 },
        &[
            arg(&rt.argument),
            arg(&(layer as i32)),
            arg(&view(qkv)),
            arg(&q_norm),
            arg(&k_norm),
            arg(&eps),
            arg(&target),
            arg(&view(q)),
        ],
    );
}
