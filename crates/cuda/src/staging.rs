//! Staging to rows (aside, behind the layer that filled it) and back, and rows to rows.

use crate::abi::Pointer;
use crate::kernels::{Launch, arg};
use crate::residency::LINK_BLOCKS;
use crate::runtime::{CudaRuntime, DeviceBuffer, device_buffer};
use backend::{Buffer, RowCopy};
use kv::{PAGE_TOKENS, RowId, geometry};
use std::collections::HashSet;
use std::ops::Range;

/// Copies of one launch.
const COPIES_MAX: usize = 4096;

/// `Staging` of the kernels: `[kv_heads][K or V][capacity][d]`, bf16.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Staging {
    /// First element.
    pub(crate) data: Pointer,
    /// Tokens that it has room for.
    pub(crate) capacity: i32,
}

impl Staging {
    /// A staging buffer as kernels see it.
    pub(crate) fn of(buffer: &Buffer, kv_heads: usize) -> Self {
        let capacity = buffer.rows() / (2 * kv_heads);
        Staging { data: device_buffer(buffer).array.pointer, capacity: capacity as i32 }
    }
}

impl CudaRuntime {
    /// What the main stream gets next may overwrite the staging buffer.
    pub(crate) fn wait_for_scatter(&self, staging: &DeviceBuffer) {
        let scattered = staging.scattered.as_ref().expect("a staging buffer of this backend");
        self.note(self.gpu.main.wait(scattered));
    }
}

/// See [`backend::Runtime`]. Runs aside: the next layer, in the other staging buffer, need not wait.
pub(crate) fn scatter_layer(rt: &CudaRuntime, staging: &Buffer, layer: usize, tokens: Range<usize>, kv_rows: &[RowId]) {
    let Some((arguments, how)) = prepare(rt, staging, &tokens, kv_rows) else { return };
    rt.fork();
    let [start, end] = [tokens.start, tokens.end].map(|token| token as i32);
    let (staged, rows) = arguments;
    rt.run_aside(
        how,
        &[arg(&rt.argument), arg(&staged), arg(&(layer as i32)), arg(&start), arg(&end), arg(&rows), arg(&1_i32)],
    );
    let scattered = device_buffer(staging).scattered.as_ref().expect("a staging buffer of this backend");
    rt.note(scattered.record(&rt.gpu.side));
}

/// See [`backend::Runtime`].
pub(crate) fn gather_layer(rt: &CudaRuntime, staging: &Buffer, layer: usize, tokens: Range<usize>, kv_rows: &[RowId]) {
    rt.join();
    let Some((arguments, how)) = prepare(rt, staging, &tokens, kv_rows) else { return };
    let [start, end] = [tokens.start, tokens.end].map(|token| token as i32);
    let (staged, rows) = arguments;
    rt.run(
        how,
        &[arg(&rt.argument), arg(&staged), arg(&(layer as i32)), arg(&start), arg(&end), arg(&rows), arg(&0_i32)],
    );
}

fn prepare(
    rt: &CudaRuntime,
    staging: &Buffer,
    tokens: &Range<usize>,
    kv_rows: &[RowId],
) -> Option<((Staging, Pointer), Launch<'static>)> {
    if tokens.is_empty() {
        return None;
    }
    let heads = rt.shape.geometry.kv_heads;
    let staging = Staging::of(staging, heads);
    assert!(tokens.end <= staging.capacity as usize, "tokens {tokens:?} of a staging buffer of {}", staging.capacity);
    let pages = tokens.start / PAGE_TOKENS..geometry::pages(tokens.end);
    let rows: Vec<u32> = kv_rows[pages.clone()].iter().map(|row| row.0).collect();
    let how = Launch { kernel: "move_layer", grid: [pages.len(), heads, 1], threads: 128, shared: 0 };
    Some(((staging, rt.upload(&rows)), how))
}

/// See [`backend::Runtime`].
pub(crate) fn copy_rows(rt: &CudaRuntime, copies: &[RowCopy]) {
    rt.join();
    // In order: what an earlier copy wrote, a later one may read. Those that touch nothing of each other go together.
    let mut rest = copies;
    while !rest.is_empty() {
        let (some, others) = rest.split_at(independent(rest));
        let pairs: Vec<u32> = some.iter().flat_map(|copy| [copy.source.0, copy.target.0]).collect();
        // Few blocks saturate the link; inside the pool all multiprocessors take part.
        let over_link = some.iter().any(|copy| copy.source.tier() != copy.target.tier());
        let blocks = if over_link { LINK_BLOCKS } else { rt.gpu.sms };
        let how = Launch { kernel: "copy_rows", grid: [blocks, 1, 1], threads: 512, shared: 0 };
        rt.run(how, &[arg(&rt.argument), arg(&rt.upload(&pairs)), arg(&(some.len() as i32))]);
        rest = others;
    }
}

/// How many of the first copies touch nothing that one of them writes; at most what one upload holds.
fn independent(copies: &[RowCopy]) -> usize {
    let (mut read, mut written) = (HashSet::new(), HashSet::new());
    let alone = |copy: &&RowCopy| {
        assert_ne!(copy.source, copy.target, "a row is copied to another");
        let alone = !written.contains(&copy.source) && !read.contains(&copy.target) && written.insert(copy.target);
        read.insert(copy.source);
        alone
    };
    copies.iter().take(COPIES_MAX).take_while(alone).count()
}
