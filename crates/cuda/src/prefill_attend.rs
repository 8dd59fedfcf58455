//! Causal attention over staged tokens, flash style.

use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, split_rows, view};
use crate::staging::Staging;
use crate::tensor_map::TensorMap;
use backend::{Buffer, View};

/// Fewest keys of a part: 10 us, what joining the parts costs at least.
const PART_KEYS: usize = 256;

/// How a kernel cuts its work: constants of its file.
struct Form {
    /// Threads of a block.
    threads: usize,
    /// Rows (a query head of a token each) of a tile, which is what a block works on at a time.
    rows: usize,
    /// Keys of a step.
    keys: usize,
    /// Steps whose keys and values are in shared memory at once.
    steps: usize,
    /// Blocks that a multiprocessor has room for.
    resident: usize,
}

/// kernels/prefill_attend_mma.cuh: any head size on any architecture.
const MMA: Form = Form { threads: 128, rows: 128, keys: 64, steps: 2, resident: 2 };

/// kernels/prefill_attend_wgmma.cuh: heads of 64 and 128 where the machine code is for compute capability 9.0.
fn wgmma(head_dim: usize) -> Form {
    let warpgroups = if head_dim == 64 { 3 } else { 2 };
    Form { threads: 128 * (1 + warpgroups), rows: 64 * warpgroups, keys: 128, steps: 3, resident: 1 }
}

/// Bytes for the barriers of the latter.
const BARRIERS: usize = 128;

impl Form {
    /// Bytes of queries, keys and values in shared memory.
    fn shared(&self, head_dim: usize) -> usize {
        (self.rows + 2 * self.steps * self.keys) * head_dim * 2
    }
}

/// See [`backend::Runtime`].
pub(crate) fn prefill_attend(rt: &CudaRuntime, staging: &Buffer, first: usize, n: usize, q: View<'_>, out: View<'_>) {
    let (kv_heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let staged = Staging::of(staging, kv_heads);
    let keys = first + n;
    assert_eq!(staging.cols(), d, "prefill_attend: a staged row is one token's key or value");
    assert!(keys <= staged.capacity as usize, "prefill_attend: {keys} staged tokens of {}", staged.capacity);
    for view in [q, out] {
        assert_eq!(view.buffer.cols(), rt.shape.q_heads * d, "prefill_attend: a row is all heads");
        assert!(view.row + n <= view.buffer.rows(), "prefill_attend: {n} rows from {}", view.row);
    }
    if n == 0 {
        return;
    }
    let by_wgmma = format!("prefill_attend_wgmma_{d}");
    let has_wgmma = rt.gpu.kernels.has(&by_wgmma);
    let form = if has_wgmma { wgmma(d) } else { MMA };
    let tiles = (n * rt.group()).div_ceil(form.rows) * kv_heads;
    let chunk = part_keys(rt, &form, keys, n, tiles);
    let parts = keys.div_ceil(chunk);
    let (q, out) = (view(q), view(out));
    let [first, tokens, chunk, all_parts] = [first, n, chunk, parts].map(int);
    let (threads, shared) = (form.threads, form.shared(d));
    if has_wgmma {
        let map = match TensorMap::of_staging(&staged, (kv_heads, keys, d), form.keys) {
            Ok(map) => map,
            Err(error) => return rt.note(Err(error)),
        };
        let grid = [(tiles * parts).min(rt.gpu.sms), 1, 1];
        let how = Launch { kernel: &by_wgmma, grid, threads, shared: shared + BARRIERS };
        let numbers = [arg(&first), arg(&tokens), arg(&chunk), arg(&all_parts)];
        let [first, n, chunk, parts] = numbers;
        rt.run(how, &[arg(&rt.argument), arg(&map), first, n, chunk, parts, arg(&q), arg(&out)]);
    } else {
        let how = Launch { kernel: &format!("prefill_attend_{d}"), grid: [tiles, parts, 1], threads, shared };
        let (data, capacity) = (arg(&staged.data), arg(&staged.capacity));
        let [first, n, chunk] = [arg(&first), arg(&tokens), arg(&chunk)];
        rt.run(how, &[arg(&rt.argument), data, capacity, first, n, chunk, arg(&q), arg(&out)]);
    }
    if parts > 1 {
        let grid = [n * rt.group(), kv_heads, 1];
        let how = Launch { kernel: "prefill_attend_merge", grid, threads: d, shared: 0 };
        rt.run(how, &[arg(&rt.argument), arg(&tokens), arg(&all_parts), arg(&out)]);
    }
}

fn int(x: usize) -> i32 {
    i32::try_from(x).expect("sizes have 31 bits")
}

/// Keys of the parts that the keys are cut into where a launch has too few tiles to fill the device (the last token of
/// a prompt is one row for each KV head): all of them where it has enough, or where parts have no room.
fn part_keys(rt: &CudaRuntime, form: &Form, keys: usize, n: usize, tiles: usize) -> usize {
    let wave = form.resident * rt.gpu.sms;
    let room = split_rows(&rt.shape, rt.gpu.sms);
    let parts = (wave / tiles).min(room / (n * rt.shape.q_heads)).min(keys / PART_KEYS).max(1);
    keys.div_ceil(parts).next_multiple_of(form.keys)
}
