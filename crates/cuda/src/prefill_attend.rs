//! Causal attention over staged tokens, flash style.

use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, device_buffer, split_rows, view};
use backend::{Buffer, View};

/// Threads of a block, its rows (a query head of a token each), and keys of its steps: `THREADS`, `ROWS` and `KEYS` of
/// kernels/prefill_attend.cu.
const THREADS: usize = 128;
const ROWS: usize = 128;
const KEYS: usize = 64;

/// Fewest keys of a part: four steps, 10 us, what joining the parts costs at least.
const PART_KEYS: usize = 256;

/// See [`backend::Runtime`].
pub(crate) fn prefill_attend(rt: &CudaRuntime, staging: &Buffer, first: usize, n: usize, q: View<'_>, out: View<'_>) {
    let (kv_heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let capacity = staging.rows() / (2 * kv_heads);
    assert_eq!(staging.cols(), d, "prefill_attend: a staged row is one token's key or value");
    assert!(first + n <= capacity, "prefill_attend: {} staged tokens of {capacity}", first + n);
    for view in [q, out] {
        assert_eq!(view.buffer.cols(), rt.shape.q_heads * d, "prefill_attend: a row is all heads");
        assert!(view.row + n <= view.buffer.rows(), "prefill_attend: {n} rows from {}", view.row);
    }
    if n == 0 {
        return;
    }
    let blocks = (n * rt.group()).div_ceil(ROWS) * kv_heads;
    let chunk = part_keys(rt, first + n, n, blocks);
    let parts = (first + n).div_ceil(chunk);
    let int = |x: usize| i32::try_from(x).expect("sizes have 31 bits");
    let how = Launch {
        kernel: &format!("prefill_attend_{d}"),
        grid: [blocks, parts, 1],
        threads: THREADS,
        // Queries, and twice a step's keys and values.
        shared: (ROWS + 2 * 2 * KEYS) * d * 2,
    };
    rt.run(
        how,
        &[
            arg(&rt.argument),
            arg(&device_buffer(staging).array.pointer),
            arg(&int(capacity)),
            arg(&int(first)),
            arg(&int(n)),
            arg(&int(chunk)),
            arg(&view(q)),
            arg(&view(out)),
        ],
    );
    if parts > 1 {
        let grid = [n * rt.group(), kv_heads, 1];
        let how = Launch { kernel: "prefill_attend_merge", grid, threads: d, shared: 0 };
        rt.run(how, &[arg(&rt.argument), arg(&int(n)), arg(&int(parts)), arg(&view(out))]);
    }
}

/// Keys of the parts that the keys are cut into where a launch has too few blocks to fill the device (the last token of
/// a prompt is one row for each KV head): all of them where it has enough, or where parts have no room.
fn part_keys(rt: &CudaRuntime, keys: usize, n: usize, blocks: usize) -> usize {
    let [wave, ..] = rt.argument.targets;
    let room = split_rows(&rt.shape, rt.gpu.sms);
    let parts = (wave as usize / blocks).min(room / (n * rt.shape.q_heads)).min(keys / PART_KEYS).max(1);
    keys.div_ceil(parts).next_multiple_of(KEYS)
}
